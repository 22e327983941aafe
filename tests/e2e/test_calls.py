"""System calls that another process makes: a table, its errors, and who is born to carry it out."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import calls, libc, seccomp

pytestmark = pytest.mark.needs("calls")

STEP = "try it"


@pytest.fixture
def birth() -> Iterator[calls.Birth]:
    """A birth, split from its first process at once."""
    with calls.Birth(STEP, "pytest-crate-test") as begun:
        begun.split(0)
        yield begun


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe: where it is read, and where it is written."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    yield reading, writing
    os.close(reading)
    os.close(writing)


def children() -> set[int]:
    """Return the pids of this process's children, those that nobody has waited for among them."""
    return {child.pid for child in psutil.Process().children()}


def exit_code(pid: int) -> int:
    """Return how a child ended."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_calls_are_made_in_order(birth: calls.Birth, pipe: tuple[int, int]) -> None:
    """A call gets numbers, text, what an earlier call returned, and arrays that point to more; then it is over."""
    reading, writing = pipe
    add = birth.table.add
    file = add(STEP, "openat", libc.AT_FDCWD, b"/proc/self/cmdline", os.O_RDONLY)
    add(STEP, "dup3", file, 0, 0)
    add(STEP, "dup3", writing, 1, 0)
    argv = libc.Words([b"cat", b"-", b"/proc/self/environ", 0])
    add(STEP, "execve", b"/bin/cat", argv, libc.Words([b"NAME=value", 0]))
    pid = birth.give([writing])
    assert birth.hear() is None
    assert exit_code(pid) == 0
    assert os.read(reading, 4096) == b"cat\0-\0/proc/self/environ\0NAME=value\0"


def test_the_pid_is_our_own_childs(birth: calls.Birth) -> None:
    """What is born is this process's child, and the first process is gone."""
    before = children()
    birth.say_ready()
    birth.table.add(STEP, "ppoll", None, 0, None, None, 0)
    pid = birth.give([])
    assert birth.hear() == 0
    with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
        assert int(stat.read().rpartition(")")[2].split()[1]) == os.getpid()
    with open(f"/proc/{pid}/cmdline", encoding="utf-8") as line:
        assert line.read() == "pytest-crate-test\0"
    os.kill(pid, signal.SIGKILL)
    assert exit_code(pid) == -signal.SIGKILL
    assert children() == before


def test_a_failure_says_which_call(birth: calls.Birth) -> None:
    """The process ends at the call that fails, which is named with its path, errno, and what that means."""
    birth.table.add(STEP, "chdir", b"/")
    birth.table.add("go there", "chdir", b"/nowhere", path="/nowhere", details={errno.ENOENT: "it is gone"})
    birth.say_ready()
    pid = birth.give([])
    with pytest.raises(SandboxError) as error:
        birth.hear()
    assert str(error.value) == "go there: chdir(/nowhere): No such file or directory (errno 2); it is gone"
    assert birth.hear() is None
    assert exit_code(pid) == 127


def test_a_failure_before_the_split() -> None:
    """What fails in the first process is its end: nothing is born, and none is left to be waited for."""
    before = children()
    with calls.Birth(STEP, "pytest-crate-test") as birth:
        birth.table.add("go there", "chdir", b"/nowhere", path="/nowhere")
        birth.split(0)
        with pytest.raises(SandboxError, match=r"go there: chdir\(/nowhere\)"):
            birth.give([])
    assert children() == before


def test_a_split_that_is_refused() -> None:
    """Nothing is born where clone(2) fails: it makes no mount namespace that shares its root directory."""
    with calls.Birth(STEP, "pytest-crate-test") as birth:
        birth.split(libc.CLONE_NEWNS | 0x200)  # CLONE_FS
        with pytest.raises(SandboxError) as error:
            birth.give([])
    assert (error.value.syscall, error.value.errno) == ("clone", errno.EINVAL)


def test_the_first_process_is_killed() -> None:
    """A first process that dies leaves nothing: who it has borne goes no further."""
    before = children()
    with calls.Birth(STEP, "pytest-crate-test") as birth:
        birth.table.add(STEP, "prctl", 22, 1, 0, 0, 0)  # PR_SET_SECCOMP, strict: the next call is its end
        birth.split(0)
        with pytest.raises(SandboxError, match="the process that should fork died"):
            birth.give([])
    assert children() == before


