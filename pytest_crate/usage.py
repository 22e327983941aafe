"""What a crate used, in the kernel's own names and base units."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

# Fields that only ever grow: a difference of two readings is the use between them.
_PEAKS = frozenset({"memory_peak_bytes", "pids_peak"})
_LEVELS = frozenset({"memory_anon_bytes", "memory_file_bytes", "memory_shmem_bytes"})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Resources used by one crate, or by one program in it.

    Each field is None where the kernel could not tell; it is never 0 for that reason.
    Times are in microseconds, sizes in bytes. Names follow the kernel's
    ``Documentation/admin-guide/cgroup-v2.rst`` (``cpu.stat``, ``memory.peak``, ``memory.stat``,
    ``memory.events``, ``pids.peak``, ``io.stat``, ``*.pressure``), on cgroup v1 as well.

    :ivar wall_usec: wall-clock time from entering the crate to the end of its last process.
    :ivar memory_peak_bytes: most memory charged at once: anonymous pages, page cache, shared
        memory, tmpfs files and kernel memory. Under a limit it saturates at the limit.
    :ivar memory_anon_bytes: anonymous memory charged at the last reading: of a body, when it had run and before its
        teardown, or when it was killed; of programs, at the crate's end.
    :ivar memory_file_bytes: page cache charged then.
    :ivar memory_shmem_bytes: shared memory and tmpfs files charged then.
    :ivar memory_oom_kills: processes that the kernel's OOM killer ended in the crate.
    :ivar memory_max_events: times that an allocation met the limit (reclaimed or refused).
    :ivar pids_peak: most tasks alive at once.
    :ivar pids_max_events: forks refused because of the limit on tasks.
    """

    wall_usec: int | None = None
    cpu_usage_usec: int | None = None
    cpu_user_usec: int | None = None
    cpu_system_usec: int | None = None
    cpu_throttled_usec: int | None = None
    cpu_nr_throttled: int | None = None
    memory_peak_bytes: int | None = None
    memory_anon_bytes: int | None = None
    memory_file_bytes: int | None = None
    memory_shmem_bytes: int | None = None
    memory_oom_kills: int | None = None
    memory_max_events: int | None = None
    pids_peak: int | None = None
    pids_max_events: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None
    cpu_pressure_usec: int | None = None
    memory_pressure_usec: int | None = None
    io_pressure_usec: int | None = None

    def to_json(self) -> dict[str, int | None]:
        """Return every field by name, unknown ones as None."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> Usage:
        """Rebuild a usage that :meth:`to_json` wrote.

        :raises ValueError: a field is not one of ours, or is not a whole number.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        values: dict[str, int | None] = {}
        for name, value in data.items():
            if name not in names:
                raise ValueError(f"usage has no field {name!r}")
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise ValueError(f"usage field {name}={value!r} is not a whole number")
            values[name] = value
        return cls(**values)

    def since(self, earlier: Usage) -> Usage:
        """Return what was used between an earlier reading of the same crate and this one.

        Counters are subtracted. Levels are this reading's. A peak is known only if it rose since
        the earlier reading (the kernel keeps one peak for a crate's whole life); else it is None.
        """
        values: dict[str, int | None] = {}
        for field in dataclasses.fields(self):
            now: int | None = getattr(self, field.name)
            before: int | None = getattr(earlier, field.name)
            if field.name in _LEVELS:
                values[field.name] = now
            elif now is None or before is None:
                values[field.name] = None
            elif field.name in _PEAKS:
                values[field.name] = now if now > before else None
            else:
                values[field.name] = max(0, now - before)
        total, system = values["cpu_usage_usec"], values["cpu_system_usec"]
        if total is not None and system is not None and values["cpu_user_usec"] is not None:
            # The kernel scales user and system time to their exact sum: either may step back a little.
            values["cpu_system_usec"] = min(system, total)
            values["cpu_user_usec"] = max(0, total - system)
        return Usage(**values)
