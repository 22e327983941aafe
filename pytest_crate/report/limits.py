"""Which limits a crate met, came near to, or exceeded."""

from __future__ import annotations

from pytest_crate.report import units
from pytest_crate.result import CrateResult, Limit
from pytest_crate.spec import CrateSpec
from pytest_crate.usage import Usage

NEAR_PERCENT = 90
"""From this share of a limit on, a peak is near it."""


def is_at_memory_limit(usage: Usage, limit_bytes: int | None) -> bool:
    """Return whether memory met its limit and the kernel made room without killing anything.

    The peak saturates at the limit, with page cache above all, so that alone is no sign of trouble.
    """
    if limit_bytes is None or usage.memory_oom_kills:
        return False
    return bool(usage.memory_max_events) or (usage.memory_peak_bytes or 0) >= limit_bytes


def is_throttled(usage: Usage) -> bool:
    """Return whether the CPU limit ever made the crate wait."""
    return bool(usage.cpu_nr_throttled) or bool(usage.cpu_throttled_usec)


def failure_message(limit: Limit, spec: CrateSpec, usage: Usage) -> str:
    """Return one line that says which limit was exceeded: ``memory limit 64 MiB exceeded``.

    Where the spec has no such limit, what was met is not the crate's own, and the line says so.
    """
    if limit == "memory":
        if spec.memory_bytes is None:
            peak = "" if usage.memory_peak_bytes is None else f" at {units.size(usage.memory_peak_bytes)}"
            return f"out of memory{peak}: the crate has no memory limit, the host's memory or a cgroup above it ran out"
        swap = f" with {units.size(spec.swap_bytes)} of swap" if spec.swap_bytes else ""
        return f"memory limit {units.size(spec.memory_bytes)}{swap} exceeded"
    if limit == "pids":
        if spec.pids is None:
            return "pids limit exceeded: the crate has none of its own, it is one of a cgroup above it"
        return f"pids limit {spec.pids} exceeded"
    if spec.timeout_usec is None:
        return f"timeout exceeded after {units.duration(usage.wall_usec)}"
    return f"timeout of {units.time_limit(spec.timeout_usec)} exceeded"


def near_limits(crate: CrateResult, spec: CrateSpec) -> list[str]:
    """Return a line for each limit that the crate came near to without exceeding it; often none."""
    usage = crate.usage
    notes = []
    for limit, used, most, words in (
        ("memory", usage.memory_peak_bytes, spec.memory_bytes, f"memory limit {units.size(spec.memory_bytes)}"),
        ("pids", usage.pids_peak, spec.pids, f"pids limit {spec.pids}"),
        ("timeout", usage.wall_usec, spec.timeout_usec, f"timeout of {units.time_limit(spec.timeout_usec)}"),
    ):
        if limit in crate.exceeded:
            continue
        if limit == "memory" and is_at_memory_limit(usage, spec.memory_bytes):
            notes.append(f"at the {words}: the kernel reclaimed memory, no OOM kill")
        elif used is not None and most is not None and used * 100 >= most * NEAR_PERCENT:
            notes.append(f"near the {words}: {units.percent(used, most)} used")
    return notes
