"""Limits of control groups around a run's, read from fake control groups of both versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_crate.kernel.outer_limits import OuterLimit, beyond, outer_limits
from pytest_crate.spec import CrateSpec

KEYS = ("memory", "cpus", "pids")


def group(directory: Path, **files: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "cgroup.procs").touch()
    for name, text in files.items():
        (directory / name.replace("_", ".", 1)).write_text(f"{text}\n")
    return directory


def test_v2_the_smallest_counts(tmp_path: Path) -> None:
    """Of all the control groups up to the top the smallest limit is found, with its file; "max" is none."""
    top = group(tmp_path / "top", memory_max="max", pids_max="100")
    middle = group(top / "middle", memory_max="1048576", cpu_max="50000 200000", pids_max="max")
    own = group(middle / "own", memory_max="2097152", cpu_max="max 100000", pids_max="300")
    assert outer_limits(dict.fromkeys(KEYS, str(own)), version=2) == {
        "memory": OuterLimit(value=1 << 20, path=f"{middle}/memory.max"),
        "cpus": OuterLimit(value=25_000, path=f"{middle}/cpu.max"),
        "pids": OuterLimit(value=100, path=f"{top}/pids.max"),
    }


def test_v1_says_no_limit_by_large_numbers(tmp_path: Path) -> None:
    """On v1 the hierarchies are apart, no limit is a number near 2**63 or -1, and the period is a file of its own."""
    memory = group(tmp_path / "memory")
    (memory / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    cpu = group(tmp_path / "cpu")
    (cpu / "cpu.cfs_quota_us").write_text("-1\n")
    own = group(cpu / "own")
    (own / "cpu.cfs_quota_us").write_text("30000\n")
    (own / "cpu.cfs_period_us").write_text("50000\n")
    found = outer_limits({"memory": str(memory), "cpus": str(own)}, version=1)
    assert found == {"cpus": OuterLimit(value=60_000, path=f"{own}/cpu.cfs_quota_us")}


@pytest.mark.parametrize("text", ["", "rubbish", "x y"])
def test_not_understood_is_no_limit(tmp_path: Path, text: str) -> None:
    """What can't be read stops nobody in advance: the kernel has the last word."""
    own = group(tmp_path / "own", memory_max=text, cpu_max=text, pids_max=text)
    assert outer_limits(dict.fromkeys(KEYS, str(own)), version=2) == {}


def test_more_than_around_is_missing() -> None:
    """What is asked for beyond the outer limit is missing, with both numbers; as much as that, or less, is not."""
    outer = {
        "memory": OuterLimit(value=64 << 20, path="/c/memory.max"),
        "cpus": OuterLimit(value=20_000, path="/c/cpu.max"),
        "pids": OuterLimit(value=10, path="/c/pids.max"),
    }
    fits = CrateSpec(memory_bytes=64 << 20, cpu_quota_usec=20_000, pids=10)
    assert beyond(fits, outer, KEYS) == []
    more = CrateSpec(memory_bytes=100 << 20, cpu_quota_usec=60_000, pids=11)
    assert [limit.reason for limit in beyond(more, outer, KEYS)] == [
        "100 MiB is asked for, and /c/memory.max around it allows 64 MiB",
        "0.6 CPUs is asked for, and /c/cpu.max around it allows 0.2 CPUs",
        "11 tasks is asked for, and /c/pids.max around it allows 10 tasks",
    ]
    assert beyond(more, outer, ()) == []
