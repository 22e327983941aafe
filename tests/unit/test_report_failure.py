from __future__ import annotations

import time
from typing import Any

import pytest

from pytest_crate.report import failure_section
from pytest_crate.report.failure import STACK_LINES, STDERR_BYTES, STDERR_LINES
from pytest_crate.result import CrateResult, Exit
from pytest_crate.spec import CrateSpec, Mount
from pytest_crate.usage import Usage

MIB = 1 << 20


def test_an_oom_kill_shows_limit_use_and_what_was_killed() -> None:
    """The section of an OOM-killed body has the limit, the peak and its parts, the kill, CPU and stderr."""
    spec = CrateSpec(
        memory_bytes=64 * MIB, cpu_quota_usec=50_000, pids=32, timeout_usec=10_000_000, cap_add=("net_admin",)
    )
    usage = Usage(
        wall_usec=1_340_000,
        cpu_usage_usec=1_230_000,
        cpu_user_usec=1_100_000,
        cpu_system_usec=130_000,
        cpu_throttled_usec=340_000,
        cpu_nr_throttled=12,
        memory_peak_bytes=64 * MIB,
        memory_anon_bytes=2 * MIB,
        memory_file_bytes=MIB,
        memory_shmem_bytes=0,
        memory_oom_kills=2,
        pids_peak=3,
    )
    crate = CrateResult(name="body", usage=usage, exceeded=("memory",), exit=Exit(signal=9))
    title, text = failure_section(crate, spec, stderr=b"\x1b[31mmalloc\x1b[0m failed\n")
    assert title == "Crate"
    assert text.splitlines() == [
        "memory limit 64 MiB exceeded",
        "memory    peak 64 MiB of 64 MiB (100%); at the end anon 2 MiB, file 1 MiB",
        "cpu       1.23 s (user 1.10 s, system 130 ms), limit 0.5 CPUs, throttled 12 times for 340 ms",
        "pids      peak 3 of 32",
        "wall      1.34 s of 10 s",
        "killed    2 processes by the kernel's OOM killer",
        "ended     killed by SIGKILL",
        "loosened  cap_add net_admin",
        "stderr:",
        "  malloc failed",
    ]


def test_a_timeout_shows_stacks_and_unknown_numbers_as_dashes() -> None:
    """The section of a crate killed at its timeout shows where it was; what nobody knows is -."""
    crate = CrateResult(name="crate_sandbox[2]", usage=Usage(), exceeded=("timeout",))
    spec = CrateSpec(timeout_usec=1_500_000, pids=None, seccomp=False)
    title, text = failure_section(crate, spec, stacks="Thread 1:\n\tFile a\x1b[2J\n")
    assert title == "Crate crate_sandbox[2]"
    assert text.splitlines() == [
        "timeout of 1.5 s exceeded",
        "memory    peak -",
        "cpu       - (user -, system -)",
        "pids      peak -",
        "wall      - of 1.5 s",
        "killed    the whole crate at its timeout",
        "ended     -",
        "loosened  seccomp off",
        "stacks at the timeout:",
        "  Thread 1:",
        r"          File a\x1b[2J",
    ]


def test_a_failure_near_a_limit_has_a_note() -> None:
    """A test that failed by itself with its tasks nearly used up, and forks refused, says so first."""
    crate = CrateResult(name="body", usage=Usage(pids_peak=31, pids_max_events=1), exit=Exit(code=1))
    lines = failure_section(crate, CrateSpec(pids=32))[1].splitlines()
    assert lines[0] == "near the pids limit 32: 96% used"
    assert "pids      peak 31 of 32, 1 fork refused" in lines
    assert "ended     exit status 1" in lines
    assert not [line for line in lines if line.startswith(("killed", "loosened", "stderr", "stacks"))]


def test_long_output_is_bounded() -> None:
    """Of stderr the last lines are shown, of stacks the first, and each says that there is more."""
    crate = CrateResult(name="body", usage=Usage(), exit=Exit(signal=11))
    text = failure_section(
        crate,
        CrateSpec(),
        stderr="".join(f"err {number}\n" for number in range(500)),
        stacks="".join(f"frame {number}\n" for number in range(500)),
    )[1]
    lines = text.splitlines()
    start = lines.index(f"stderr, last {STDERR_LINES} lines:")
    assert lines[start + 1] == f"  err {500 - STDERR_LINES}"
    assert lines[start + STDERR_LINES : start + STDERR_LINES + 3] == [
        "  err 499",
        "stacks at the end:",
        "  frame 0",
    ]
    assert lines[-2:] == [f"  frame {STACK_LINES - 1}", f"  ({500 - STACK_LINES} lines left out)"]


def test_one_endless_line_is_bounded() -> None:
    """A program that never ends its line cannot flood the report."""
    text = failure_section(CrateResult(name="body", usage=Usage()), CrateSpec(), stderr=b"x" * 1_000_000)[1]
    assert text.splitlines()[-1] == "  ..." + "x" * STDERR_BYTES


@pytest.mark.parametrize(
    ("levels", "shown"),
    [
        ({"memory_anon_bytes": 0, "memory_file_bytes": 0, "memory_shmem_bytes": 0}, ""),
        (
            {"memory_anon_bytes": 0, "memory_file_bytes": None, "memory_shmem_bytes": 3 * MIB},
            "; at the end shmem 3 MiB",
        ),
    ],
)
def test_levels_of_nothing_are_left_out(levels: dict[str, Any], shown: str) -> None:
    """They are read when the processes have ended: "anon 0 B" would look as if the crate had had none."""
    crate = CrateResult(name="body", usage=Usage(memory_peak_bytes=9 * MIB, **levels))
    assert f"memory    peak 9 MiB{shown}" in failure_section(crate, CrateSpec())[1].splitlines()


