"""Capabilities given up for good, seen by the kernel and by programs started afterwards."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import libc
from pytest_crate.kernel.capabilities import (
    DEFAULT_CAPABILITIES,
    capability_mask,
    capability_numbers,
    last_capability,
    limit_bounding_set,
    no_new_privs,
    parse_capabilities,
    read_capabilities,
    set_capabilities,
)
from pytest_crate.spec import CAPABILITIES

pytestmark = [
    pytest.mark.needs("root"),
    # A fork with threads about, as in a worker of pytest-xdist, warns since Python 3.12; the children here are simple.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

KEEP = capability_numbers(DEFAULT_CAPABILITIES)
MASK = capability_mask(KEEP)
PR_CAP_AMBIENT_RAISE = 2
NOBODY = 65534


def in_child(work: Callable[[], object]) -> Any:
    """Return what the work returns in a forked child, as JSON brings it; fail with its traceback."""
    receiving, sending = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = {"value": work()}
        except Exception:  # noqa: BLE001  (whatever it is, the parent shall show it)
            answer = {"error": traceback.format_exc()}
        os.write(sending, json.dumps(answer).encode())
        os._exit(0)
    os.close(sending)
    with open(receiving, "rb") as file:
        received = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert received, f"the child ended without an answer: {status}"
    answer = json.loads(received)
    assert "value" in answer, answer["error"]
    return answer["value"]


def program_capabilities() -> int:
    """Return the permitted capabilities of a program that the caller starts."""
    status = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
    return parse_capabilities(status).permitted


@pytest.mark.parametrize("last_known", [True, False])
def test_bounding_set_keeps_only_what_is_named(last_known: bool) -> None:
    """Every other capability that the kernel knows is gone from the bounding set, and the host's is untouched."""

    def work() -> object:
        limit_bounding_set(KEEP, *([last_capability()] if last_known else []))
        return read_capabilities().bounding

    before = read_capabilities().bounding
    assert before & ~MASK, "the test needs something to drop"
    assert in_child(work) == MASK & before
    assert read_capabilities().bounding == before


def test_bounding_set_that_keeps_nothing() -> None:
    """The bounding set can be emptied, CAP_SETPCAP included."""

    def work() -> object:
        limit_bounding_set(frozenset())
        return read_capabilities().bounding

    assert in_child(work) == 0


def test_without_setpcap_it_fails_loudly() -> None:
    """A process that may not drop capabilities gets an error that says why, and has the same set as before."""

    def work() -> object:
        before = read_capabilities().bounding
        set_capabilities(capability_mask(capability_numbers(["setuid"])))
        try:
            limit_bounding_set(KEEP)
        except SandboxError as error:
            return [error.errno, str(error), read_capabilities().bounding == before]
        return None

    number, message, unchanged = in_child(work)
    assert number == errno.EPERM
    assert "limit the capability bounding set" in message
    assert "CAP_SETPCAP" in message
    assert unchanged


def test_programs_started_by_root_get_no_more_than_the_bounding_set() -> None:
    """execve(2) gives a root program the bounding set: the whole of it before, what is kept afterwards."""

    def confined() -> object:
        limit_bounding_set(KEEP)
        set_capabilities(MASK)
        return program_capabilities()

    def without_bounding() -> object:
        set_capabilities(MASK)
        return program_capabilities()

    everything = read_capabilities().permitted
    assert in_child(without_bounding) == everything
    assert in_child(confined) == MASK & everything != everything


def test_sets_are_exactly_the_mask() -> None:
    """Permitted and effective are the mask; inheritable and ambient capabilities from outside are gone."""

    def work() -> object:
        raised = capability_numbers(["net_raw"])
        set_capabilities(MASK, inheritable=capability_mask(raised))
        for number in raised:
            libc.prctl("raise", libc.PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number)
        before = read_capabilities()
        set_capabilities(MASK, inheritable=before.inheritable)
        between = read_capabilities()
        set_capabilities(MASK)
        after = read_capabilities()
        return [
            [before.inheritable, before.ambient],
            [between.inheritable, between.ambient],
            [after.permitted, after.effective, after.inheritable, after.ambient],
        ]

    net_raw = capability_mask(capability_numbers(["net_raw"]))
    before, between, after = in_child(work)
    assert before == [net_raw, net_raw]
    assert between == [net_raw, 0]
    assert after == [MASK, MASK, 0, 0]


