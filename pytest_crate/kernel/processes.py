"""Whether a process has ended, and waiting until it has."""

from __future__ import annotations

import errno
import math
import os
import select
import signal
import time

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import libc

KILL_SECONDS = 60.0
"""How long who has been killed may take to end: giving back its memory, or dumping it, takes a time."""

_LOOK_SEC = 0.02
_WALL = 0x40000000  # linux/wait.h
_PTRACE_DETACH = 17  # linux/ptrace.h


def pidfd_has_ended(pidfd: int, *, within_sec: float = 0) -> bool:
    """Return whether a process has ended, or does so within so many seconds (pidfd_open(2): its descriptor is readable
    then)."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(within_sec * 1e3))


def has_ended(pid: int) -> bool:
    """Return whether a child has ended; it is still to be waited for."""
    with libc.os_step("look whether a process has ended", "waitid", str(pid)):
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def is_stopped(pid: int) -> bool:
    """Return whether a child is stopped by a signal (proc_pid_stat(5))."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "T"


def collect(pid: int) -> int | None:
    """Collect a child if it has ended: return its wait status (wait(2)); None if it hasn't, or can't be yet.

    A child can have its parent trace it, or a thread of it (ptrace(2), PTRACE_TRACEME). Then it stops at each signal,
    which is no end, and its end is told only when that thread has been waited for, too. It is let go here.

    :raises SandboxError: it can't be.
    """
    for thread in (pid, *_other_threads(pid)):
        try:
            found, status = os.waitpid(thread, os.WNOHANG | _WALL)
        except ChildProcessError:
            if thread == pid:
                raise
            continue  # nobody's to trace
        if found and os.WIFSTOPPED(status):
            _let_go(thread, os.WSTOPSIG(status))
        elif found == pid:
            return status
    return None


def _other_threads(pid: int) -> list[int]:
    try:
        return [thread for thread in map(int, os.listdir(f"/proc/{pid}/task")) if thread != pid]
    except FileNotFoundError:  # it has been collected
        return []


def _let_go(thread: int, number: int) -> None:
    """Trace a stopped thread no more, and have it get the signal that it was stopped for."""
    # An execve(2) of a traced one stops it by a SIGTRAP that it would not have got.
    number = 0 if number == signal.SIGTRAP else number
    try:
        libc.syscall("let go of a traced process", "ptrace", _PTRACE_DETACH, thread, 0, number, path="PTRACE_DETACH")
    except SandboxError as error:
        if error.errno != errno.ESRCH:  # it has been killed meanwhile
            raise


def wait_for(pid: int, patience_sec: float | None, *, while_alive: int | None = None) -> int | None:
    """Wait for the end of a child, and collect it: return its wait status; None if it did not come.

    :param patience_sec: not longer than so many seconds; None for as long as it takes.
    :param while_alive: not longer than this process lives, by its pidfd.
    """
    end = math.inf if patience_sec is None else time.monotonic() + patience_sec
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if while_alive is not None:
            poll.register(while_alive, select.POLLIN)
        while True:
            left = min(_LOOK_SEC, max(0.0, end - time.monotonic()))
            ready = {descriptor for descriptor, _ in poll.poll(left * 1e3)}
            status = collect(pid)
            if status is not None or while_alive in ready or time.monotonic() >= end:
                return status
            if pidfd in ready:  # somebody traces it, who has to end first
                poll.unregister(pidfd)
    finally:
        os.close(pidfd)


def end(pid: int) -> int:
    """Kill a child and return its wait status (wait(2))."""
    os.kill(pid, signal.SIGKILL)
    status = wait_for(pid, None)
    assert status is not None
    return status
