"""Control groups of version 1: a crate has one directory in the hierarchy of each controller."""

from __future__ import annotations

import errno
import os.path
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pytest_crate.errors import SandboxError
from pytest_crate.kernel.cgroupfs import (
    Events,
    MemoryLevels,
    MissingLimit,
    Refusal,
    explain_refusal,
    is_full_of_tasks,
    kill_processes,
    make_directory,
    make_leaf,
    malformed,
    missing_limits,
    processes,
    read_cpus,
    read_number,
    read_table,
    read_text,
    remove_directory,
    remove_stale,
    swap_exists,
    wanted_limits,
)
from pytest_crate.kernel.hierarchies import CONTROLLERS_V1
from pytest_crate.kernel.libc import write_file
from pytest_crate.kernel.outer_limits import beyond, outer_limits
from pytest_crate.spec import CPU_PERIOD_USEC, CrateSpec
from pytest_crate.usage import Usage

# Memory is charged in folios of up to a huge page; one that is refused leaves the peak that much below the limit.
_LARGEST_CHARGE_BYTES = 2 << 20

_BLKIO_BYTES = "blkio.throttle.io_service_bytes_recursive"


class CgroupV1:
    """One crate's control group.

    :ivar directory: None: CLONE_INTO_CGROUP knows only version 2.
    """

    directory = None

    def __init__(self, directories: Mapping[str, str], *, cpuset: str | None, limits: frozenset[str]) -> None:
        """
        :param directories: the crate's directory for each controller; co-mounted controllers share one.
        :param cpuset: where its directory for a cpuset shall be, if a spec asks for one.
        :param limits: the spec's keys that can be enforced.
        """
        self._directories = dict(directories)
        self._cpuset = cpuset
        self._limits = limits

    @property
    def enter_files(self) -> tuple[str, ...]:
        """Absolute paths: a single-threaded process that writes ``0`` to each has entered.

        ``tasks`` moves one thread, all hierarchies in 0.4 ms; ``cgroup.procs`` waits for an RCU grace period: 12 ms.
        """
        return tuple(f"{directory}/tasks" for directory in self._unique())

    def _unique(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._directories.values()))

    def limit(self, spec: CrateSpec) -> None:
        """Write the limits that a spec has and this host can enforce; before anything enters.

        :raises SandboxError: the kernel refused one.
        """
        directories = self._directories
        if spec.memory_bytes is not None and "memory" in self._limits:
            memory = directories["memory"]
            write_file("limit memory", f"{memory}/memory.limit_in_bytes", str(spec.memory_bytes))
            if "swap" in self._limits:
                # Memory plus swap may never be below memory, so it comes second (cgroup-v1/memory.rst, 2.4).
                both = spec.memory_bytes + spec.swap_bytes
                write_file("limit swap", f"{memory}/memory.memsw.limit_in_bytes", str(both))
            self._limit_tcp(memory, spec.memory_bytes)
        if spec.pids is not None and "pids" in self._limits:
            write_file("limit pids", f"{directories['pids']}/pids.max", str(spec.pids))
        if spec.cpu_quota_usec is not None and "cpus" in self._limits:
            self._limit_cpus(directories["cpu"], spec.cpu_quota_usec)
        if spec.cpuset and self._cpuset is not None and "cpuset" in self._limits:
            self._limit_cpuset(self._cpuset, spec.cpuset)

    @staticmethod
    def _limit_tcp(memory: str, most_bytes: int) -> None:
        """Limit what TCP holds of data on its way, which version 1 counts apart (cgroup-v1/memory.rst, 2.7)."""
        path = f"{memory}/memory.kmem.tcp.limit_in_bytes"
        if os.path.exists(path):  # not with cgroup.memory=nosocket
            write_file("limit the memory of TCP", path, str(most_bytes))

    @staticmethod
    def _limit_cpus(directory: str, quota_usec: int) -> None:
        write_file("limit cpus", f"{directory}/cpu.cfs_period_us", str(CPU_PERIOD_USEC))
        try:
            write_file("limit cpus", f"{directory}/cpu.cfs_quota_us", str(quota_usec))
        except SandboxError as error:
            # v1 refuses a quota above an outer cgroup's (kernel/sched/core.c, tg_cfs_schedulable_down). Left
            # without one the crate is held by the outer quota, which is the tighter of the two.
            if error.errno != errno.EINVAL:
                raise

    def _limit_cpuset(self, directory: str, cpus: tuple[int, ...]) -> None:
        make_directory(directory, exist_ok=True)
        self._directories["cpuset"] = directory
        # Nothing can enter while either list is empty (cpusets.rst, 1.4: ENOSPC).
        mems = read_text(f"{os.path.dirname(directory)}/cpuset.mems") or ""
        write_file("limit cpuset", f"{directory}/cpuset.mems", mems.strip())
        write_file("limit cpuset", f"{directory}/cpuset.cpus", ",".join(map(str, cpus)))

    def kill(self) -> None:
        """SIGKILL everything inside and wait until it is empty.

        :raises SandboxError: it is not, after :data:`~pytest_crate.kernel.cgroupfs.PATIENCE_SEC`.
        """
        kill_processes(self._unique())

    def pids(self) -> tuple[int, ...]:
        """Return the processes inside, in any hierarchy."""
        return processes(self._unique())

    def populated(self) -> bool:
        """Tell whether a process is inside."""
        return bool(self.pids())

    def known_empty(self) -> bool:
        """Tell whether no task is inside, or in a control group below, not even a zombie."""
        # Every task enters all hierarchies, and can leave none.
        tasks = self._number("pids", "pids.current")
        return not self.populated() if tasks is None else tasks == 0

    def full(self) -> bool:
        """Tell whether it has as many tasks as it may."""
        directory = self._directories.get("pids")
        return directory is not None and is_full_of_tasks(directory)

    def events(self) -> Events:
        """Return how often the limits have been met so far."""
        return Events(
            oom_kills=self._table("memory", "memory.oom_control").get("oom_kill"),  # kernel 4.13
            pids_max=self._table("pids", "pids.events").get("max"),
        )

    def levels(self) -> MemoryLevels:
        """Return the memory that is charged now; the kernel adds up some of it only now and then."""
        memory = self._table("memory", "memory.stat")
        return MemoryLevels(
            anon_bytes=memory.get("total_rss"),
            file_bytes=memory.get("total_cache"),
            shmem_bytes=memory.get("total_shmem"),
        )

    def to_json(self) -> dict[str, Any]:
        """Return what finds it again."""
        return {"version": 1, "directories": self._directories}

    def usage(self) -> Usage:
        """Return what has been used so far; ``wall_usec`` and pressure are unknown here."""
        cpu_nsec = self._number("cpuacct", "cpuacct.usage")
        user_usec, system_usec = _split_cpu(
            cpu_nsec, self._number("cpuacct", "cpuacct.usage_user"), self._number("cpuacct", "cpuacct.usage_sys")
        )
        cpu = self._table("cpu", "cpu.stat")
        levels = self.levels()
        peak_bytes = self._number("memory", "memory.max_usage_in_bytes")
        read_bytes, write_bytes = self._io_bytes()
        events = self.events()
        return Usage(
            cpu_usage_usec=_usec(cpu_nsec),
            cpu_user_usec=user_usec,
            cpu_system_usec=system_usec,
            cpu_throttled_usec=_usec(cpu.get("throttled_time")),
            cpu_nr_throttled=cpu.get("nr_throttled"),
            memory_peak_bytes=peak_bytes,
            memory_anon_bytes=levels.anon_bytes,
            memory_file_bytes=levels.file_bytes,
            memory_shmem_bytes=levels.shmem_bytes,
            memory_oom_kills=events.oom_kills,
            memory_max_events=self._memory_max_events(peak_bytes),
            pids_peak=self._number("pids", "pids.peak"),  # kernel 6.1
            pids_max_events=events.pids_max,
            io_read_bytes=read_bytes,
            io_write_bytes=write_bytes,
        )

    def remove(self) -> None:
        """Remove it from every hierarchy; again is fine, and so is one half made.

        :raises SandboxError: a process is in it, after :data:`~pytest_crate.kernel.cgroupfs.PATIENCE_SEC`.
        """
        refusals = []
        for directory in self._unique():
            try:
                remove_directory(directory)
            except SandboxError as error:
                refusals.append(error)
        if refusals:
            raise refusals[0]

    def _number(self, controller: str, name: str) -> int | None:
        directory = self._directories.get(controller)
        return None if directory is None else read_number(f"{directory}/{name}")

    def _table(self, controller: str, name: str) -> dict[str, int]:
        directory = self._directories.get(controller)
        return {} if directory is None else read_table(f"{directory}/{name}")

    def _memory_max_events(self, peak_bytes: int | None) -> int | None:
        # An allocation is charged to memory plus swap first, then to memory (mm/memcontrol.c, try_charge_memcg),
        # and counted where it was refused.
        refused = self._number("memory", "memory.failcnt")
        if refused is None:
            return None
        total = refused + (self._number("memory", "memory.memsw.failcnt") or 0)
        limit_bytes = self._number("memory", "memory.limit_in_bytes")
        if total or peak_bytes is None or limit_bytes is None or peak_bytes + _LARGEST_CHARGE_BYTES < limit_bytes:
            return total
        # Kernels with page_counter.track_failcnt (6.18 is one) count refusals of memory, but none of memory plus
        # swap. The limit may have been met, nobody knows how often.
        return None

    def _io_bytes(self) -> tuple[int | None, int | None]:
        if "blkio" not in self._directories:
            return None, None
        path = f"{self._directories['blkio']}/{_BLKIO_BYTES}"
        return parse_blkio(path, read_text(path) or "")


