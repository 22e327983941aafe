"""Where a run's control groups can be made, and what a control group is to the rest of the program."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from pytest_crate.errors import HostError
from pytest_crate.kernel import cgroup_v1, cgroup_v2, unified
from pytest_crate.kernel.cgroupfs import (
    LIMIT_KEYS,
    Events,
    MemoryLevels,
    MissingLimit,
    Owner,
    Refusal,
    explain_refusal,
    wanted_limits,
)
from pytest_crate.kernel.hierarchies import CONTROLLERS_V1, CgroupMount, Hierarchies, is_cgroup
from pytest_crate.spec import CrateSpec
from pytest_crate.usage import Usage

__all__ = [
    "Cgroup",
    "CgroupOffer",
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

    def full(self) -> bool:
        """Tell whether it has as many tasks as it may; who moves there is let in all the same (pids.rst). Cheap."""

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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CgroupOffer:
    """What a parent can enforce, as data.

    :ivar version: as the parent's; ``how`` and ``limits`` likewise.
    :ivar missing: the limits that it can't enforce for a spec that asks for all of them.
    """

    version: int
    how: str
    limits: frozenset[str]
    missing: tuple[MissingLimit, ...]

    @classmethod
    def of(cls, parent: CgroupParent) -> CgroupOffer:
        """Ask a parent for the smallest limits of all kinds."""
        everything = CrateSpec(
            memory_bytes=1 << 20,
            cpu_quota_usec=1_000,
            pids=1,
            cpuset=(min(os.sched_getaffinity(0)),),
            asked=frozenset(LIMIT_KEYS),
        )
        return cls(version=parent.version, how=parent.how, limits=parent.limits, missing=parent.missing(everything))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CgroupOffer:
        """Rebuild an offer that :meth:`to_json` wrote."""
        return cls(
            version=data["version"],
            how=data["how"],
            limits=frozenset(data["limits"]),
            missing=tuple(MissingLimit(**limit) for limit in data["missing"]),
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as builtins."""
        return {**dataclasses.asdict(self), "limits": sorted(self.limits)}


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

    def full(self) -> bool:
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


def run_name(pid: int | None = None, *, proc_root: str = "/proc") -> str:
    """Return a name for a run's directory that tells, after a crash, whether its owner still lives.

    :param pid: of the owner: the process whose end makes the directory stale; our own if None.
    :raises HostError: there is no such process.
    """
    owner = Owner.of_process(os.getpid() if pid is None else pid, proc_root=proc_root)
    if owner is None:
        raise HostError(f"{proc_root} does not show process {pid}", feature="proc")
    return str(owner)


def find_parent(
    *, run_name: str, configured: str | None = None, entering: Sequence[int] = (), proc_root: str = "/proc"
) -> CgroupParent:
    """Make the directory for a run's control groups in the best place there is.

    That is the configured control group; else our own one, so that limits set around pytest still hold. On v2 that
    must be ours to divide: it is if systemd has delegated it. If not, systemd is asked for a scope; if that can't be
    had, it is tried nevertheless. What killed earlier runs left in the same place is removed.

    :param run_name: from :func:`run_name`.
    :param configured: a control group below the mount point, such as ``/ci``, or its path in the file system.
    :param entering: the processes whose children will enter crates, besides our own.
    :raises HostError: the configured control group does not exist.
    """
    here = Hierarchies.of_process(proc_root=proc_root)
    hierarchies = {
        controller: directory
        for controller in CONTROLLERS_V1
        if (directory := _directory(here, controller, configured))
    }
    if hierarchies.keys() & {"memory", "cpu", "pids"}:
        made = cgroup_v1.make_parent(
            hierarchies,
            run_name=run_name,
            how="own cgroup" if configured is None else "configured cgroup",
            accounts_io=any(cgroup_v1.accounts_io(mount.point) for mount in here.mounts_of("blkio")),
            proc_root=proc_root,
        )
        return NoCgroups(made) if isinstance(made, Refusal) else made

    directory = _directory(here, "", configured)
    if directory is not None:
        places = unified.Places(here, run_name=run_name, entering=entering, proc_root=proc_root)
        found = places.best(directory) if configured is None else places.configured(directory)
        return NoCgroups(found) if isinstance(found, Refusal) else found
    if configured is not None and here.mounts:
        raise HostError(
            f"the configured cgroup {configured!r} does not exist",
            feature="cgroup",
            hint=f"sudo mkdir -p {shlex.join(_configured_directories(here.mounts, configured))}",
        )
    return NoCgroups(Refusal(reason="no cgroup file system is mounted that shows our own cgroup"))


def _directory(here: Hierarchies, controller: str, configured: str | None) -> str | None:
    if configured is None:
        return here.directory(controller)
    below = _below_mounts(configured, here.mounts)
    directories = (f"{mount.point}{below}" for mount in here.mounts_of(controller))
    return next(filter(is_cgroup, directories), None)


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
