"""Each call of a crate's set-up fails in turn: its test fails and says so, the next one passes, nothing is left."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from typing import Any

import pytest

from tests.faults.conftest import WAYS, WAYS_OF_A_USER, WITHOUT_CALLS, Faulted, FaultedRun, RunFaulted, Thoroughness

pytestmark = pytest.mark.needs("root", "overlay", "memory limit", "pids limit", "cpus limit")

ERRNOS = (errno.ENOSPC, errno.EMFILE, errno.ENOMEM, errno.EPERM, errno.EINTR)
SYSTEM_CALLS = 60
FORKS = ("clone", "fork", "posix_spawn")
HANG_SECONDS = 20
FEW = 100
NAMES = ("/etc/hosts", "/etc/hostname")
WHATEVER_ROOT = ("ask", "create", "finish", "be born", "enter", "confine", "remove")
"""Stages that are the same on the host's root and on an image."""

ENDING = ("init", "be born", "enter", "confine", "program")
"""Stages of processes that end with a call that fails, and can harm no later test."""


def errnos(call: str) -> tuple[int, ...]:
    """Return what a call is to fail with, one after the other."""
    # A control group stays busy for a moment after its last process has gone.
    more = {"rmdir": (errno.EBUSY,), **dict.fromkeys(FORKS, (errno.EAGAIN,))}
    return (*ERRNOS, *more.get(call, ()))


def plans_of(run: FaultedRun) -> list[dict[str, Any]]:
    """Return a plan for each call that was counted, and each errno."""
    calls = {(call["stage"], call["number"]): call for call in run.calls}
    return [
        {"stage": stage, "number": number, "call": call["call"], "errno": error}
        for (stage, number), call in calls.items()
        for error in errnos(call["call"])
        if error != errno.EINTR or not call["retried"]
    ]


def matching(plans: Sequence[dict[str, Any]], patterns: Sequence[str]) -> list[dict[str, Any]]:
    """Return the plans that ``--faults-only`` names."""
    names = [f"{plan['stage']} {plan['number']} {plan['call']} {errno.errorcode[plan['errno']]}" for plan in plans]
    return [plan for plan, name in zip(plans, names, strict=True) if any(fnmatch(name, each) for each in patterns)]


