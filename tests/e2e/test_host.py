"""Probing the real host, as root and as an ordinary user."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_crate.kernel import identity, libc
from pytest_crate.kernel.cgroup import CgroupOffer, NoCgroups, Refusal
from pytest_crate.kernel.host import probe_host
from pytest_crate.sandbox.sandbox import Engine

CHAIN = tuple(
    "namespaces|host name|private mounts|overlay|fresh proc|fresh sys|pivot_root|seccomp|openat2|clone3".split("|")
)
NOTHING = CgroupOffer.of(NoCgroups(Refusal(reason="not looked at")))


def in_child(work: Callable[[], object]) -> Any:
    """Return what the work returns in a forked child, as JSON brings it."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.write(writing, json.dumps(work()).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, encoding="utf-8") as file:
        text = file.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0
    return json.loads(text)


def become_ordinary() -> None:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    # A change of user gives the process's files in /proc to root, which would forbid writing the id map.
    libc.prctl("own /proc/self again", libc.PR_SET_DUMPABLE, 1)


def mounts_and_children() -> tuple[str, str]:
    return (
        Path("/proc/self/mountinfo").read_text(),
        Path(f"/proc/self/task/{os.getpid()}/children").read_text(),
    )


@pytest.mark.needs("root")
def test_root_gets_the_whole_chain() -> None:
    """With the rights of root every step works here: in less than two seconds, leaving no mount and no process."""
    with contextlib.closing(Engine()) as engine:
        offer = engine.enforcement.cgroups
    before, began = mounts_and_children(), time.monotonic()
    found = probe_host(offer)
    duration_sec = time.monotonic() - began
    assert mounts_and_children() == before
    statuses = {row.feature: row.status for row in found.rows}
    assert {feature: statuses[feature] for feature in CHAIN} == dict.fromkeys(CHAIN, "ok")
    assert {row.feature for row in found.rows if row.status == "ok"} >= {f"{key} limit" for key in offer.limits}
    assert found.privileged
    assert (found.cgroup_version, found.cgroup_how) == (offer.version, offer.how)
    assert duration_sec < 2


@pytest.mark.needs("root", "user namespaces")
def test_ordinary_user_gets_the_chain_in_a_user_namespace() -> None:
    """An ordinary user builds the same root in a user namespace, with an overlay that marks in user.* attributes."""

    def work() -> object:
        become_ordinary()
        began = time.monotonic()
        found = probe_host(NOTHING)
        return [found.to_json(), time.monotonic() - began]

    found, duration_sec = in_child(work)
    rows = {row["feature"]: row for row in found["rows"]}
    assert {feature: rows[feature]["status"] for feature in CHAIN} == dict.fromkeys(CHAIN, "ok")
    assert rows["overlay"]["detail"].endswith("upper on a tmpfs, userxattr")
    assert (found["privileged"], found["enforced"]) == (False, False)
    assert duration_sec < 2


@pytest.mark.needs("root")
def test_exhausted_user_namespaces_are_recognised() -> None:
    """In a user namespace that allows none below it the refusal comes from the kernel, and the row names the sysctl."""

    def work() -> object:
        libc.unshare("enter a user namespace", libc.CLONE_NEWUSER)
        identity.write_id_maps("self", *identity.single_id_map(0, 0), deny_setgroups=True)
        # This sysctl is a user namespace's own (namespaces(7)): the host's stays as it is.
        Path("/proc/sys/user/max_user_namespaces").write_text("0")
        return probe_host(NOTHING).to_json()

    outside = Path("/proc/sys/user/max_user_namespaces").read_text()
    row = in_child(work)["rows"][0]
    assert row["feature"] == "user namespaces"
    assert row["status"] == "degraded"
    assert row["detail"].endswith("user.max_user_namespaces is 0")
    assert row["remedy"] == "sudo sysctl -w user.max_user_namespaces=15000"
    assert Path("/proc/sys/user/max_user_namespaces").read_text() == outside
