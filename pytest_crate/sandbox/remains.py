"""What is left of crates that have been removed: processes that have yet to end, control groups that have yet to go."""

from __future__ import annotations

import contextlib
import os
import signal

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import cgroup, processes


class Remains:
    """Those of one launcher. Nobody waits for them but its end."""

    def __init__(self) -> None:
        self._ending: set[int] = set()
        self._groups: list[cgroup.Cgroup] = []

    def end(self, pid: int) -> None:
        """Have a child of ours end, the next time that they are collected."""
        self._ending.add(pid)

    def collect(self) -> None:
        """Kill those that shall end, and collect those that have ended."""
        for pid in list(self._ending):
            os.kill(pid, signal.SIGKILL)
            if os.waitpid(pid, os.WNOHANG)[0]:
                self._ending.discard(pid)

    def remove(self, group: cgroup.Cgroup) -> None:
        """Remove a control group, now or with the next crate's."""
        try:
            group.remove()
        except SandboxError:
            self._groups.append(group)

    def remove_again(self) -> None:
        """Remove the control groups that could not be removed before."""
        for group in self._groups[:]:
            with contextlib.suppress(SandboxError):
                group.remove()
                self._groups.remove(group)

    def wait(self, patience_sec: float) -> None:
        """Wait for those that shall end, not longer than so many seconds for each."""
        for pid in self._ending:
            processes.wait_for(pid, patience_sec)
        self._ending.clear()