def followed(chosen: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the plans, and between them empty ones: the next test, in which nothing fails."""
    ended = 0
    for plan in chosen:
        yield plan
        ended = ended + 1 if plan["stage"] in ENDING else 0
        if ended % 3 == 0:
            yield {}
    yield {}


def complaints(each: Faulted, normal: dict[str, Any] | None) -> list[str]:
    """Return what is wrong with a test in whose crate a call failed."""
    found = []
    # What can't be removed is removed with the next crate.
    if {*each.left} - ({"control groups", "in crates"} if each.plan["stage"] == "remove" else set()):
        found.append(f"left behind: {each.left}")
    if each.seconds > HANG_SECONDS:
        found.append(f"it took {each.seconds:.0f} s")
    if each.outcome == "passed":
        # Retried, or of no consequence. What must not be is a crate that is less of one.
        otherwise = difference(each.seen, normal)
        if (
            otherwise
            and each.plan["stage"] == "start"
            and each.plan["errno"] in (errno.EPERM, errno.ENOSPC)
            and re.match(r"clone|\w+\(/proc/\d+/(uid|gid)_map|write\(\d", each.call)
        ):
            # As on a kernel that allows no user namespace, of which pytest's header says so.
            return found
        # The private file is shown over the other one where that can't be replaced.
        if otherwise not in ({}, *({"mounts": [f"{path} rw,nosuid,nodev,relatime tmpfs"]} for path in NAMES)):
            found.append(f"it passed in another crate than it should have had: {otherwise}")
        return found
    if each.call.startswith(("sendmsg", "recvmsg", "write(")) and re.search(
        "no answer: |the builder was killed|init ended early", each.text
    ):
        return found  # who can't be told why
    if each.plan["stage"] == "start" and re.search("no limit on|NO cgroup|no cgroup", each.text):
        return found  # the control groups that there were no means to find
    number = each.plan["errno"]
    if os.strerror(number) not in each.text and f"errno {number}" not in each.text:
        found.append("it doesn't say which error it was")
    name, _, what = each.call.partition("(")
    what = what.rstrip(")")
    steps = ("build the crate's root: ", "start the launcher: ", "cannot read it: ")
    if not any(word in each.text for word in (name, what, os.path.basename(what) or name, *steps)):
        found.append("it says neither which call failed nor on what")
    return found


def difference(seen: dict[str, Any] | None, normal: dict[str, Any] | None) -> object:
    """Return what is otherwise in a crate than in another; of lists only what is in one of them."""
    if seen is None or normal is None:
        return seen
    found = {}
    for key in normal:
        if seen[key] != normal[key]:
            lists = isinstance(normal[key], list)
            found[key] = sorted({*seen[key]} ^ {*normal[key]}) if lists else (seen[key], normal[key])
    return found


def without_call(seen: dict[str, Any] | None, name: str) -> dict[str, Any] | None:
    """Return what was seen, but for how one call is refused."""
    if seen is None:
        return None
    return seen | {"refused": {call: said for call, said in seen["refused"].items() if call != name}}


@pytest.mark.parametrize("way", WAYS)
def test_each_call_fails_in_turn(run_faulted: RunFaulted, way: str, thoroughness: Thoroughness) -> None:
    """Whatever errno it is: no hang, an error that names it, no crate that is less of one, and nothing left behind."""
    forked = way == WITHOUT_CALLS
    expected = {"init"} if forked else {"build"}
    expected |= {"enter", "confine"} if "body" in way else {"program"} if forked else {"start the program"}
    fail_each_call(run_faulted, way, thoroughness, {*expected, "remove"})


@pytest.mark.needs("user namespaces")
@pytest.mark.parametrize("way", WAYS_OF_A_USER)
def test_each_call_of_an_ordinary_users_fails_in_turn(
    run_faulted_as_user: RunFaulted, way: str, thoroughness: Thoroughness
) -> None:
    """The same in crates that are made without the rights of root."""
    fail_each_call(run_faulted_as_user, way, thoroughness, {"init", *({"be born", "enter"} if "body" in way else ())})


def fail_each_call(run_faulted: RunFaulted, way: str, thoroughness: Thoroughness, expected: set[str]) -> None:
    """Have each call fail with each errno, and look at what becomes of the tests.

    :param expected: stages of this way, beside those that all have.
    """
    # The second test meets what is done once: the first one's launcher has begun before there was a plan.
    begun = run_faulted(way, [{}, {"stage": "launch", "number": 0, "errno": 0}, {}])
    assert [each.outcome for each in begun.found] == ["passed"] * 3, begun.printed[-3000:]
    normal = begun.found[0].seen
    assert normal is not None
    assert difference(begun.found[2].seen, normal) == {}
    plans = plans_of(begun)
    stages = {plan["stage"] for plan in plans}
    # What is the same whatever is asked for is tried in one way.
    if not way.startswith("body on the host"):
        plans = [plan for plan in plans if plan["stage"] not in ("launch", "start")]
    if "image" in way:
        plans = [plan for plan in plans if plan["stage"] not in WHATEVER_ROOT]
    assert stages >= {"launch", "start", "ask", "create", "finish", *expected}
    chosen = matching(plans, thoroughness.only) or thoroughness.some(plans)
    run = run_faulted(way, [{}, *followed(chosen)])
    normal = run.found[0].seen
    assert normal is not None
    wrong = []
    for each in run.found:
        if each.plan:
            wrong += [f"{each}\n    {complaint}" for complaint in complaints(each, normal)]
        elif each.outcome != "passed" or each.seen != normal or each.left:
            wrong.append(f"the next test: {each.outcome}: {each.text} {each.left} {difference(each.seen, normal)}")
    hits = sum(bool(each.call) for each in run.found)
    failed = sum(each.outcome == "failed" for each in run.found)
    print(f"{way}: {len(plans)} faults, {len(chosen)} tried, {hits} met, {failed} tests failed by them")
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong)
    # Some calls are made only once, or only if another process was slower: of a few drawn by lot that may be most.
    assert hits >= (0.7 * len(chosen) if len(chosen) >= FEW else 1)


# The stages in which one process of pytest-crate leans on another: what is left undone there is left for good.
SHORT = {
    "body on the host's root": ["remove *", "walk *", "fork *", "start * waitpid *"],
    "program on the host's root": ["remove *", "spawn *", "start the program *", "ask *"],
}


@pytest.mark.parametrize("way", SHORT)
def test_each_call_at_a_crates_two_ends_fails_in_turn(
    run_faulted: RunFaulted, way: str, thoroughness: Thoroughness
) -> None:
    """The same, and never just some of it, between a crate's making and its payload's birth, and in its removal."""
    fail_each_call(run_faulted, way, dataclasses.replace(thoroughness, only=SHORT[way]), {"remove"})


@pytest.mark.needs("user namespaces")
def test_each_call_of_a_birth_without_the_rights_of_root_fails_in_turn(
    run_faulted_as_user: RunFaulted, thoroughness: Thoroughness
) -> None:
    """Where one process bears another for a third, none goes on that nobody knows, nor is one left unreaped."""
    only = dataclasses.replace(thoroughness, only=["be born *", "fork *"])
    fail_each_call(run_faulted_as_user, "body on the host's root of an ordinary user", only, {"be born", "enter"})


SYSCALLS = {
    # How often a process that makes or enters a crate calls it, about.
    "mount": 40,
    "umount2": 2,
    "pivot_root": 2,
    "openat2": 60,
    "open_tree": 4,
    "move_mount": 4,
    "mount_setattr": 25,
    "setns": 8,
    "unshare": 2,
    "capset": 1,
    "seccomp": 1,
    "sethostname": 1,
    "clone": 3,
    "setsid": 1,
}


@pytest.mark.needs("strace")
@pytest.mark.parametrize("way", ["body on the host's root", "program on an image"])
def test_each_system_call_fails_in_turn(run_faulted: RunFaulted, way: str, thoroughness: Thoroughness) -> None:
    """The same where it is strace(1) that has the n-th call of each process fail, whoever makes it."""
    normal = run_faulted(way, [{}]).found[0].seen
    faults = [
        (name, number, error)
        for name, count in SYSCALLS.items()
        for number in range(1, count + 1)
        for error in errnos("clone" if name == "clone" else "")
    ]
    wrong = []
    outcomes: Counter[str] = Counter()
    for name, number, error in thoroughness.some(faults, at_most=SYSTEM_CALLS):
        inject = f"inject={name}:error={errno.errorcode[error]}:when={number}"
        options = ["-f", "-qqq", "--seccomp-bpf", "-o", "/dev/null", "-e", f"trace={name}", "-e", inject]
        run = run_faulted(way, [{}], under=["strace", *options])
        assert run.code in (0, 1), f"{inject}: {run.printed}"
        (each,) = run.found
        outcomes[each.outcome] += 1
        if each.outcome == "passed":
            # The n-th may be the test's own, by which it looks whether it is refused.
            if otherwise := difference(without_call(each.seen, name), without_call(normal, name)):
                wrong.append(f"{inject}: passed in another crate: {otherwise}")
        elif not any(word in each.text for word in (os.strerror(error), f"errno {error}", "it ended")):
            wrong.append(f"{inject}: {each.text}")
    print(f"{way}: {dict(outcomes)}")
    assert not wrong, "\n".join(wrong)