def _usec(nsec: int | None) -> int | None:
    return None if nsec is None else nsec // 1000


def _split_cpu(total_nsec: int | None, user_nsec: int | None, system_nsec: int | None) -> tuple[int | None, int | None]:
    """Return user and system microseconds that add up to the total.

    Most kernels sample user and system time once a tick, and only the total is exact. ``cpu.stat`` of v2 scales the
    samples to the total (kernel/sched/cputime.c, cputime_adjust), so that is done here, too. Without a
    sample the shares are unknown.
    """
    if total_nsec is None or not (user_nsec or system_nsec):
        return None, None
    user_nsec, system_nsec = user_nsec or 0, system_nsec or 0
    total_usec = total_nsec // 1000
    system_usec = total_usec * system_nsec // (user_nsec + system_nsec)
    return total_usec - system_usec, system_usec


def parse_blkio(path: str, text: str) -> tuple[int | None, int | None]:
    """Return the bytes read and written, from ``8:0 Read 4096`` lines.

    Without such a line they are unknown: many kernels keep the file but count nothing (blk-throttle is set up for a
    disk when a limit is first written).

    :raises SandboxError: a line has another form.
    """
    totals = {"Read": 0, "Write": 0}
    counted = False
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 2 and fields[0] == "Total":
            continue
        if len(fields) != 3 or not fields[2].isdecimal():
            raise malformed(path, line)
        counted = True
        if fields[1] in totals:
            totals[fields[1]] += int(fields[2])
    return (totals["Read"], totals["Write"]) if counted else (None, None)


