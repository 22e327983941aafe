"""Limits, on the real kernel: what exceeds one fails its own test, by name, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.inner import PATIENCE

if TYPE_CHECKING:
    from tests.e2e.conftest import RunCrated

pytestmark = pytest.mark.needs("crates")

MIB = 1 << 20

MEMORY_HOGS = """
    import mmap, os, subprocess, sys
    import pytest

    pytestmark = pytest.mark.crate(memory="64m")
    SIZE = 200 << 20

    def test_body():
        bytearray(SIZE)

    def test_child_program():
        subprocess.run([sys.executable, "-c", f"bytearray({SIZE})"])

    def test_forked_child():
        pid = os.fork()
        if pid == 0:
            bytearray(SIZE)
            os._exit(0)
        os.waitpid(pid, 0)

    def test_shared_mapping():
        shared = mmap.mmap(-1, SIZE)
        for offset in range(0, SIZE, mmap.PAGESIZE):
            shared[offset] = 1

    def test_file_on_dev_shm():
        with open("/dev/shm/file", "wb") as file:
            for _ in range(200):
                file.write(bytes(1 << 20))

    def test_file_on_tmp():
        with open("/tmp/file", "wb") as file:
            for _ in range(200):
                file.write(bytes(1 << 20))

    @pytest.fixture
    def hog():
        return bytearray(SIZE)

    def test_fixture(hog):
        pass

    def test_modest_between():
        assert len(bytearray(30 << 20)) == 30 << 20
"""


@pytest.mark.needs("memory limit")
def test_memory_limit_holds_whatever_takes_the_memory(run_crated: RunCrated) -> None:
    """200 MiB under a limit of 64 MiB fail the test in the body, in a child that the test forks or executes, in shared
    memory, in a file of a private file system and in a fixture; the next test is unharmed."""
    run = run_crated(MEMORY_HOGS, "-rA")
    hogs = ["body", "child_program", "forked_child", "shared_mapping", "file_on_dev_shm", "file_on_tmp"]
    assert run.outcomes == {
        **{f"test_{name}": "failed" for name in hogs},
        "test_fixture": "error",
        "test_modest_between": "passed",
    }
    for name in hogs:
        assert f"FAILED test_inner.py::test_{name} - CrateFailed: memory limit 64 MiB exceeded\n" in run.short_summary
        assert run.crate(f"test_{name}")["exceeded"] == ["memory"]
        assert (run.usage(f"test_{name}")["memory_oom_kills"] or 0) >= 1
    assert "ERROR test_inner.py::test_fixture - CrateFailed: memory limit 64 MiB exceeded\n" in run.short_summary
    assert run.usage("test_modest_between")["memory_oom_kills"] == 0
    assert run.result.ret == pytest.ExitCode.TESTS_FAILED


@pytest.mark.needs("memory limit")
def test_memory_peak_is_the_body_s_own(run_crated: RunCrated) -> None:
    """50 MiB pass under a limit of 64 MiB and are 50 MiB ± 2 at the peak, above what a body takes that does nothing:
    less than 5 MiB, although pytest itself holds 200 MiB."""
    run = run_crated("""
        import pytest

        @pytest.fixture(scope="session")
        def held():
            return bytearray(200 << 20)

        @pytest.mark.crate(memory="64m")
        def test_modest(held):
            assert len(bytearray(50 << 20)) == 50 << 20

        @pytest.mark.crate(memory="64m")
        def test_empty(held):
            pass
    """)
    assert run.all_passed()
    peak, empty = (run.usage(f"test_{name}")["memory_peak_bytes"] for name in ("modest", "empty"))
    assert peak is not None
    assert empty is not None
    print(f"peak of 50 MiB: {peak / MIB:.2f} MiB, of nothing: {empty / MIB:.2f} MiB")
    assert peak - empty == pytest.approx(50 * MIB, abs=2 * MIB)
    assert 0 < empty < 5 * MIB


@pytest.mark.needs("cpus limit", "two cpus")
def test_cpu_limit_is_shared_by_all_processes(run_crated: RunCrated) -> None:
    """Two busy processes under half a CPU use 1.0 s ± 15 % of CPU time in 2 s of wall time, and are throttled."""
    run = run_crated("""
        import subprocess, sys
        import pytest

        BUSY = "import time; end = time.monotonic() + 2\\nwhile time.monotonic() < end: pass"

        @pytest.mark.crate(cpus=0.5)
        def test_busy():
            for process in [subprocess.Popen([sys.executable, "-I", "-S", "-c", BUSY]) for _ in range(2)]:
                assert process.wait() == 0
    """)
    assert run.all_passed()
    usage = run.usage("test_busy")
    cpu, wall, throttled = (usage[name] or 0 for name in ("cpu_usage_usec", "wall_usec", "cpu_nr_throttled"))
    print(f"cpu {cpu / 1e6:.3f} s in {wall / 1e6:.3f} s of wall time, throttled {throttled} times")
    assert cpu == pytest.approx(wall / 2, rel=0.15)
    assert throttled > 0


@pytest.mark.needs("cpuset limit")
def test_cpuset_is_what_python_sees(run_crated: RunCrated) -> None:
    """In a cpuset of one CPU the affinity mask is that CPU, for children too."""
    run = run_crated("""
        import os, subprocess
        import pytest

        LAST = max(os.sched_getaffinity(0))

        @pytest.mark.crate(cpuset=str(LAST))
        def test_one():
            assert os.sched_getaffinity(0) == {LAST}
            assert subprocess.run(["nproc"], capture_output=True, text=True).stdout == "1\\n"

        @pytest.mark.crate(cpuset=str(LAST))
        def test_cannot_be_left():
            os.sched_setaffinity(0, range(64))
            assert os.sched_getaffinity(0) == {LAST}
    """)
    assert run.all_passed()


FORK_BOMBS = """
    import os, subprocess, threading, time
    import pytest

    pytestmark = pytest.mark.crate(pids=32)

    def test_bomb():
        while True:
            os.fork()

    def test_bomb_that_swallows_the_error():
        while True:
            try:
                os.fork()
            except OSError:
                pass

    def test_swallowed_once():
        try:
            for _ in range(40):
                if os.fork() == 0:
                    time.sleep(60)
        except BlockingIOError:
            pass

    def test_failed_by_the_error():
        for _ in range(40):
            if os.fork() == 0:
                time.sleep(60)

    def test_threads():
        event = threading.Event()
        try:
            for _ in range(40):
                threading.Thread(target=event.wait, daemon=True).start()
        except RuntimeError:
            pass

    def test_modest():
        for _ in range(100):
            assert subprocess.run(["true"]).returncode == 0
