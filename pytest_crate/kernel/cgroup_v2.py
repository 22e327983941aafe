"""Control groups of version 2: one directory for a crate, with all its controllers."""

from __future__ import annotations

import errno
import os.path
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import delegation
from pytest_crate.kernel.cgroupfs import (
    SYSTEMD_RUN,
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
    wait_unpopulated,
    wanted_limits,
)
from pytest_crate.kernel.libc import write_file
from pytest_crate.kernel.outer_limits import beyond, outer_limits
from pytest_crate.spec import CPU_PERIOD_USEC, CrateSpec
from pytest_crate.usage import Usage

CONTROLLERS = ("memory", "cpu", "pids", "cpuset", "io")
"""The controllers that a crate uses where they are available."""

_LIMIT_CONTROLLERS = {"memory": "memory", "cpus": "cpu", "cpuset": "cpuset", "pids": "pids"}


class CgroupV2:
    """One crate's control group.

    :ivar directory: its absolute path, to be opened for CLONE_INTO_CGROUP.
    :ivar enter_files: a process that writes ``0`` there has entered (12 ms; to be born in it takes 0.5).
    """

    def __init__(self, directory: str, *, limits: frozenset[str]) -> None:
        """
        :param limits: the spec's keys that can be enforced.
        """
        self.directory = directory
        self.enter_files = (f"{directory}/cgroup.procs",)
        self._limits = limits

    def limit(self, spec: CrateSpec) -> None:
        """Write the limits that a spec has and this host can enforce; before anything enters.

        :raises SandboxError: the kernel refused one.
        """
        if spec.memory_bytes is not None and "memory" in self._limits:
            self._write("limit memory", "memory.max", str(spec.memory_bytes))
            if "swap" in self._limits:
                self._write("limit swap", "memory.swap.max", str(spec.swap_bytes))
            # The crate ends as a whole. Only here: above its init, the kill would hit init, too.
            self._write("kill as a whole when out of memory", "memory.oom.group", "1")
        if spec.pids is not None and "pids" in self._limits:
            self._write("limit pids", "pids.max", str(spec.pids))
        if spec.cpu_quota_usec is not None and "cpus" in self._limits:
            self._write("limit cpus", "cpu.max", f"{spec.cpu_quota_usec} {CPU_PERIOD_USEC}")
        if spec.cpuset and "cpuset" in self._limits:
            self._write("limit cpuset", "cpuset.cpus", ",".join(map(str, spec.cpuset)))

    def _write(self, step: str, name: str, value: str) -> None:
        write_file(step, f"{self.directory}/{name}", value)

    def kill(self) -> None:
        """SIGKILL everything inside and wait until it is empty.

        :raises SandboxError: it is not, after :data:`~pytest_crate.kernel.cgroupfs.PATIENCE_SEC`.
        """
        if self._write_if_there("kill a cgroup", "cgroup.kill", "1"):
            wait_unpopulated(self.directory)
        else:
            # Before kernel 5.14. Frozen (5.2), nothing can fork ahead of the signals; SIGKILL ends frozen tasks, too.
            self._write_if_there("freeze a cgroup", "cgroup.freeze", "1")
            kill_processes([self.directory])

    def _write_if_there(self, step: str, name: str, value: str) -> bool:
        try:
            self._write(step, name, value)
        except SandboxError as error:
            if error.errno != errno.ENOENT:
                raise
            return False
        return True

    def pids(self) -> tuple[int, ...]:
        """Return the processes inside, as far as our pid namespace shows them."""
        return processes([self.directory])

    def populated(self) -> bool:
        """Tell whether a process is inside, or in a control group below."""
        return bool(read_table(f"{self.directory}/cgroup.events").get("populated", 0))

    def known_empty(self) -> bool:
        """Tell whether no task is inside, or in a control group below."""
        tasks = read_number(f"{self.directory}/pids.current")
        return not self.populated() if tasks is None else tasks == 0

    def full(self) -> bool:
        """Tell whether it has as many tasks as it may."""
        return is_full_of_tasks(self.directory)

    def events(self) -> Events:
        """Return how often the limits have been met so far."""
        return Events(
            oom_kills=read_table(f"{self.directory}/memory.events").get("oom_kill"),
            pids_max=read_table(f"{self.directory}/pids.events").get("max"),
        )

    def levels(self) -> MemoryLevels:
        """Return the memory that is charged now."""
        memory = read_table(f"{self.directory}/memory.stat")
        return MemoryLevels(
            anon_bytes=memory.get("anon"), file_bytes=memory.get("file"), shmem_bytes=memory.get("shmem")
        )

    def to_json(self) -> dict[str, Any]:
        """Return what finds it again."""
        return {"version": 2, "directory": self.directory}

    def usage(self) -> Usage:
        """Return what has been used so far; ``wall_usec`` is unknown here."""
        cpu = read_table(f"{self.directory}/cpu.stat")
        levels = self.levels()
        memory_events = read_table(f"{self.directory}/memory.events")
        read_bytes, write_bytes = self._io_bytes()
        return Usage(
            cpu_usage_usec=cpu.get("usage_usec"),
            cpu_user_usec=cpu.get("user_usec"),
            cpu_system_usec=cpu.get("system_usec"),
            cpu_throttled_usec=cpu.get("throttled_usec"),
            cpu_nr_throttled=cpu.get("nr_throttled"),
            memory_peak_bytes=read_number(f"{self.directory}/memory.peak"),  # kernel 5.19
            memory_anon_bytes=levels.anon_bytes,
            memory_file_bytes=levels.file_bytes,
            memory_shmem_bytes=levels.shmem_bytes,
            memory_oom_kills=memory_events.get("oom_kill"),
            memory_max_events=memory_events.get("max"),
            pids_peak=read_number(f"{self.directory}/pids.peak"),  # kernel 6.1
            pids_max_events=read_table(f"{self.directory}/pids.events").get("max"),
            io_read_bytes=read_bytes,
            io_write_bytes=write_bytes,
            cpu_pressure_usec=self._pressure_usec("cpu"),
            memory_pressure_usec=self._pressure_usec("memory"),
            io_pressure_usec=self._pressure_usec("io"),
        )

    def _io_bytes(self) -> tuple[int | None, int | None]:
        path = f"{self.directory}/io.stat"
        text = read_text(path)
        return (None, None) if text is None else parse_io_stat(path, text)

    def _pressure_usec(self, resource: str) -> int | None:
        path = f"{self.directory}/{resource}.pressure"
        text = read_text(path)
        return None if text is None else parse_pressure(path, text)

    def remove(self) -> None:
        """Remove it; again is fine.

        :raises SandboxError: a process is in it, after :data:`~pytest_crate.kernel.cgroupfs.PATIENCE_SEC`.
        """
        remove_directory(self.directory)