def test_the_first_process_is_killed_before_it_tells() -> None:
    """A first process that dies when it has borne the child, and has not told its pid, leaves nothing either: nobody
    waits for a word of the child's, which waits itself, and holds the pipe open."""
    before = children()
    is_write = struct.pack(
        "=HBBIHBBIHBBIHBBI",
        *(0x20, 0, 0, 0),  # load the call's number
        *(0x15, 0, 1, libc.NUMBERS["write"]),
        *(0x06, 0, 0, 0x80000000),  # SECCOMP_RET_KILL_PROCESS
        *(0x06, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
    )
    with calls.Birth(STEP, "pytest-crate-test") as birth:
        birth.table.add(STEP, "prctl", libc.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        seccomp.install(is_write, call=birth.table.add)
        birth.split(0)
        with pytest.raises(SandboxError, match="the process that should fork died"):
            birth.give([])
    assert children() == before


@pytest.mark.parametrize(
    ("paths", "number"),
    [
        (["/nowhere/x", "/dev/null/x", "/bin/true"], None),
        (["/nowhere/x", "/dev/null/x"], errno.ENOTDIR),
        (["/nowhere/x", "/etc/passwd", "/nowhere/y"], errno.EACCES),
        (["/etc/passwd", "/bin/true"], None),
    ],
)
def test_the_first_that_is_there(birth: calls.Birth, paths: list[str], number: int | None) -> None:
    """Of several programs the first is executed that can be; the error is the first but "not found", or the last."""
    attempts = [(os.fsencode(path), libc.Words([b"x", 0]), libc.Words([0])) for path in paths]
    birth.table.try_each("run x", "execve", attempts, path="x")
    pid = birth.give([])
    if number is None:
        assert birth.hear() is None
        assert exit_code(pid) == 0
        return
    with pytest.raises(SandboxError) as error:
        birth.hear()
    assert (error.value.step, error.value.path, error.value.errno) == ("run x", "x", number)
    assert exit_code(pid) == 127


def test_who_is_not_heard_ends(birth: calls.Birth) -> None:
    """Who says that it is ready when nobody hears it any more has that for its end."""
    birth.table.add(STEP, "ppoll", None, 0, libc.Words((0, 200_000_000)), None, 0)
    birth.say_ready()
    birth.table.add(STEP, "ppoll", None, 0, None, None, 0)
    pid = birth.give([])
    birth.__exit__()
    assert exit_code(pid) in (127, -signal.SIGPIPE)


def test_it_has_what_it_is_given(birth: calls.Birth, pipe: tuple[int, int]) -> None:
    """It has the standard streams and what it is given; and all that closes when it executes."""
    reading, writing = pipe
    birth.close_on_exec([writing])
    birth.table.add(STEP, "dup3", writing, 1, 0)
    argv = libc.Words([b"ls", b"/proc/self/fd", 0])
    birth.table.add(STEP, "execve", b"/bin/ls", argv, libc.Words([0]))
    pid = birth.give([writing])
    assert exit_code(pid) == 0
    kept = {b"%d" % number for number in range(3, 1024) if _is_inherited(number)}
    found = {*os.read(reading, 4096).split()} - kept
    assert {b"0", b"1", b"2"} <= found
    assert len(found) == 4  # the last is ls's own
    assert not os.get_inheritable(writing)


def _is_inherited(descriptor: int) -> bool:
    try:
        return os.get_inheritable(descriptor)
    except OSError:
        return False


def test_it_closes_all(birth: calls.Birth) -> None:
    """A process that is to live on can close all that it has."""
    birth.say_ready()
    birth.close_all()
    birth.table.add(STEP, "ppoll", None, 0, None, None, 0)
    pid = birth.give([])
    assert [birth.hear(), birth.hear()] == [0, None]
    # What it may have of this process besides, such as a descriptor of xdist's, it closes after that.
    end = time.monotonic() + 10
    while (kept := os.listdir(f"/proc/{pid}/fd")) and time.monotonic() < end:
        time.sleep(0.01)
    assert kept == []
    os.kill(pid, signal.SIGKILL)
    assert exit_code(pid) == -signal.SIGKILL


def test_a_long_table(birth: calls.Birth) -> None:
    """There is no limit to the calls, nor to what they point to."""
    for number in range(3000):
        birth.table.add(STEP, "chdir", b"/" * 100 if number % 2 else b"/proc", path="x")
    birth.table.add(STEP, "chdir", b"/" + b"n" * 20_000, path="long")
    pid = birth.give([])
    with pytest.raises(SandboxError) as error:
        birth.hear()
    assert (error.value.path, error.value.errno) == ("long", errno.ENAMETOOLONG)
    assert exit_code(pid) == 127


def test_a_limit_on_the_sizes_of_files(birth: calls.Birth) -> None:
    """A table that the limit cuts off is an error that says so, and no process carries out what is left of it."""
    for _ in range(100):
        birth.table.add(STEP, "chdir", b"/")
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(SandboxError) as error:
            birth.give([])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))
    assert (error.value.syscall, error.value.errno) == ("ftruncate", errno.EFBIG)


def test_a_call_that_has_no_number(birth: calls.Birth) -> None:
    """A call that this machine's table lacks is an error before anything begins."""
    birth.table.add(STEP, "no_such_call", path="here")
    with pytest.raises(SandboxError, match=r"no_such_call\(here\).*not known on this machine"):
        birth.give([])


def test_nobody_can_change_the_program(birth: calls.Birth, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What such a process runs is no file of the host's, and what is in it stays as it is: also when it has ended."""
    program = Path(shutil.copy(calls.PROGRAM, tmp_path))
    monkeypatch.setattr(calls, "PROGRAM", str(program))
    before = program.stat().st_mode, program.read_bytes()
    birth.say_ready()
    birth.table.add(STEP, "ppoll", None, 0, None, None, 0)
    pid = birth.give([])
    assert birth.hear() == 0
    kept = os.open(f"/proc/{pid}/exe", os.O_RDONLY | os.O_CLOEXEC)
    os.kill(pid, signal.SIGKILL)
    assert exit_code(pid) == -signal.SIGKILL
    os.chmod(f"/proc/self/fd/{kept}", 0o777)
    again = os.open(f"/proc/self/fd/{kept}", os.O_RDWR | os.O_CLOEXEC)
    for change in (lambda: os.write(again, b"!"), lambda: os.ftruncate(again, 0), lambda: os.ftruncate(again, 1 << 20)):
        with pytest.raises(PermissionError):
            change()
    os.close(again)
    os.close(kept)
    assert (program.stat().st_mode, program.read_bytes()) == before
    assert calls.works()


def test_where_it_was_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the program, or with one of another machine's, it doesn't work, and that is found out."""
    assert calls.works()
    monkeypatch.setattr(calls, "PROGRAM", "/nowhere/calls")
    assert not calls.works()
    monkeypatch.setattr(calls, "PROGRAM", "/bin/false")
    assert not calls.works()