"""


@pytest.mark.needs("pids limit")
def test_fork_bomb_fails_at_once(run_crated: RunCrated) -> None:
    """Forks beyond the limit on tasks, threads too, fail the test within 10 s and by name, also if it swallows the
    error, and once only; a hundred processes one after the other don't."""
    run = run_crated(FORK_BOMBS, "-rA", "-W", "ignore::pytest.PytestUnhandledThreadExceptionWarning")
    assert run.outcomes.pop("test_modest") == "passed"
    bombs = ["test_bomb", "test_bomb_that_swallows_the_error", "test_swallowed_once", "test_failed_by_the_error"]
    bombs.append("test_threads")
    for name in bombs:
        assert run.outcomes[name] == "failed"
        assert run.crate(name)["exceeded"] == ["pids"]
        assert f"FAILED test_inner.py::{name} - CrateFailed: pids limit 32 exceeded" in run.short_summary
    assert all((run.usage(name)["wall_usec"] or 0) < 10_000_000 for name in bombs)
    assert "ERROR" not in run.short_summary


@pytest.mark.needs("pids limit")
def test_programs_are_no_more_than_the_limit(run_crated: RunCrated) -> None:
    """One that a test starts beyond the limit on tasks is refused, however it gets into its control group."""
    run = run_crated("""
        import subprocess
        import pytest
        from pytest_crate import SandboxError

        @pytest.mark.crate(pids=2)
        def test_drives(crate_sandbox):
            start = lambda: crate_sandbox.popen(["sleep", "100"], stdin=subprocess.DEVNULL)
            first, _ = start(), start()
            assert crate_sandbox.usage.pids_max_events == 0
            for _ in range(3):
                with pytest.raises(SandboxError, match="^run sleep: the crate has as many tasks as its pids limit"):
                    start()
            assert len(crate_sandbox.processes()) == 2
            first.kill()
            first.wait()
            start()
            result = crate_sandbox.close()
            assert result.exceeded == ("pids",)
            assert result.usage.pids_peak == 2
    """)
    assert run.all_passed(), run.text


# The time is up when the body holds what it is to hold, and not before.
LEVELS = f"""
    import time
    import pytest

    @pytest.fixture
    def held():
        return bytearray(20 << 20)

    def test_holds(held):
        with open("/dev/shm/file", "wb") as file:
            file.write(bytes(10 << 20))

    @pytest.mark.crate(timeout={2 * PATIENCE})
    def test_is_killed(held):
        time.sleep(600)

    def test_holds_no_more():
        bytearray(20 << 20)
"""


KILLED_AGAIN = """
    import time
    from pytest_crate.sandbox.sandbox import Sandbox
    kill = Sandbox.kill
    def slowly(sandbox):
        kill(sandbox)
        time.sleep(0.2)
        kill(sandbox)
    Sandbox.kill = slowly
"""


@pytest.mark.needs("memory limit")
@pytest.mark.parametrize("slow", [False, True])
def test_levels_are_of_the_moment_when_the_body_has_run(
    run_crated: RunCrated, pytester: pytest.Pytester, slow: bool
) -> None:
    """What a body holds at its end, or when it is killed, are its levels of memory; a peak may be far above them.

    Nor are they of a moment later, where its end takes its time and it is killed once more.
    """
    if slow:
        pytester.makeconftest(KILLED_AGAIN)
    run = run_crated(LEVELS, "--crate-all")
    holds, killed, none = (run.usage(f"test_{name}") for name in ("holds", "is_killed", "holds_no_more"))
    # The kernel keeps these counters for each CPU, and adds them up every two seconds or when much has changed: they
    # may lag by some MiB (mm/memcontrol.c, FLUSH_TIME).
    assert 16 * MIB <= (holds["memory_anon_bytes"] or 0) < 26 * MIB
    assert 6 * MIB <= (holds["memory_shmem_bytes"] or 0) < 12 * MIB
    assert 16 * MIB <= (killed["memory_anon_bytes"] or 0) < 26 * MIB
    assert (none["memory_anon_bytes"] or 0) < 10 * MIB < 20 * MIB <= (none["memory_peak_bytes"] or 0)