@pytest.mark.parametrize(
    ("spec", "loosened"),
    [
        (CrateSpec(network="host"), "network host"),
        (CrateSpec(mounts=(Mount(source="/a", target="/b", writable=True),)), "mounts rw"),
        (CrateSpec(mounts=(Mount(source="/a:rw", target="/b", writable=False),)), None),
        (CrateSpec(cap_add=("chown",), seccomp=False, network="host"), "cap_add chown, seccomp off, network host"),
    ],
)
def test_every_loosening_is_named(spec: CrateSpec, loosened: str | None) -> None:
    """A capability, no filter, the host's network and a writable mount are named; a read-only mount is none."""
    lines = failure_section(CrateResult(name="body", usage=Usage()), spec)[1].splitlines()
    assert [line for line in lines if line.startswith("loosened")] == ([f"loosened  {loosened}"] if loosened else [])


_RUNNER = (
    '  File "/site/pluggy/_callers.py", line 121 in _multicall',
    '  File "/site/_pytest/python.py", line 1798 in runtest',
    '  File "/site/_pytest/runner.py", line 184 in pytest_runtest_call',
    '  File "/site/_pytest/runner.py", line 250 in <lambda>',
    '  File "/site/_pytest/config/__init__.py", line 262 in _main',
    '  File "<frozen runpy>", line 88 in _run_code',
)
_CALLED = '  File "/site/_pytest/python.py", line 187 in pytest_pyfunc_call'
_TEST = '  File "/home/a/pluggy/t.py", line 8 in test_hangs'
_LEFT_OUT = "  ... pytest's own frames left out"


def _stacks_of(*dump: str) -> list[str]:
    crate = CrateResult(name="body", usage=Usage(), exceeded=("timeout",))
    lines = failure_section(crate, CrateSpec(), stacks="\n".join(dump))[1].splitlines()
    return [line.removeprefix("  ") for line in lines[lines.index("stacks at the timeout:") + 1 :]]


def test_stacks_end_where_pytest_begins() -> None:
    """Below a test's own frames there is one line for all of pytest's; other threads are whole."""
    thread = (
        "Thread 1 (most recent call first):",
        '  File "/t.py", line 4 in waits',
        '  File "/threading.py", line 9 in run',
    )
    head = ("", "Current thread 2 (most recent call first):")
    assert _stacks_of(*thread, *head, _TEST, _CALLED, *_RUNNER) == [*thread, *head, _TEST, _LEFT_OUT]


@pytest.mark.parametrize(
    "own",
    [
        # A fixture that the test asked for; a test that runs pytest in its own process.
        ('  File "/t.py", line 3 in fixture', '  File "/site/_pytest/fixtures.py", line 1 in call_fixture_func', _TEST),
        ('  File "/inner.py", line 1 in test_inner', _CALLED, *_RUNNER[:-1], _TEST),
    ],
)
def test_pytest_frames_above_the_test_are_its_own(own: tuple[str, ...]) -> None:
    """What the test called stays, be it pytest."""
    assert _stacks_of(*own, _CALLED, *_RUNNER) == [*own, _LEFT_OUT]


def test_a_fixture_keeps_its_frames() -> None:
    """In set-up and teardown the frames between the fixture and pytest's runner go, those of this plugin too."""
    fixture = '  File "/t.py", line 4 in slow'
    below = (
        '  File "/site/_pytest/fixtures.py", line 1074 in call_fixture_func',
        '  File "/site/pytest_crate/plugin/walk.py", line 175 in _set_up',
        '  File "/site/_pytest/runner.py", line 170 in pytest_runtest_setup',
    )
    assert _stacks_of(fixture, *below, *_RUNNER[3:]) == [fixture, _LEFT_OUT]


def test_a_stack_of_nothing_but_pytest_stays() -> None:
    """Where pytest itself hangs, or a deep stack's end is missing, nothing is left out."""
    assert _stacks_of(_CALLED, *_RUNNER) == [_CALLED, *_RUNNER]
    assert _stacks_of(_TEST, _CALLED, "  ...") == [_TEST, _CALLED, "  ..."]


@pytest.mark.parametrize(
    "line",
    [
        '  File "' + "/_pytest" * (1 << 17),
        '  File "' + "/_pytest" * (1 << 17) + '", line 1',
        '  File "' + '/_pytest/runner.py", line ' * (1 << 15),
        '  File "' + '", line ' * (1 << 17),
        "\t" * (1 << 20),
        "\n".join(['  File "' + "/_pytest" * 500 + '-", line 1'] * 256),
    ],
    ids=["no_end", "long_path", "runners", "ends", "tabs", "many"],
)
def test_a_forged_stack_takes_no_time(line: str) -> None:
    """A stack is a hostile body's word: as much of it as is accepted, a mebibyte, is looked through in a moment."""
    began = time.process_time()
    shown = _stacks_of(line, _RUNNER[2])
    assert time.process_time() - began < 1
    assert max(map(len, shown)) < 8 * 4096 + 100
