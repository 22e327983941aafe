"""The cgroup hierarchies that are mounted, and where processes are in them."""

from __future__ import annotations

import dataclasses
import os.path
import re
from collections.abc import Iterator, Mapping

from pytest_crate.kernel.cgroupfs import read_text

CONTROLLERS_V1 = ("memory", "cpu", "cpuacct", "pids", "blkio", "cpuset")
"""The controllers of version 1 that a crate uses where their hierarchies are mounted."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CgroupMount:
    """A mounted cgroup hierarchy (proc_pid_mountinfo(5)).

    :ivar version: 1 or 2.
    :ivar root: the control group, as ``/proc/self/cgroup`` would name it, that is seen at the mount point.
    :ivar point: absolute path of the mount point.
    :ivar controllers: those of a v1 hierarchy; empty on v2 and for a named hierarchy.
    """

    version: int
    root: str
    point: str
    controllers: frozenset[str] = frozenset()


def lines_of(text: str) -> list[str]:
    """Return the lines of what the kernel says. Other ends of lines than its own may be in a name, and are no ends."""
    return [line for line in text.split("\n") if line]


def parse_mountinfo(text: str) -> tuple[CgroupMount, ...]:
    """Return the cgroup hierarchies among a process's mounts, in their order.

    :param text: of ``/proc/self/mountinfo``.
    """
    mounts: list[CgroupMount] = []
    for line in lines_of(text):
        before, separator, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if not separator or kind[0] not in ("cgroup", "cgroup2"):
            continue
        version = 2 if kind[0] == "cgroup2" else 1
        controllers = set(kind[2].split(",")) & set(CONTROLLERS_V1) if version == 1 else ()
        mounts.append(
            CgroupMount(
                version=version,
                root=_unescape(fields[3]),
                point=_unescape(fields[4]),
                controllers=frozenset(controllers),
            )
        )
    return tuple(mounts)


def _unescape(path: str) -> str:
    # Space, tab, newline and backslash are written in octal.
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def parse_membership(text: str) -> dict[str, str]:
    """Return the control group that a process is in, by v1 controller; the v2 one has the key ``""``.

    :param text: of ``/proc/self/cgroup`` (cgroups(7)).
    """
    membership: dict[str, str] = {}
    for line in lines_of(text):
        _, controllers, path = line.split(":", 2)
        membership.update(dict.fromkeys(controllers.split(","), path))
    return membership


def locate(mount: CgroupMount, path: str) -> str | None:
    """Return where a control group is in the file system, or None if the mount does not show it.

    A container's mount shows only a part of the hierarchy; its root field says which.

    :param path: the control group's, from :func:`parse_membership`.
    """
    root = mount.root.rstrip("/")
    if path != root and not path.startswith(f"{root}/"):
        return None
    return os.path.normpath(mount.point + path[len(root) :])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Hierarchies:
    """The hierarchies that we see, and where a process is in each.

    :ivar mounts: in the order of mounting.
    :ivar membership: from :func:`parse_membership`.
    """

    mounts: tuple[CgroupMount, ...]
    membership: Mapping[str, str]

    @classmethod
    def of_process(cls, pid: int | str = "self", *, proc_root: str = "/proc") -> Hierarchies:
        """Read where a process is; a process that is gone is nowhere.

        :raises SandboxError: procfs can't be read.
        """
        return cls(
            mounts=parse_mountinfo(read_text(f"{proc_root}/self/mountinfo") or ""),
            membership=parse_membership(read_text(f"{proc_root}/{pid}/cgroup") or ""),
        )

    def directory(self, controller: str = "") -> str | None:
        """Return the process's control group for a controller of v1, or on v2; None if no mount shows it."""
        path = self.membership.get(controller)
        found = (locate(mount, path) for mount in self.mounts_of(controller) if path is not None)
        return next((directory for directory in found if is_cgroup(directory)), None)

    def mounts_of(self, controller: str = "") -> Iterator[CgroupMount]:
        """Yield the mounts that have a controller of v1, or those of v2."""
        for mount in self.mounts:
            if controller in mount.controllers if controller else mount.version == 2:
                yield mount


def is_cgroup(directory: str | None) -> bool:
    """Tell whether a directory is a control group that can be reached: a mount may be covered by a later one."""
    return directory is not None and os.path.exists(f"{directory}/cgroup.procs")