class ParentV1:
    """A run's directories, one in each hierarchy, in which the crates' control groups are made.

    :ivar version: 1.
    :ivar how: where they are, in words.
    :ivar limits: the spec's keys that it can enforce.
    """

    version = 1

    def __init__(
        self,
        *,
        directories: Mapping[str, str],
        refusals: Mapping[str, Refusal],
        how: str,
        proc_root: str = "/proc",
    ) -> None:
        """
        :param directories: the run's directory for each controller.
        :param refusals: why there is none, by controller.
        """
        self.how = how
        self._directories = MappingProxyType(dict(directories))
        self._proc_root = proc_root
        limits: dict[str, str] = {"memory": "memory", "cpus": "cpu", "cpuset": "cpuset", "pids": "pids"}
        enforced = {key for key, controller in limits.items() if controller in directories}
        self._refusals = {
            key: refusals.get(controller, Refusal(reason=f"the {controller} controller of cgroup v1 is not mounted"))
            for key, controller in limits.items()
            if key not in enforced
        }
        if "cpu" in directories and not os.path.exists(f"{directories['cpu']}/cpu.cfs_quota_us"):
            enforced.remove("cpus")
            self._refusals["cpus"] = Refusal(reason="the kernel is built without CONFIG_CFS_BANDWIDTH")
        if "memory" in directories and os.path.exists(f"{directories['memory']}/memory.memsw.limit_in_bytes"):
            enforced.add("swap")
        elif swap_exists(proc_root):
            self._refusals["swap"] = Refusal(
                reason="cgroup v1 has no memory.memsw files, and the host has swap: a memory limit would not bite",
                hint="boot with swapaccount=1, or: sudo swapoff -a",
            )
        self.limits = frozenset(enforced)
        above: dict[str, str] = {
            key: os.path.dirname(directories[limits[key]]) for key in ("memory", "cpus", "pids") if key in enforced
        }
        self._outer = outer_limits(above, version=1)

    def missing(self, spec: CrateSpec) -> tuple[MissingLimit, ...]:
        """Return the wanted limits of a spec that can't be enforced, with reason and remedy."""
        cpuset = self._directories.get("cpuset")
        cpus = read_cpus(f"{cpuset}/cpuset.cpus") if cpuset else ()
        lacking = missing_limits(spec, limits=self.limits, refusals=self._refusals, available_cpus=cpus)
        return *lacking, *beyond(spec, self._outer, wanted_limits(spec))

    def create(self, name: str) -> CgroupV1:
        """Make a crate's control group.

        :raises SandboxError: the kernel refused it, or there is one of that name.
        """
        leaves = {key: f"{path}/{name}" for key, path in self._directories.items() if key != "cpuset"}
        cpuset = self._directories.get("cpuset")
        cgroup = CgroupV1(leaves, cpuset=f"{cpuset}/{name}" if cpuset else None, limits=self.limits)
        made: list[str] = []
        try:
            for directory in dict.fromkeys(leaves.values()):
                make_leaf(directory)
                made.append(directory)
        except SandboxError:
            for directory in made:
                remove_directory(directory)
            raise
        return cgroup

    def remove(self) -> None:
        """Remove the run's directories and empty ones below them; again is fine.

        And what killed runs have left beside them: at this one's start their processes may have been in the midst
        of ending.

        :raises SandboxError: a process is in one, after :data:`~pytest_crate.kernel.cgroupfs.PATIENCE_SEC`.
        """
        directories = tuple(dict.fromkeys(self._directories.values()))
        for directory in directories:
            remove_directory(directory)
        remove_stale(map(os.path.dirname, directories), proc_root=self._proc_root)


