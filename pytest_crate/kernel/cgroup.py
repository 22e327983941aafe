"""Where a run's control groups can be made, and what a control group is to the rest of the program."""

from __future__ import annotations

import dataclasses
import os.path
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from pytest_crate.errors import HostError
from pytest_crate.kernel import cgroup_v1, cgroup_v2
from pytest_crate.kernel.cgroupfs import (
    Events,
    MemoryLevels,
    MissingLimit,
    Owner,
    Refusal,
    explain_refusal,
    read_text,
    remove_stale,
    wanted_limits,
)
from pytest_crate.spec import CrateSpec
from pytest_crate.usage import Usage

__all__ = [
    "Cgroup",
    "CgroupMount",
    "CgroupParent",
    "Events",
    "MemoryLevels",
    "MissingLimit",
    "NoCgroups",
    "Owner",
    "Refusal",
    "explain_refusal",
    "find_parent",
    "from_json",
    "locate",
    "parse_membership",
    "parse_mountinfo",
    "remove_stale",
    "run_name",
]


class Cgroup(Protocol):
    """One crate's control group: limits are written before anything enters, usage is read after it is killed."""

    @property
    def directory(self) -> str | None:
        """Absolute path for CLONE_INTO_CGROUP; None if that can't be used."""

    @property
    def enter_files(self) -> tuple[str, ...]:
        """Absolute paths: a single-threaded process that writes ``0`` to each has entered.

        Complete once :meth:`limit` has returned.
        """

    def limit(self, spec: CrateSpec) -> None:
        """Write the limits that a spec has and the host can enforce; before anything enters."""

    def kill(self) -> None:
        """SIGKILL everything inside and wait until it is empty."""

    def pids(self) -> tuple[int, ...]:
        """Return the processes inside."""

    def populated(self) -> bool:
        """Tell whether a process is inside."""

    def known_empty(self) -> bool:
        """Tell whether nothing can be charged to it any more: no task is inside, not even a zombie. Cheap."""

    def events(self) -> Events:
        """Return how often the limits have been met so far; cheap."""

    def levels(self) -> MemoryLevels:
        """Return the memory that is charged now."""

    def usage(self) -> Usage:
        """Return what has been used so far."""

    def to_json(self) -> dict[str, Any]:
        """Return what :func:`from_json` finds it by, in another process."""

    def remove(self) -> None:
        """Remove it; again is fine, and so is one half made."""


class CgroupParent(Protocol):
    """Where the control groups of a run are made."""

    @property
    def version(self) -> int:
        """1 or 2; 0 if there are none."""

    @property
    def how(self) -> str:
        """Where they are, in words for the header: ``own cgroup``, ``configured cgroup`` …"""

    @property
    def limits(self) -> frozenset[str]:
        """The spec's keys that can be enforced, of memory, swap, cpus, cpuset and pids."""

    def missing(self, spec: CrateSpec) -> tuple[MissingLimit, ...]:
        """Return the wanted limits of a spec that can't be enforced, with reason and remedy."""

    def create(self, name: str) -> Cgroup:
        """Make a crate's control group."""

    def remove(self) -> None:
        """Remove the run's directories; again is fine."""


class _NoCgroup:
    """A crate's control group where there are none: it holds nothing and knows nothing."""

    directory = None
    enter_files = ()

    def limit(self, spec: CrateSpec) -> None:
        """Nothing can be limited; :meth:`NoCgroups.missing` has said so."""

    def kill(self) -> None:
        """Nothing is in it: the crate's processes end with its pid namespace."""

    def pids(self) -> tuple[int, ...]:
        return ()

    def populated(self) -> bool:
        return False

    def known_empty(self) -> bool:
        return False

    def events(self) -> Events:
        return Events()

    def levels(self) -> MemoryLevels:
        return MemoryLevels()

    def usage(self) -> Usage:
        return Usage()

    def to_json(self) -> dict[str, Any]:
        return {"version": 0}

    def remove(self) -> None:
        """There is nothing to remove."""


def from_json(data: Mapping[str, Any]) -> Cgroup:
    """Return the control group that :meth:`Cgroup.to_json` described: to be read and entered, not to be limited."""
    match data["version"]:
        case 1:
            return cgroup_v1.CgroupV1(data["directories"], cpuset=None, limits=frozenset())
        case 2:
            return cgroup_v2.CgroupV2(data["directory"], limits=frozenset())
        case _:
            return _NoCgroup()


class NoCgroups:
    """The parent on a host where we may make no control group: every limit is missing, for one reason."""

    version = 0
    how = "no cgroups"
    limits: frozenset[str] = frozenset()

    def __init__(self, refusal: Refusal) -> None:
        """
        :param refusal: that reason.
        """
        self.refusal = refusal

    def missing(self, spec: CrateSpec) -> tuple[MissingLimit, ...]:
        """Return every wanted limit."""
        return tuple(self.refusal.missing(key) for key in wanted_limits(spec))

    def create(self, name: str) -> Cgroup:
        """Return a control group that is none."""
        return _NoCgroup()

    def remove(self) -> None:
        """There is nothing to remove."""


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


