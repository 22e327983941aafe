"""What the doctor makes of the program that it runs in a crate."""

from __future__ import annotations

import pytest

from pytest_crate.sandbox.doctor import fault_of, usage_row
from pytest_crate.sandbox.program import CompletedRun
from pytest_crate.spec import CrateSpec
from pytest_crate.usage import Usage

SPEC = CrateSpec(cpu_quota_usec=20_000, memory_bytes=256 << 20)


def run(
    *,
    returncode: int = 0,
    stdout: str = "crate-doctor",
    cpu: int | None = 60_000,
    wall: int = 210_000,
    throttled: int | None = 0,
) -> CompletedRun:
    return CompletedRun(
        args=("python",),
        returncode=returncode,
        stdout=stdout,
        stderr="",
        usage=Usage(cpu_usage_usec=cpu, wall_usec=wall, cpu_nr_throttled=throttled),
    )


def test_a_crate_as_specified() -> None:
    """60 ms of CPU time in 210 ms are what a fifth of a CPU allows; what isn't known proves nothing."""
    assert fault_of(run(), SPEC) == ""
    assert fault_of(run(cpu=None), SPEC) == ""
    assert fault_of(run(wall=60_000), CrateSpec()) == ""


def test_a_cpu_limit_that_does_not_hold() -> None:
    """60 ms of CPU time in 60 ms are more than two periods of a fifth allow: the limit is not enforced."""
    assert fault_of(run(wall=60_000), SPEC) == (
        "the CPU limit did not hold: 60000 us of CPU time in 60000 us, 40000 us were allowed"
    )
    assert fault_of(run(wall=60_000, throttled=None), SPEC) != ""


def test_a_cpu_limit_that_is_overrun_by_a_tick() -> None:
    """Seen on a host of two busy CPUs: the quota was overrun a little, and the kernel throttled the crate."""
    assert fault_of(run(cpu=63_210, wall=154_938, throttled=1), SPEC) == ""


@pytest.mark.parametrize(
    ("done", "said"),
    [
        (run(returncode=-11), "a program in it ended with -11: "),
        (run(stdout="outside"), "a program in it saw the host name 'outside' instead of 'crate-doctor'"),
    ],
    ids=["signal", "hostname"],
)
def test_a_program_that_fails(done: CompletedRun, said: str) -> None:
    """A program that crashes, or sees the host's name, was in no crate as it should be."""
    assert fault_of(done, SPEC) == said


def test_numbers_that_a_host_does_not_tell() -> None:
    """The row of usage names what a host can't tell, in a sentence, and is then degraded."""
    known = Usage(cpu_usage_usec=1, memory_peak_bytes=1, memory_oom_kills=0, pids_peak=1)
    row = usage_row(known)
    assert (row.status, row.detail) == ("ok", "CPU time, memory peak, OOM kills, peak of tasks")
    row = usage_row(Usage(cpu_usage_usec=1, memory_oom_kills=0))
    assert row.status == "degraded"
    assert row.detail == "this host does not tell: memory peak, peak of tasks; reports show '-' there"


def test_a_run_is_shown_on_a_line() -> None:
    """The repr of a run, which a failed assertion prints, leaves out the two dozen numbers of its usage."""
    assert repr(run()) == (
        "CompletedRun(args=('python',), returncode=0, stdout='crate-doctor', stderr='', exceeded=())"
    )