def make_parent(
    hierarchies: Mapping[str, str], *, run_name: str, how: str, accounts_io: bool = True, proc_root: str = "/proc"
) -> ParentV1 | Refusal:
    """Make a run's directory in each hierarchy that lets us, and clear away what killed runs left there.

    :param hierarchies: for each controller the control group that becomes the parent.
    :param accounts_io: the kernel counts bytes in the blkio hierarchy; it is left out otherwise.
    :returns: a refusal if no hierarchy lets us.
    """
    remove_stale(dict.fromkeys(hierarchies.values()), proc_root=proc_root)
    directories: dict[str, str] = {}
    refusals: dict[str, Refusal] = {}
    for controller in CONTROLLERS_V1:
        parent = hierarchies.get(controller)
        if parent is None or (controller == "blkio" and not accounts_io):
            continue
        directory = f"{parent}/{run_name}"
        try:
            make_directory(directory, exist_ok=True)
            if controller == "cpuset":
                _fill_cpuset(parent, directory)
        except SandboxError as error:
            if os.path.isdir(directory):  # the kernel's word is "read-only" of one that isn't there, too
                remove_directory(directory)
            refusals[controller] = explain_refusal(error, version=1)
        else:
            directories[controller] = directory
    if not directories:
        return next(iter(refusals.values()))
    return ParentV1(directories=directories, refusals=refusals, how=how, proc_root=proc_root)


def _fill_cpuset(parent: str, directory: str) -> None:
    """Give a new cpuset all of its parent's CPUs and memory nodes: it starts with none."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        value = (read_text(f"{parent}/{name}") or "").strip()
        write_file("fill the run's cpuset", f"{directory}/{name}", value)


def accounts_io(blkio_mount_point: str) -> bool:
    """Tell whether the kernel counts bytes in the blkio hierarchy: since boot the whole host has moved some."""
    path = f"{blkio_mount_point}/{_BLKIO_BYTES}"
    return parse_blkio(path, read_text(path) or "") != (None, None)
