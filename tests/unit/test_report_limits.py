from __future__ import annotations

import pytest

from pytest_crate.report import failure_message, near_limits
from pytest_crate.report.limits import is_at_memory_limit, is_throttled
from pytest_crate.result import CrateResult, Limit
from pytest_crate.spec import CrateSpec
from pytest_crate.usage import Usage

MIB = 1 << 20
SPEC = CrateSpec(memory_bytes=64 * MIB, pids=32, timeout_usec=10_000_000)


@pytest.mark.parametrize(
    ("limit", "spec", "message"),
    [
        ("memory", SPEC, "memory limit 64 MiB exceeded"),
        ("memory", CrateSpec(memory_bytes=64 * MIB, swap_bytes=MIB), "memory limit 64 MiB with 1 MiB of swap exceeded"),
        ("pids", SPEC, "pids limit 32 exceeded"),
        ("timeout", SPEC, "timeout of 10 s exceeded"),
    ],
)
def test_a_limit_is_named_with_its_value(limit: Limit, spec: CrateSpec, message: str) -> None:
    """One line names the limit, as the user wrote it."""
    assert failure_message(limit, spec, Usage()) == message


@pytest.mark.parametrize(
    ("limit", "usage", "message"),
    [
        (
            "memory",
            Usage(memory_peak_bytes=3 * MIB),
            "out of memory at 3 MiB: the crate has no memory limit, the host's memory or a cgroup above it ran out",
        ),
        (
            "memory",
            Usage(),
            "out of memory: the crate has no memory limit, the host's memory or a cgroup above it ran out",
        ),
        ("pids", Usage(), "pids limit exceeded: the crate has none of its own, it is one of a cgroup above it"),
        ("timeout", Usage(wall_usec=3_210_000), "timeout exceeded after 3.21 s"),
    ],
)
def test_a_limit_that_the_spec_lacks_is_not_called_the_crates(limit: Limit, usage: Usage, message: str) -> None:
    """A crate without the limit met another one: the message does not make up a value."""
    assert failure_message(limit, CrateSpec(pids=None), usage) == message


def test_near_limits_are_told_from_exceeded_ones() -> None:
    """From 90 percent on a limit is near; one that was exceeded is not named a second time."""
    usage = Usage(memory_peak_bytes=58 * MIB, pids_peak=29, wall_usec=8_999_999)
    near = ["near the memory limit 64 MiB: 90% used", "near the pids limit 32: 90% used"]
    assert near_limits(CrateResult(name="body", usage=usage), SPEC) == near
    assert near_limits(CrateResult(name="body", usage=usage, exceeded=("pids",)), SPEC) == near[:1]


def test_below_90_percent_or_unknown_nothing_is_near() -> None:
    """A peak below the mark, an unknown one, and a limit that is not set give no line."""
    below = Usage(memory_peak_bytes=57 * MIB, pids_peak=28, wall_usec=8_999_999)
    assert near_limits(CrateResult(name="body", usage=below), SPEC) == []
    assert near_limits(CrateResult(name="body", usage=Usage()), SPEC) == []
    unlimited = CrateSpec(pids=None)
    assert near_limits(CrateResult(name="body", usage=Usage(memory_peak_bytes=1 << 40, pids_peak=9)), unlimited) == []


def test_a_timeout_that_nearly_came_is_told() -> None:
    """A test that ended shortly before its timeout is one to look at."""
    crate = CrateResult(name="body", usage=Usage(wall_usec=9_500_000))
    assert near_limits(crate, SPEC) == ["near the timeout of 10 s: 95% used"]


def test_reclaim_at_the_limit_is_not_an_oom() -> None:
    """A peak at the limit without a kill is page cache reclaimed, and said so."""
    crate = CrateResult(name="body", usage=Usage(memory_peak_bytes=64 * MIB, memory_oom_kills=0))
    assert near_limits(crate, SPEC) == ["at the memory limit 64 MiB: the kernel reclaimed memory, no OOM kill"]


@pytest.mark.parametrize(
    ("usage", "limit_bytes", "at_limit"),
    [
        (Usage(memory_peak_bytes=64), 64, True),
        (Usage(memory_peak_bytes=63), 64, False),
        (Usage(memory_max_events=1), 64, True),
        (Usage(memory_max_events=1, memory_oom_kills=1), 64, False),
        (Usage(memory_max_events=1), None, False),
        (Usage(), 64, False),
    ],
)
def test_at_the_limit_needs_a_limit_and_no_kill(usage: Usage, limit_bytes: int | None, at_limit: bool) -> None:
    """A saturated peak or a counted event puts a crate at its limit, unless something was killed."""
    assert is_at_memory_limit(usage, limit_bytes) is at_limit


def test_throttling_shows_in_either_counter() -> None:
    """Periods or time alone tell of throttling; zeros and unknown numbers don't."""
    usages = [Usage(cpu_nr_throttled=1), Usage(cpu_throttled_usec=1), Usage(cpu_nr_throttled=0), Usage()]
    assert [is_throttled(usage) for usage in usages] == [True, True, False, False]
