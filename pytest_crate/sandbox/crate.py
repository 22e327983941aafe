"""A crate as the launcher holds it."""

from __future__ import annotations

import dataclasses
import os

from pytest_crate.kernel import cgroup, namespaces
from pytest_crate.sandbox import child


@dataclasses.dataclass(kw_only=True)
class Crate:
    """A crate whose root is ready.

    :ivar init: the pid of its init.
    :ivar root: descriptor of its root.
    :ivar entry: how a payload enters it.
    :ivar deadline: when it is killed, of the monotonic clock; None for never.
    :ivar ended: everything in it has been killed, init has been waited for.
    :ivar stuck: it has been killed, and has not ended.
    :ivar programs: the pids of those that were started in it, and have not been collected yet.
    """

    cgroup: cgroup.Cgroup
    init: int
    handles: namespaces.NamespaceHandles
    root: int
    entry: child.Entry
    deadline: float | None = None
    timed_out: bool = False
    ended: bool = False
    stuck: bool = False
    programs: set[int] = dataclasses.field(default_factory=set)

    def release(self) -> None:
        """Close the descriptors that keep the crate's namespaces and mounts alive."""
        self.handles.close()
        os.close(self.root)
