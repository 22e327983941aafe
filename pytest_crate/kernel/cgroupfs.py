"""The files of a control group: counters read, directories made and removed, processes found and killed."""

from __future__ import annotations

import dataclasses
import errno
import os
import select
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import libc, monotonic
from pytest_crate.spec import DEFAULT_PIDS, CrateSpec, parse_cpuset

LIMIT_KEYS = ("memory", "swap", "cpus", "cpuset", "pids")
"""The spec's keys that a control group enforces."""

SYSTEMD_RUN = "systemd-run --user --scope -p Delegate=yes pytest"
"""The command that gives an ordinary user a control group of their own, where systemd runs."""

PATIENCE_SEC = 10.0
"""How long a killed process may take to leave its control group before that is an error."""

# A file that isn't there: an older kernel or a controller that is off (ENOENT), a control group removed while
# its file was open (ENODEV), pressure stall information switched off at boot (EOPNOTSUPP).
_ABSENT = (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MissingLimit:
    """A limit of a spec that can't be enforced here.

    :ivar key: the spec's key, one of :data:`LIMIT_KEYS`.
    :ivar reason: why, in words.
    :ivar hint: a command or setting that mends it; empty if there is none.
    """

    key: str
    reason: str
    hint: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why the kernel, or whoever set the host up, does not let us use a control group.

    :ivar hint: a command or setting that mends it; empty if there is none.
    """

    reason: str
    hint: str = ""

    def missing(self, key: str) -> MissingLimit:
        """Return the missing limit that follows from it."""
        return MissingLimit(key=key, reason=self.reason, hint=self.hint)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """How often a crate has met its limits so far; None where the kernel does not say.

    :ivar oom_kills: processes that the kernel's OOM killer ended.
    :ivar pids_max: forks refused because of the limit on tasks.
    """

    oom_kills: int | None = None
    pids_max: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLevels:
    """The memory that is charged to a crate at one moment; None where the kernel does not say.

    :ivar anon_bytes: of its processes' own.
    :ivar file_bytes: page cache, shared memory in it.
    :ivar shmem_bytes: shared memory, and files on a tmpfs.
    """

    anon_bytes: int | None = None
    file_bytes: int | None = None
    shmem_bytes: int | None = None


def wanted_limits(spec: CrateSpec) -> tuple[str, ...]:
    """Return the keys of the limits that a spec must have, in the order of :data:`LIMIT_KEYS`.

    A memory limit wants a swap limit: it doesn't bite where pages can go to swap instead. The built-in
    default for ``pids`` is enforced where it can be, but wanted only by who set it.
    """
    wanted = {
        "memory": spec.memory_bytes is not None,
        "swap": spec.memory_bytes is not None,
        "cpus": spec.cpu_quota_usec is not None,
        "cpuset": bool(spec.cpuset),
        "pids": spec.pids is not None and ("pids" in spec.asked or spec.pids != DEFAULT_PIDS),
    }
    return tuple(key for key in LIMIT_KEYS if wanted[key])


def missing_limits(
    spec: CrateSpec, *, limits: frozenset[str], refusals: Mapping[str, Refusal], available_cpus: Iterable[int]
) -> tuple[MissingLimit, ...]:
    """Return the wanted limits of a spec that can't be enforced, each with its reason.

    :param limits: the keys that can be enforced.
    :param refusals: why the others can't, by key; a key without one is not missing: it needs no enforcing.
    :param available_cpus: numbers of the CPUs that a cpuset may be made of.
    """
    missing = [refusals[key].missing(key) for key in wanted_limits(spec) if key not in limits and key in refusals]
    absent = sorted(set(spec.cpuset) - set(available_cpus))
    if "cpuset" in limits and absent:
        # v1 refuses such a set (ERANGE or EACCES); v2 takes it and quietly uses what is left of it.
        cpus = ", ".join(map(str, absent))
        missing.append(MissingLimit(key="cpuset", reason=f"CPU {cpus} is not among those that we may use"))
    return tuple(missing)


def swap_exists(proc_root: str) -> bool:
    """Tell whether the host has any swap space (/proc/swaps: a heading, then a line for each area)."""
    return len((read_text(f"{proc_root}/swaps") or "").splitlines()) > 1


def read_text(path: str) -> str | None:
    """Return what a file of the kernel's says, or None where there is no such file.

    :raises SandboxError: it can't be read for another reason.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            # A mount point's name, a control group's or a process's may be of any bytes.
            return (file.readall() or b"").decode(errors="surrogateescape")
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise SandboxError("read a kernel file", syscall="read", path=path, errno=error.errno) from error


def malformed(path: str, text: str) -> SandboxError:
    """Return the error for a kernel file that says something else than its documentation promises."""
    return SandboxError("read a counter", syscall="read", path=path, detail=f"not understood: {text[:80]!r}")


def read_number(path: str) -> int | None:
    """Return the whole number that a file holds, or None where there is no such file.

    :raises SandboxError: it holds something else.
    """
    text = read_text(path)
    return None if text is None else _number(text, path)


def _number(text: str, path: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise malformed(path, text) from None


def is_full_of_tasks(directory: str) -> bool:
    """Tell whether a control group has as many tasks as its own limit allows (pids.rst).

    :raises SandboxError: its files hold what is no number.
    """
    path = f"{directory}/pids.max"
    most, tasks = read_text(path), read_number(f"{directory}/pids.current")
    return most is not None and most.strip() != "max" and tasks is not None and tasks >= _number(most, path)


def read_table(path: str) -> dict[str, int]:
    """Return a file of ``name number`` lines by name; empty where there is no such file.

    :raises SandboxError: a line has another form.
    """
    text = read_text(path) or ""
    table: dict[str, int] = {}
    for line in text.splitlines():
        name, _, number = line.partition(" ")
        try:
            table[name] = int(number)
        except ValueError:
            raise malformed(path, text) from None
    return table


def read_cpus(path: str) -> tuple[int, ...]:
    """Return the CPU numbers that a cpuset file lists; none where it is empty or missing.

    :raises SandboxError: it is no such list.
    """
    text = (read_text(path) or "").strip()
    try:
        return parse_cpuset(text) if text else ()
    except ValueError:
        raise malformed(path, text) from None


def make_directory(path: str, *, exist_ok: bool = False) -> None:
    """Make a control group.

    :raises SandboxError: the kernel refused it, or it exists and may not.
    """
    try:
        os.mkdir(path)
    except OSError as error:
        if not (exist_ok and error.errno == errno.EEXIST):
            raise SandboxError("create a cgroup", syscall="mkdir", path=path, errno=error.errno) from error


def make_leaf(path: str) -> None:
    """Make a crate's control group in the run's directory.

    :raises SandboxError: the kernel refused it; the run's directory may have been removed by somebody.
    """
    try:
        make_directory(path)
    except SandboxError as error:
        if error.errno == errno.ENOENT:
            gone = f"somebody has removed the run's own, {os.path.dirname(path)}; run pytest again"
            raise SandboxError(error.step, syscall="mkdir", path=path, errno=errno.ENOENT, detail=gone) from error
        raise


def subgroups(directory: str) -> list[str] | None:
    """Return the paths of the control groups directly below one; None if it isn't there.

    :raises SandboxError: it can't be listed.
    """
    try:
        with os.scandir(directory) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise SandboxError("list a cgroup", syscall="readdir", path=directory, errno=error.errno) from error


def _descend(directory: str) -> Iterator[str]:
    """Yield the control groups below a directory, then the directory: deepest first."""
    children = subgroups(directory)
    if children is None:
        return
    for child in children:
        yield from _descend(child)
    yield directory


def processes(directories: Iterable[str]) -> tuple[int, ...]:
    """Return the processes in control groups and below them, by ascending pid; empty where they are gone.

    Processes of a pid namespace that we can't see into are left out: cgroup v2 lists them as 0, which
    kill(2) would take for our own process group.
    """
    pids: set[int] = set()
    for directory in directories:
        for path in _descend(directory):
            pids.update(map(int, (read_text(f"{path}/cgroup.procs") or "").split()))
    return tuple(sorted(pid for pid in pids if pid > 0))


def _wait_for_exit(pids: Iterable[int], deadline: float) -> None:
    """Wait until each process has ended (pidfd_open(2): a pidfd is readable then), or the deadline is past."""
    with ExitStack() as descriptors:
        for pid in pids:
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            except OSError as error:
                raise SandboxError(
                    "wait for a process", syscall="pidfd_open", path=str(pid), errno=error.errno
                ) from error
            descriptors.callback(os.close, descriptor)
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.poll(_milliseconds_until(deadline))


def _milliseconds_until(deadline: float) -> float:
    return max(0.0, deadline - monotonic.seconds()) * 1000


def kill_processes(directories: Iterable[str], *, patience_sec: float = PATIENCE_SEC) -> None:
    """SIGKILL what is in control groups until nothing is left: a fork between reading and killing is met next time.

    A pid that ends in between isn't another process yet: the kernel hands pids out in a cycle.

    :raises SandboxError: processes are left when the time is up, as one in uninterruptible sleep is.
    """
    directories = tuple(directories)
    deadline = monotonic.seconds() + patience_sec
    while pids := processes(directories):
        if monotonic.seconds() > deadline:
            raise SandboxError(
                "kill the processes of a cgroup",
                syscall="kill",
                path=directories[0],
                detail=f"after {patience_sec:g} s there are still pids {', '.join(map(str, pids))}",
            )
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            except OSError as error:
                raise SandboxError("kill a process", syscall="kill", path=str(pid), errno=error.errno) from error
        _wait_for_exit(pids, deadline)


def wait_unpopulated(directory: str, *, patience_sec: float = PATIENCE_SEC) -> None:
    """Wait until a v2 control group and all below it have no process (``populated`` of cgroup.events(7)).

    :raises SandboxError: it has one when the time is up.
    """
    deadline = monotonic.seconds() + patience_sec
    path = f"{directory}/cgroup.events"
    while read_table(path).get("populated", 0):
        if monotonic.seconds() > deadline:
            raise SandboxError(
                "wait for a cgroup to be empty",
                syscall="poll",
                path=path,
                detail=f"after {patience_sec:g} s there are still pids {', '.join(map(str, processes([directory])))}",
            )
        _wait_for_event(path, deadline)


def _wait_for_event(path: str, deadline: float) -> None:
    """Wait for cgroup.events to change, unless ``populated`` is 0 or the directory gone already."""
    # POLLPRI tells of changes since the descriptor's last read, so read and poll the same one.
    with suppress(FileNotFoundError), open(path, "rb", buffering=0) as file:
        try:
            text = file.read(4096) or b""
        except OSError as error:
            if error.errno in _ABSENT:
                return
            raise
        if b"populated 1" in text:
            poll = select.poll()
            poll.register(file, select.POLLPRI)
            poll.poll(_milliseconds_until(deadline))


def remove_directory(directory: str, *, patience_sec: float = PATIENCE_SEC) -> None:
    """Remove a control group and those below it; one that is gone is fine. It waits for a dying process to leave.

    :raises SandboxError: a process is in it when the time is up.
    """
    try:
        os.rmdir(directory)
        return
    except FileNotFoundError:
        return
    except OSError as error:
        # EBUSY: a process or another control group is in it; a directory that is no control group says ENOTEMPTY.
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise SandboxError("remove a cgroup", syscall="rmdir", path=directory, errno=error.errno) from error
    deadline = monotonic.seconds() + patience_sec
    for path in _descend(directory):
        _remove_empty(path, deadline)


def _remove_empty(path: str, deadline: float) -> None:
    while True:
        try:
            os.rmdir(path)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            pids = processes([path])
            if error.errno != errno.EBUSY or monotonic.seconds() > deadline:
                inside = f"pids {', '.join(map(str, pids))} are in it" if pids else ""
                raise SandboxError(
                    "remove a cgroup", syscall="rmdir", path=path, errno=error.errno, detail=inside
                ) from error
        if pids:
            _wait_for_exit(pids, deadline)
        else:
            # A task that is no longer listed has yet to be unlinked. v1 tells nobody when that has happened, so
            # look again in a millisecond, until the deadline.
            select.poll().poll(1)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The process that a run directory belongs to, as the directory's name carries it.

    :ivar start_ticks: when it started, in clock ticks since boot (proc_pid_stat(5), field 22): a pid alone
        is used again.
    :ivar pid_namespace: inode of the pid namespace that the pid is of: in another one it means nothing.
    """

    pid: int
    start_ticks: int
    pid_namespace: int

    def __str__(self) -> str:
        return f"{_PREFIX}{self.pid}-{self.start_ticks}-{self.pid_namespace}"

    @classmethod
    def from_name(cls, name: str) -> Owner | None:
        """Return the owner that the name of a run directory carries, or None if it is not one."""
        parts = name.removeprefix(_PREFIX).split("-")
        if not name.startswith(_PREFIX) or len(parts) != 3 or not all(part.isdecimal() for part in parts):
            return None
        pid, start_ticks, pid_namespace = map(int, parts)
        return cls(pid=pid, start_ticks=start_ticks, pid_namespace=pid_namespace)

    @classmethod
    def of_process(cls, pid: int, *, proc_root: str = "/proc") -> Owner | None:
        """Return the owner that a process is, or None if there is no such process, or it has ended and is a zombie.

        :raises SandboxError: procfs can't be read.
        """
        try:
            stat = read_text(f"{proc_root}/{pid}/stat")
        except SandboxError as error:
            if error.errno == errno.ESRCH:  # it ended between open and read
                return None
            raise
        if stat is None:
            return None
        # The command's name is in parentheses and may itself hold spaces and parentheses.
        fields = stat[stat.rindex(")") + 2 :].split()
        # A container whose pid 1 reaps nobody keeps them for ever.
        if fields[0] in ("Z", "X"):
            return None
        with libc.os_step("find the pid namespace", "stat", f"{proc_root}/self/ns/pid"):
            pid_namespace = os.stat(f"{proc_root}/self/ns/pid").st_ino
        return cls(pid=pid, start_ticks=int(fields[19]), pid_namespace=pid_namespace)


_PREFIX = "pytest-crate-"


def remove_stale(directories: Iterable[str], *, proc_root: str = "/proc", patience_sec: float = 2.0) -> tuple[str, ...]:
    """Remove run directories that a killed run left behind, and kill what still runs in them.

    One is stale if its owner is of our pid namespace and has ended. What can't be removed (another user's, or
    a process in uninterruptible sleep) is left for the next start: it must not stop this one.

    :param directories: where run directories may be.
    :returns: the paths removed.
    """
    here = Owner.of_process(os.getpid(), proc_root=proc_root)
    removed: list[str] = []
    for directory in directories:
        try:
            names = sorted(os.listdir(directory))
        except OSError:
            continue
        for name in names:
            owner = Owner.from_name(name)
            if owner is None or here is None or owner.pid_namespace != here.pid_namespace:
                continue
            path = f"{directory}/{name}"
            try:
                if Owner.of_process(owner.pid, proc_root=proc_root) == owner:
                    continue
                kill_processes([path], patience_sec=patience_sec)
                remove_directory(path, patience_sec=patience_sec)
            except SandboxError:
                continue
            removed.append(path)
    return tuple(removed)


_V1_HINT = "run pytest as root, or boot with systemd.unified_cgroup_hierarchy=1 for cgroup v2"


def explain_refusal(error: SandboxError, *, version: int) -> Refusal:
    """Say why a control group could not be made or set up, and what would mend it.

    :param version: of the hierarchy that refused: 1 or 2.
    """
    path = error.path
    place = os.path.dirname(path)  # the control group: what is refused is a file or a child of it
    reason = f"{error.syscall} {path}: {os.strerror(error.errno)}" if error.errno else str(error)
    if error.errno == errno.EROFS:
        return Refusal(
            reason=f"the cgroup file system is read-only ({place})",
            hint="Podman, cgroup v2: --security-opt unmask=ALL --cgroups=split; Docker, or cgroup v1: --privileged",
        )
    if error.errno == errno.EBUSY and path.endswith("cgroup.subtree_control"):
        return Refusal(
            reason=f"{place} has processes of its own, so its children get no controllers",
            hint="move them into a child cgroup first, or name an empty cgroup as the parent",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        if version == 1:
            return Refusal(reason=f"cgroup v1 is writable for root only ({place})", hint=_V1_HINT)
        return Refusal(
            reason=f"the cgroup is not delegated to this user ({place})",
            hint=SYSTEMD_RUN,
        )
    return Refusal(reason=reason)