def parse_io_stat(path: str, text: str) -> tuple[int, int]:
    """Return the bytes read and written, from ``8:0 rbytes=4096 wbytes=0 ...`` lines; no line means none.

    :raises SandboxError: a field has another form.
    """
    totals = {"rbytes": 0, "wbytes": 0}
    for line in text.splitlines():
        for field in line.split()[1:]:
            name, _, number = field.partition("=")
            if name in totals:
                if not number.isdecimal():
                    raise malformed(path, line)
                totals[name] += int(number)
    return totals["rbytes"], totals["wbytes"]


def parse_pressure(path: str, text: str) -> int:
    """Return for how many microseconds some task waited, from ``some avg10=0.00 ... total=17``.

    :raises SandboxError: there is no such line.
    """
    for line in text.splitlines():
        if line.startswith("some "):
            _, _, total = line.partition("total=")
            if total.isdecimal():
                return int(total)
    raise malformed(path, text)


class ParentV2:
    """A run's directory, in which the crates' control groups are made.

    :ivar version: 2.
    :ivar how: where it is, in words.
    :ivar limits: the spec's keys that it can enforce.
    """

    version = 2

    def __init__(
        self,
        directory: str,
        *,
        controllers: frozenset[str],
        refusals: Mapping[str, Refusal],
        how: str,
        shared: bool = False,
        proc_root: str = "/proc",
    ) -> None:
        """
        :param controllers: those that control groups in the directory have.
        :param refusals: why they lack the others, by controller.
        :param shared: the control group above had processes before us, or has other runs: the last one puts it back.
        """
        self.how = how
        self._shared = shared
        self._directory = directory
        self._proc_root = proc_root
        enforced = {key for key, controller in _LIMIT_CONTROLLERS.items() if controller in controllers}
        self._refusals = {
            key: refusals.get(controller, Refusal(reason=f"the {controller} controller is not available"))
            for key, controller in _LIMIT_CONTROLLERS.items()
            if key not in enforced
        }
        # A kernel without swap accounting has no such file; it is looked for where children get controllers.
        if "memory" in controllers and read_text(f"{directory}/memory.swap.max") is not None:
            enforced.add("swap")
        elif "memory" in controllers and swap_exists(proc_root):
            self._refusals["swap"] = Refusal(
                reason="there is no memory.swap.max, and the host has swap: a memory limit would not bite",
                hint="boot with swapaccount=1, or: sudo swapoff -a",
            )
        self.limits = frozenset(enforced)
        above = os.path.dirname(directory)
        self._outer = outer_limits(dict.fromkeys(("memory", "cpus", "pids"), above), version=2)

    def missing(self, spec: CrateSpec) -> tuple[MissingLimit, ...]:
        """Return the wanted limits of a spec that can't be enforced, with reason and remedy."""
        cpus = read_cpus(f"{self._directory}/cpuset.cpus.effective")
        lacking = missing_limits(spec, limits=self.limits, refusals=self._refusals, available_cpus=cpus)
        return *lacking, *beyond(spec, self._outer, wanted_limits(spec))

    def create(self, name: str) -> CgroupV2:
        """Make a crate's control group.

        :raises SandboxError: the kernel refused it, or there is one of that name.
        """
        directory = f"{self._directory}/{name}"
        make_leaf(directory)
        return CgroupV2(directory, limits=self.limits)

    def remove(self) -> None:
        """Remove the run's directory and empty ones below it; again is fine.

        And what killed runs have left beside it: at this one's start their processes may have been in the midst of
        ending.

        :raises SandboxError: a process is in one, after :data:`~pytest_crate.kernel.cgroupfs.PATIENCE_SEC`.
        """
        if not self._shared:
            self._remove()
            return
        above = os.path.dirname(self._directory)
        with delegation.held(above):
            self._remove()
            delegation.put_back(above)

    def _remove(self) -> None:
        remove_directory(self._directory)
        remove_stale([os.path.dirname(self._directory)], proc_root=self._proc_root)


