"""Usage: what is unknown stays unknown."""

from __future__ import annotations

import dataclasses

import pytest

from pytest_crate.result import CrateResult, Exit
from pytest_crate.usage import Usage


def test_unknown_is_none() -> None:
    """Every field is None until the kernel has told it."""
    assert set(Usage().to_json().values()) == {None}


def test_a_usage_survives_json() -> None:
    """What to_json writes, from_json reads back."""
    usage = Usage(**{field.name: number for number, field in enumerate(dataclasses.fields(Usage))})
    assert Usage.from_json(usage.to_json()) == usage


@pytest.mark.parametrize("data", [{"memory": 1}, {"wall_usec": "1"}, {"wall_usec": 1.5}, {"wall_usec": True}])
def test_a_forged_usage_is_refused(data: dict[str, object]) -> None:
    """Fields that aren't ours, and values that are no whole numbers, are errors."""
    with pytest.raises(ValueError, match="usage"):
        Usage.from_json(data)


def test_counters_are_subtracted_and_levels_are_not() -> None:
    """The use between two readings: counters by difference, levels as they are now."""
    before = Usage(cpu_usage_usec=100, memory_oom_kills=1, memory_anon_bytes=50)
    after = Usage(cpu_usage_usec=350, memory_oom_kills=1, memory_anon_bytes=20)
    between = after.since(before)
    assert (between.cpu_usage_usec, between.memory_oom_kills, between.memory_anon_bytes) == (250, 0, 20)


def test_a_peak_that_did_not_rise_is_unknown() -> None:
    """The kernel keeps one peak: whether a later use came near it, it does not say."""
    before = Usage(memory_peak_bytes=100, pids_peak=3)
    assert Usage(memory_peak_bytes=100, pids_peak=4).since(before).memory_peak_bytes is None
    assert Usage(memory_peak_bytes=100, pids_peak=4).since(before).pids_peak == 4


def test_a_difference_with_something_unknown_is_unknown() -> None:
    """An unknown reading makes an unknown difference, not the whole of the known one."""
    assert Usage(cpu_usage_usec=5).since(Usage()).cpu_usage_usec is None
    assert Usage().since(Usage(cpu_usage_usec=5)).cpu_usage_usec is None


def test_a_counter_never_runs_backwards() -> None:
    """User and system time are scaled by the kernel and may step back a little."""
    assert Usage(cpu_user_usec=9).since(Usage(cpu_user_usec=10)).cpu_user_usec == 0


@pytest.mark.parametrize(
    ("user", "system", "parts"),
    [(30, 70, (20, 30)), (10, 90, (0, 50)), (9, 91, (0, 50)), (60, 40, (50, 0)), (61, 39, (50, 0))],
)
def test_parts_of_cpu_time_are_its_parts(user: int, system: int, parts: tuple[int, int]) -> None:
    """User and system time are the whole together, also where the kernel's split of it steps back."""
    before = Usage(cpu_usage_usec=50, cpu_user_usec=10, cpu_system_usec=40)
    between = Usage(cpu_usage_usec=100, cpu_user_usec=user, cpu_system_usec=system).since(before)
    assert (between.cpu_user_usec, between.cpu_system_usec) == parts


@pytest.mark.parametrize(
    ("status", "exit_", "returncode", "text"),
    [
        (0, Exit(code=0), 0, "exit status 0"),
        (3 << 8, Exit(code=3), 3, "exit status 3"),
        (9, Exit(signal=9), -9, "killed by SIGKILL"),
        (11 | 0x80, Exit(signal=11), -11, "killed by SIGSEGV"),
    ],
)
def test_a_wait_status_is_decoded(status: int, exit_: Exit, returncode: int, text: str) -> None:
    """wait(2)'s word is an exit status or a signal, core dumped or not."""
    decoded = Exit.from_wait_status(status)
    assert (decoded, decoded.returncode, str(decoded)) == (exit_, returncode, text)


def test_an_unknown_exit_is_said_to_be_unknown() -> None:
    """Neither a status nor a signal is a dash, not a zero."""
    assert (str(Exit()), Exit().returncode, Exit().signal_name) == ("-", None, None)


def test_a_result_survives_json() -> None:
    """What to_json writes, from_json reads back."""
    result = CrateResult(name="body", usage=Usage(wall_usec=5), exceeded=("memory", "timeout"), exit=Exit(signal=9))
    assert CrateResult.from_json(result.to_json()) == result
