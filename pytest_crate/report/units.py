"""Durations, sizes and counts in words; what is unknown is ``-``."""

from __future__ import annotations

from pytest_crate.spec import CPU_PERIOD_USEC, format_size

UNKNOWN = "-"


def duration(usec: int | None) -> str:
    """Return a measured time in three digits or so: ``350 us``, ``12 ms``, ``1.23 s``, ``2:05 min``, ``1:02:05 h``.

    :param usec: microseconds; None if unknown.
    """
    if usec is None:
        return UNKNOWN
    if 0 < usec < 1_000:
        return f"{usec} us"
    # Each step looks at the rounded number, so that 999.9 ms is "1.00 s" and never "1000 ms".
    if (msec := round(usec / 1_000)) < 1_000:
        return f"{msec} ms"
    seconds = usec / 1_000_000
    if round(seconds, 2) < 10:
        return f"{seconds:.2f} s"
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02} min"
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02} h"


def time_limit(usec: int | None) -> str:
    """Return a time limit in exact seconds, as the user wrote it: ``90 s``, ``0.5 s``; ``-`` for none."""
    if usec is None:
        return UNKNOWN
    return f"{usec / 1_000_000:.6f}".rstrip("0").rstrip(".") + " s"


def size(size_bytes: int | None) -> str:
    """Return a size with a binary unit, such as ``50.2 MiB``.

    :param size_bytes: bytes; None if unknown.
    """
    return UNKNOWN if size_bytes is None else format_size(size_bytes)


def number(value: int | None) -> str:
    """Return a whole number, or ``-`` for None."""
    return UNKNOWN if value is None else str(value)


def cpu_limit(quota_usec: int) -> str:
    """Return a CPU limit in CPUs: ``0.5 CPUs``, ``1 CPU``.

    :param quota_usec: CPU time per :data:`~pytest_crate.spec.CPU_PERIOD_USEC`.
    """
    cpus = f"{quota_usec / CPU_PERIOD_USEC:.5f}".rstrip("0").rstrip(".")
    return f"{cpus} CPU" if cpus == "1" else f"{cpus} CPUs"


def count(amount: int, singular: str, plural: str = "") -> str:
    """Return an amount of things: ``1 crate``, ``3 crates``, ``2 processes``."""
    return f"{amount} {singular if amount == 1 else plural or singular + 's'}"


def percent(part: int, whole: int) -> str:
    """Return a share rounded down, so that ``100%`` means all of it; 0 of 0 is all."""
    return f"{part * 100 // whole if whole else 100}%"