def make_parent(
    parent: str,
    *,
    run_name: str,
    how: str,
    entered_from: Sequence[str] = (),
    move: bool = False,
    proc_root: str = "/proc",
) -> ParentV2 | Refusal:
    """Make a run's directory in a control group, with the controllers that can be had there.

    What killed runs left there is cleared away.

    :param entered_from: the control groups of the processes whose children will enter crates.
    :param move: processes that are in the control group may be moved into a leaf of it.
    :returns: a refusal if nothing can be made there.
    """
    directory = f"{parent}/{run_name}"
    try:
        with delegation.held(parent):
            remove_stale([parent], proc_root=proc_root)
            make_directory(directory, exist_ok=True)
            for origin in entered_from:
                if not delegation.may_move(origin, parent):
                    remove_directory(directory)
                    return Refusal(
                        reason=f"nobody but root may move processes from {origin} to {parent}",
                        hint=SYSTEMD_RUN,
                    )
            try:
                return _with_controllers(parent, directory, how=how, move=move, proc_root=proc_root)
            except SandboxError:
                remove_directory(directory)
                raise
    except SandboxError as error:
        return explain_refusal(error, version=2)


def _with_controllers(parent: str, directory: str, *, how: str, move: bool, proc_root: str) -> ParentV2:
    available = (read_text(f"{parent}/cgroup.controllers") or "").split()
    control = f"{parent}/cgroup.subtree_control"
    lacking = {name for name in CONTROLLERS if name in available} - set((read_text(control) or "").split())
    if lacking and delegation.has_processes(parent):
        if not move:
            # Asked for, the kernel would say just this of the memory controller, but turn others into
            # "threaded" ones, and crates into control groups that can't be used (cgroups(7)).
            raise SandboxError("enable controllers", syscall="write", path=control, errno=errno.EBUSY)
        delegation.make_room(parent)
    enabled: set[str] = set()
    refusals: dict[str, Refusal] = {}
    for controller in CONTROLLERS:
        if controller not in available:
            refusals[controller] = _not_delegated(controller)
            continue
        # One at a time: a list is refused as a whole.
        try:
            for group in (parent, directory):
                _enable(group, controller)
        except SandboxError as error:
            refusals[controller] = explain_refusal(error, version=2)
        else:
            enabled.add(controller)
    return ParentV2(
        directory,
        controllers=frozenset(enabled),
        refusals=refusals,
        how=how,
        shared=os.path.isdir(f"{parent}/{delegation.LEAF}"),
        proc_root=proc_root,
    )


def _enable(group: str, controller: str) -> None:
    path = f"{group}/cgroup.subtree_control"
    if controller not in (read_text(path) or "").split():
        write_file(f"enable the {controller} controller", path, f"+{controller}")


def _not_delegated(controller: str) -> Refusal:
    hint = SYSTEMD_RUN
    if controller in ("cpuset", "io"):  # systemd's user@.service delegates neither by default
        hint = "sudo systemctl edit user@.service, with: [Service] Delegate=cpu cpuset io memory pids"
    return Refusal(reason=f"the {controller} controller is not delegated to this cgroup", hint=hint)
