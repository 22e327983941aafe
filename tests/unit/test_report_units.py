from __future__ import annotations

import pytest

from pytest_crate.report import units


@pytest.mark.parametrize(
    ("usec", "words"),
    [
        (None, "-"),
        (0, "0 ms"),
        (350, "350 us"),
        (12_000, "12 ms"),
        (999_499, "999 ms"),
        (999_900, "1.00 s"),
        (1_234_567, "1.23 s"),
        (9_996_000, "10.0 s"),
        (59_940_000, "59.9 s"),
        (59_960_000, "1:00 min"),
        (125_000_000, "2:05 min"),
        (3_599_600_000, "1:00:00 h"),
        (3_725_000_000, "1:02:05 h"),
    ],
)
def test_durations_are_short_and_carry_when_rounded(usec: int | None, words: str) -> None:
    """A duration has about three digits, never a rounded 1000 ms or 60.0 s, and is - when unknown."""
    assert units.duration(usec) == words


@pytest.mark.parametrize(
    ("usec", "words"), [(10_000_000, "10 s"), (90_000_000, "90 s"), (500_000, "0.5 s"), (1, "0.000001 s"), (None, "-")]
)
def test_time_limits_read_as_the_user_wrote_them(usec: int | None, words: str) -> None:
    """A timeout is given in exact seconds, without rounding or exponents."""
    assert units.time_limit(usec) == words


@pytest.mark.parametrize(
    ("size_bytes", "words"),
    [(None, "-"), (0, "0 B"), (4096, "4 KiB"), (52_638_515, "50.2 MiB"), ((1 << 30) - 4096, "1 GiB")],
)
def test_sizes_carry_into_the_next_unit(size_bytes: int | None, words: str) -> None:
    """A peak a page below 1 GiB is 1 GiB, not 1024 MiB; an unknown size is -, not 0."""
    assert units.size(size_bytes) == words


@pytest.mark.parametrize(("quota_usec", "words"), [(50_000, "0.5 CPUs"), (100_000, "1 CPU"), (1_000, "0.01 CPUs")])
def test_cpu_limits_are_in_cpus(quota_usec: int, words: str) -> None:
    """A quota per 100 ms reads as the number of CPUs that the marker was given."""
    assert units.cpu_limit(quota_usec) == words


@pytest.mark.parametrize(("part", "whole", "words"), [(99, 100, "99%"), (999, 1000, "99%"), (1000, 1000, "100%")])
def test_only_the_whole_is_100_percent(part: int, whole: int, words: str) -> None:
    """Shares are rounded down."""
    assert units.percent(part, whole) == words


def test_counts_agree_in_number() -> None:
    """One thing is singular; a plural that is not regular can be given."""
    assert [units.count(1, "crate"), units.count(0, "crate"), units.count(2, "process", "processes")] == [
        "1 crate",
        "0 crates",
        "2 processes",
    ]
