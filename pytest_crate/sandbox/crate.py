"""A crate as the launcher holds it."""

from __future__ import annotations

import dataclasses
import os
import signal
import time

from pytest_crate.kernel import cgroup, namespaces, processes
from pytest_crate.sandbox import child


@dataclasses.dataclass(kw_only=True)
class Crate:
    """A crate whose root is ready.

    :ivar init: the pid of its init.
    :ivar root: descriptor of its root.
    :ivar entry: how a payload enters it.
    :ivar deadline: when it is killed, of the monotonic clock; None for never.
    :ivar given_up_at: when its end is no longer waited for, of the monotonic clock; None before it is killed.
    :ivar ended: everything in it has been killed, init has been waited for.
    :ivar stuck: it has been killed, and has not ended in the time that it had; that has been told.
    :ivar programs: the pids of those that were started in it, and have not been collected yet.
    """

    cgroup: cgroup.Cgroup
    init: int
    handles: namespaces.NamespaceHandles
    root: int
    entry: child.Entry
    deadline: float | None = None
    timed_out: bool = False
    given_up_at: float | None = None
    ended: bool = False
    stuck: bool = False
    programs: set[int] = dataclasses.field(default_factory=set)

    def kill(self) -> None:
        """Kill everything in it that lives; it must not have ended."""
        os.kill(self.init, signal.SIGKILL)
        if self.given_up_at is None:
            self.given_up_at = time.monotonic() + processes.KILL_SECONDS

    def release(self) -> None:
        """Close the descriptors that keep the crate's namespaces and mounts alive."""
        self.handles.close()
        os.close(self.root)
