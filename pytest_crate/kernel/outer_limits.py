"""The limits of the control groups around a run's: what is asked for beyond them can't be had."""

from __future__ import annotations

import dataclasses
import os.path
from collections.abc import Callable, Iterator, Mapping

from pytest_crate.errors import SandboxError
from pytest_crate.kernel.cgroupfs import MissingLimit, read_text
from pytest_crate.spec import CPU_PERIOD_USEC, CrateSpec, format_size


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OuterLimit:
    """The smallest limit of a kind.

    :ivar value: in bytes, microseconds of CPU time per :data:`~pytest_crate.spec.CPU_PERIOD_USEC`, or tasks.
    :ivar path: of the file that says so.
    """

    value: int
    path: str


# The files of each version, by the spec's key; for CPU time v1 has two.
_V1 = {"memory": "memory.limit_in_bytes", "cpus": "cpu.cfs_quota_us", "pids": "pids.max"}
_V2 = {"memory": "memory.max", "cpus": "cpu.max", "pids": "pids.max"}


def outer_limits(directories: Mapping[str, str], *, version: int) -> dict[str, OuterLimit]:
    """Read the limits of control groups and those above, as far as they are to be seen.

    :param directories: the control group for each key of a spec: memory, cpus, pids.
    :returns: the smallest of each kind; none where there is no limit.
    """
    names = _V1 if version == 1 else _V2
    found: dict[str, OuterLimit] = {}
    for key, directory in directories.items():
        for group in _upwards(directory):
            value = _value(key, f"{group}/{names[key]}")
            if value is not None and (key not in found or value < found[key].value):
                found[key] = OuterLimit(value=value, path=f"{group}/{names[key]}")
    return found


def _upwards(directory: str) -> Iterator[str]:
    while os.path.exists(f"{directory}/cgroup.procs"):
        yield directory
        directory = os.path.dirname(directory)


def _value(key: str, path: str) -> int | None:
    try:
        words = (read_text(path) or "").split()
        if key == "cpus" and words and words[0] not in ("max", "-1"):
            period = words[1] if len(words) > 1 else read_text(f"{os.path.dirname(path)}/cpu.cfs_period_us")
            return int(words[0]) * CPU_PERIOD_USEC // int(period or CPU_PERIOD_USEC)
        # v1 says "no limit" by the largest number of whole pages.
        return int(words[0]) if words and words[0] not in ("max", "-1") and int(words[0]) < 1 << 62 else None
    except (SandboxError, ValueError):  # hidden from us, or not understood: then it stops nobody in advance
        return None


_ASKED: Mapping[str, Callable[[CrateSpec], int | None]] = {
    "memory": lambda spec: spec.memory_bytes,
    "cpus": lambda spec: spec.cpu_quota_usec,
    "pids": lambda spec: spec.pids,
}


def beyond(spec: CrateSpec, outer: Mapping[str, OuterLimit], wanted: tuple[str, ...]) -> list[MissingLimit]:
    """Return the limits of a spec that are larger than one around them.

    :param wanted: the keys of the limits that the spec must have.
    """
    found: list[MissingLimit] = []
    for key, limit in outer.items():
        asked = _ASKED[key](spec)
        if key in wanted and asked is not None and asked > limit.value:
            reason = f"{_text(key, asked)} is asked for, and {limit.path} around it allows {_text(key, limit.value)}"
            found.append(MissingLimit(key=key, reason=reason, hint="ask for less, or raise the outer limit"))
    return found


def _text(key: str, value: int) -> str:
    if key == "memory":
        return format_size(value)
    return f"{value / CPU_PERIOD_USEC:g} CPUs" if key == "cpus" else f"{value} tasks"