def parse_mountinfo(text: str) -> tuple[CgroupMount, ...]:
    """Return the cgroup hierarchies among a process's mounts, in their order.

    :param text: of ``/proc/self/mountinfo``.
    """
    mounts: list[CgroupMount] = []
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if not separator or kind[0] not in ("cgroup", "cgroup2"):
            continue
        version = 2 if kind[0] == "cgroup2" else 1
        controllers = set(kind[2].split(",")) & set(cgroup_v1.CONTROLLERS) if version == 1 else ()
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
    for line in text.splitlines():
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


def run_name(pid: int | None = None, *, proc_root: str = "/proc") -> str:
    """Return a name for a run's directory that tells, after a crash, whether its owner still lives.

    :param pid: of the owner: the process whose end makes the directory stale; our own if None.
    :raises HostError: there is no such process.
    """
    owner = Owner.of_process(os.getpid() if pid is None else pid, proc_root=proc_root)
    if owner is None:
        raise HostError(f"{proc_root} does not show process {pid}", feature="proc")
    return str(owner)


def find_parent(*, run_name: str, configured: str | None = None, proc_root: str = "/proc") -> CgroupParent:
    """Make the directory for a run's control groups in the best place there is.

    That is the configured control group, else our own one, so that limits set around pytest still hold.
    What killed earlier runs left in the same place is removed.

    :param run_name: from :func:`run_name`.
    :param configured: a control group below the mount point, such as ``/ci``, or its path in the file system.
    :raises HostError: the configured control group does not exist.
    """
    mounts = parse_mountinfo(read_text(f"{proc_root}/self/mountinfo") or "")
    membership = parse_membership(read_text(f"{proc_root}/self/cgroup") or "")
    how = "own cgroup" if configured is None else "configured cgroup"

    points = [mount for mount in mounts if mount.version == 1]
    hierarchies = {
        controller: directory
        for controller in cgroup_v1.CONTROLLERS
        if (directory := _parent_directory(points, controller, membership, configured))
    }
    if hierarchies.keys() & {"memory", "cpu", "pids"}:
        blkio = [mount.point for mount in points if "blkio" in mount.controllers]
        made = cgroup_v1.make_parent(
            hierarchies,
            run_name=run_name,
            how=how,
            accounts_io=any(map(cgroup_v1.accounts_io, blkio)),
            proc_root=proc_root,
        )
        return NoCgroups(made) if isinstance(made, Refusal) else made

    points = [mount for mount in mounts if mount.version == 2]
    directory = _parent_directory(points, "", membership, configured)
    # A scope asked of systemd, and a move of our processes into a leaf of it, will be tried before our own cgroup.
    if directory is not None:
        unified = cgroup_v2.make_parent(directory, run_name=run_name, how=how, proc_root=proc_root)
        return NoCgroups(unified) if isinstance(unified, Refusal) else unified
    if configured is not None and mounts:
        raise HostError(
            f"the configured cgroup {configured!r} does not exist",
            feature="cgroup",
            hint=f"sudo mkdir -p {' '.join(_configured_directories(mounts, configured))}",
        )
    return NoCgroups(Refusal(reason="no cgroup file system is mounted that shows our own cgroup"))


def _parent_directory(
    mounts: Iterable[CgroupMount], controller: str, membership: Mapping[str, str], configured: str | None
) -> str | None:
    for mount in mounts:
        if controller and controller not in mount.controllers:
            continue
        if configured is not None:
            directory: str | None = mount.point + _below_mounts(configured, mounts)
        else:
            directory = locate(mount, membership[controller]) if controller in membership else None
        # A mount may be covered by a later one; then its control groups can't be reached.
        if directory is not None and os.path.exists(f"{directory}/cgroup.procs"):
            return directory
    return None


def _configured_directories(mounts: Sequence[CgroupMount], configured: str) -> list[str]:
    """Return the directories that make up a configured control group: on v1 one in the hierarchy of each controller."""
    points = [mount.point for mount in mounts if mount.controllers]
    if not any(mount.controllers & {"memory", "cpu", "pids"} for mount in mounts):
        points = [mount.point for mount in mounts if mount.version == 2] or [mounts[-1].point]
    below = _below_mounts(configured, mounts).lstrip("/")
    return [f"{point}/{below}" for point in dict.fromkeys(points)]


def _below_mounts(configured: str, mounts: Iterable[CgroupMount]) -> str:
    """Return a configured control group as a path below the mount point, with a leading slash."""
    path = os.path.normpath(f"/{configured}".replace("//", "/"))
    for mount in mounts:
        if path == mount.point or path.startswith(f"{mount.point}/"):
            path = path[len(mount.point) :]
            break
    return "" if path in ("", "/") else path
