"""Whether a process has ended, and waiting until it has."""

from __future__ import annotations

import os
import select
import signal

from pytest_crate.kernel import libc


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


def wait_for(pid: int, patience_sec: float | None, *, while_alive: int | None = None) -> bool:
    """Wait for the end of a child; return whether it came.

    :param patience_sec: not longer than so many seconds; None for as long as it takes.
    :param while_alive: with such patience, not longer than this process lives, by its pidfd.
    """
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if patience_sec is None and while_alive is not None:
            poll.register(while_alive, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(None if patience_sec is None else patience_sec * 1e3)}
        if pidfd in ready:
            os.waitpid(pid, 0)
        return pidfd in ready
    finally:
        os.close(pidfd)


def end(pid: int) -> int:
    """Kill a child and return its wait status (wait(2))."""
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]