def test_capabilities_cannot_be_gained() -> None:
    """A mask with more than the process has is an error, and changes nothing."""

    def work() -> object:
        set_capabilities(1)
        try:
            set_capabilities(3)
        except SandboxError as error:
            return [error.errno, error.syscall, read_capabilities().permitted]
        return None

    assert in_child(work) == [errno.EPERM, "capset", 1]


@pytest.mark.parametrize("number", range(len(CAPABILITIES)))
def test_each_capability_can_be_the_only_one(number: int) -> None:
    """Each number, above 32 too, reaches its own bit of the kernel's sets."""
    if not read_capabilities().permitted >> number & 1:
        pytest.skip(f"this process has no CAP_{CAPABILITIES[number].upper()}")

    def work() -> object:
        set_capabilities(1 << number)
        sets = read_capabilities()
        return [sets.permitted, sets.effective]

    assert in_child(work) == [1 << number] * 2


def test_default_set_makes_no_device_nodes(tmp_path: Path) -> None:
    """mknod(2) of a device, which works before, is refused with the default capabilities; a FIFO is not."""

    def attempt(name: str) -> int:
        try:
            os.mknod(tmp_path / name, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        except OSError as error:
            return error.errno or -1
        return 0

    def confined() -> object:
        set_capabilities(MASK)
        os.mkfifo(tmp_path / "fifo")
        return attempt("confined")

    if in_child(lambda: attempt("free")) != 0:
        pytest.skip("no device nodes can be made here at all")
    assert in_child(confined) == errno.EPERM
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "free"]


def test_default_set_lets_root_install_software(tmp_path: Path) -> None:
    """chown, set-id bits, chroot, signals to other users and becoming one work with the default capabilities."""

    def work() -> object:
        limit_bounding_set(KEEP)
        set_capabilities(MASK)
        no_new_privs()
        file = tmp_path / "program"
        file.write_text("", encoding="ascii")
        os.chown(file, 12, 34)
        os.chmod(file, 0o6755)
        other = subprocess.Popen(["sleep", "60"], user=NOBODY, group=NOBODY, extra_groups=[])
        other.terminate()
        other.wait()
        os.chroot(tmp_path)
        made = os.stat("/program")
        os.setgroups([56])
        os.setresgid(34, 34, 34)
        os.setresuid(12, 12, 12)
        return [made.st_uid, made.st_gid, made.st_mode & 0o7777, other.returncode, os.getuid(), os.getgroups()]

    assert in_child(work) == [12, 34, 0o6755, -15, 12, [56]]


def test_no_new_privs_disarms_setuid_programs(tmp_path: Path) -> None:
    """A set-uid root program, which makes a user root before, leaves the user what it was."""
    program = tmp_path / "id"
    shutil.copy("/usr/bin/id", program)
    os.chmod(program, 0o4755)
    descriptor = os.open(program, os.O_PATH)  # pytest's directories are closed to other users

    def as_nobody() -> str:
        os.setresuid(NOBODY, NOBODY, NOBODY)
        command = [f"/proc/self/fd/{descriptor}", "-u"]
        return subprocess.run(
            command, pass_fds=[descriptor], executable=command[0], capture_output=True, text=True, check=True
        ).stdout

    def confined() -> object:
        no_new_privs()
        return [as_nobody(), read_capabilities().no_new_privs]

    try:
        if in_child(as_nobody) != "0\n":
            pytest.skip("set-uid programs have no effect here: a nosuid mount")
        assert in_child(confined) == [f"{NOBODY}\n", True]
    finally:
        os.close(descriptor)


def test_read_capabilities_of_another_process() -> None:
    """Another process is read by its pid; one that does not exist is an error."""
    with subprocess.Popen(["sleep", "60"]) as other:
        assert read_capabilities(other.pid).bounding == read_capabilities().bounding
        other.kill()
    with pytest.raises(SandboxError, match="read the capabilities") as caught:
        read_capabilities(other.pid)
    assert caught.value.errno == errno.ENOENT
