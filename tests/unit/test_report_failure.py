from __future__ import annotations

from pytest_crate.report import failure_section
from pytest_crate.report.failure import STACK_LINES, STDERR_BYTES, STDERR_LINES
from pytest_crate.result import CrateResult, Exit
from pytest_crate.spec import CrateSpec
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
        "memory    peak 64 MiB of 64 MiB (100%); at the end anon 2 MiB, file 1 MiB, shmem 0 B",
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
        "memory    peak -; at the end anon -, file -, shmem -",
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
