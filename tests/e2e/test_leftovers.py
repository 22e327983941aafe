"""What crates leave behind: nothing, however a test, or pytest itself, ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from pytest_crate.kernel import calls, cgroup
from tests.leftovers import leftover_cgroups

if TYPE_CHECKING:
    from tests.e2e.conftest import RunCrated

pytestmark = pytest.mark.needs("root", "overlay")

MIB = 1 << 20


def eventually(condition: Callable[[], bool], *, seconds: float = 15) -> bool:
    """Tell whether a condition comes true in time."""
    end = time.monotonic() + seconds
    while not (held := condition()) and time.monotonic() < end:
        time.sleep(0.01)
    return held


def processes_with(argument: str) -> list[psutil.Process]:
    """Return the processes that have an argument on their command line, whatever namespace they are in."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if argument in (process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def test_daemon_ends_with_its_test(run_crated: RunCrated) -> None:
    """A daemon, forked twice and in a session of its own, runs beside its test, which passes, and is gone afterwards;
    likewise one that a driven program leaves behind."""
    seconds = f"{1000 + os.getpid()}"
    run = run_crated(f"""
        import os, subprocess
        import psutil
        import pytest

        pytestmark = pytest.mark.crate

        def daemons():
            return [process.pid for process in psutil.process_iter() if process.name() == "sleep"]

        def test_daemon():
            reading, writing = os.pipe()
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    os.set_inheritable(writing, True)
                    os.execlp("sleep", "sleep", "{seconds}")
                os._exit(0)
            os.close(writing)
            os.wait()
            assert [process.ppid() for process in psutil.process_iter() if process.pid not in (1, os.getpid())] == [1]

        def test_next_sees_none():
            assert daemons() == []

        def test_daemon_of_a_program(crate_sandbox):
            crate_sandbox.run(["sh", "-c", "setsid sleep {seconds} >/dev/null 2>&1 &"], check=True)
            assert len(crate_sandbox.processes()) == 1
    """)
    assert run.all_passed()
    assert processes_with(seconds) == []


def test_timeout(run_crated: RunCrated) -> None:
    """A test that hangs and ignores SIGTERM is killed within 3 s of its timeout, with the stacks of its threads in the
    report; what it has started is gone, and the next test runs."""
    seconds = f"{1000 + os.getpid()}"
    run = run_crated(f"""
        import signal, subprocess, threading, time
        import pytest

        def waits_in_a_thread():
            threading.Event().wait()

        def waits_in_the_body():
            while True:
                time.sleep(100)

        @pytest.mark.crate(timeout=1)
        def test_hangs():
            for number in signal.SIGTERM, signal.SIGINT, signal.SIGHUP:
                signal.signal(number, signal.SIG_IGN)
            subprocess.Popen(["sleep", "{seconds}"], start_new_session=True)
            threading.Thread(target=waits_in_a_thread).start()
            waits_in_the_body()

        @pytest.mark.crate(timeout=1)
        def test_hangs_with_signals_blocked():
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            waits_in_the_body()

        @pytest.fixture
        def late():
            yield
            time.sleep(100)

        @pytest.mark.crate(timeout=1)
        def test_teardown_hangs(late):
            pass

        @pytest.mark.crate(timeout=30)
        def test_next():
            pass
    """)
    outcomes = {name: test["outcome"] for name, test in run.tests.items()}
    assert outcomes == {
        "test_hangs": "failed",
        "test_hangs_with_signals_blocked": "failed",
        "test_teardown_hangs": "error",
        "test_next": "passed",
    }
    for name in ("test_hangs", "test_hangs_with_signals_blocked", "test_teardown_hangs"):
        assert run.crate(name)["exceeded"] == ["timeout"]
        assert run.crate(name)["exit"] == {"code": None, "signal": signal.SIGKILL}
        assert 1_000_000 <= (run.usage(name)["wall_usec"] or 0) < 4_000_000
        assert re.search(rf"{name} - CrateFailed: timeout of 1 s exceeded", run.short_summary)
    stacks = run.text.partition("_ test_hangs _")[2].partition("_ test_hangs_with_signals_blocked _")[0]
    assert "stacks at the timeout:" in stacks
    assert re.search(r"test_inner.py\", line \d+ in waits_in_a_thread\n", stacks)
    assert re.search(r"test_inner.py\", line \d+ in waits_in_the_body\n", stacks)
    assert re.search(r"test_inner.py\", line \d+ in test_hangs\n", stacks)
    assert processes_with(seconds) == []


SAMPLING = """
    import gc, json, os
    import time
    from pathlib import Path
    import psutil

    SAMPLES = {}

    def anonymous(pid):
        # Without the file pages of the resident set, which come and go with the memory of the machine.
        (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("RssAnon:")]
        return int(line.split()[1]) << 10

    def pytest_runtest_logfinish(nodeid):
        if "test_look" in nodeid:
            gc.collect()
            memory = anonymous(os.getpid())
            own = psutil.Process()
            (launcher,) = own.children()
            # The kernel takes its time over the last crate's end, and nobody waits for it.
            end = time.monotonic() + 30
            while launcher.children() and time.monotonic() < end:
                time.sleep(0.01)
            SAMPLES[nodeid.partition("::")[2]] = {
                "memory": memory,
                "launcher_memory": anonymous(launcher.pid),
                "files": len(os.listdir("/proc/self/fd")),
                "launcher_files": len(os.listdir(f"/proc/{launcher.pid}/fd")),
                "children": len(own.children(recursive=True)),
                "mounts": Path("/proc/self/mountinfo").read_text().count("\\n"),
                # Of crates, below the run's own.
                "cgroups": [
                    path.name
                    for path in Path("/sys/fs/cgroup").glob(f"**/pytest-crate-{launcher.pid}-*/*")
                    if path.is_dir()
                ],
            }

    def pytest_sessionfinish():
        Path("samples.json").write_text(json.dumps(SAMPLES))
"""


def test_thousand_crates(run_crated: RunCrated, pytester: pytest.Pytester) -> None:
    """1,000 crates in one run: between the hundredth and the last, pytest's memory grows by less than 8 MiB, and its
    descriptors, children, mounts and control groups by none."""
    pytester.makeconftest(SAMPLING)
    run = run_crated(
        """
        import pytest

        # Before a test without a crate, none is prepared. The first look is for what looking itself keeps.
        def test_look_once(): pass
        @pytest.mark.crate
        @pytest.mark.parametrize("number", range(100))
        def test_early(number): pass
        def test_look_early(): pass
        @pytest.mark.crate
        @pytest.mark.parametrize("number", range(900))
        def test_later(number): pass
        def test_look_late(): pass
        """,
        # Other plugins keep something of each test, with or without crates.
        *("-q", "-p", "no:hypothesispytest", "-p", "no:xdist"),
    )
    assert run.result.parseoutcomes()["passed"] == 1003
    assert len(run.tests) == 1000
    samples = json.loads((pytester.path / "samples.json").read_text())
    early, late = samples["test_look_early"], samples["test_look_late"]
    grown = {name: (late.pop(name) - early.pop(name)) / MIB for name in ("memory", "launcher_memory")}
    print(f"growth from 100 to 1,000 crates in MiB: {grown}; the whole run took {run.result.duration:.1f} s")
    # pytest itself keeps about 2.1 MiB of reports in 900 tests; heaps differ from one environment to the next.
    assert grown["memory"] < 8
    assert grown["launcher_memory"] < 1
    assert early == late
    assert late["cgroups"] == []


class KilledRun:
    """An inner pytest in the midst of a test that has started processes; about to lose one of its own."""

    def __init__(self, directory: Path) -> None:
        self.argument = f"{10_000 + os.getpid()}"
        self.directory = directory
        (directory / "test_inner.py").write_text(
            textwrap.dedent(f"""
                import subprocess, time
                import pytest

                @pytest.mark.crate(mounts=["{directory}:/outside:rw"])
                def test_killed():
                    subprocess.Popen(["sleep", "{self.argument}"])
                    subprocess.Popen(["sleep", "{self.argument}"], start_new_session=True)
                    open("/outside/ready", "w").close()
                    time.sleep(100)

                @pytest.mark.crate
                def test_next():
                    pass
            """)
        )
        self.command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--basetemp={directory}/base"]
        self.pytest = subprocess.Popen(self.command, cwd=directory, stdout=subprocess.PIPE, text=True)
        assert eventually((directory / "ready").exists)
        children = psutil.Process(self.pytest.pid).children()
        (self.launcher,) = [child.pid for child in children if child.name() == "crate-launcher"]
        # launcher, init, body, the two that it started, the init of the crate prepared for the next test, the builder
        count = 6 + calls.works()
        assert eventually(lambda: len(psutil.Process(self.pytest.pid).children(recursive=True)) == count)
        self.processes = psutil.Process(self.pytest.pid).children(recursive=True)
        run_name = cgroup.run_name(self.launcher)
        self.cgroups = list(Path("/sys/fs/cgroup").glob(f"**/{run_name}"))
        assert len(self.with_argument()) == 2
        assert self.cgroups

    def with_argument(self) -> list[psutil.Process]:
        return processes_with(self.argument)

    def none_runs(self) -> bool:
        """Tell whether all its processes have ended; some may wait to be reaped."""
        return self.with_argument() == [] and not any(map(is_running, self.processes))

    def reap_orphans(self) -> None:
        """Do the duty of the process that has adopted what pytest left behind: ours, by the fixture nothing_left."""
        for process in self.processes:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)

    def no_cgroup_left(self) -> bool:
        return not any(path.exists() for path in self.cgroups)


def is_running(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_sigkill_of_pytest_leaves_nothing(tmp_path: Path) -> None:
    """When pytest is killed in the midst of a test, every process of the run ends, and its control groups go: these
    also where nobody reaps the orphaned body, as in a container whose pid 1 is no init."""
    run = KilledRun(tmp_path)
    run.pytest.kill()
    run.pytest.communicate()
    assert eventually(run.no_cgroup_left)
    run.reap_orphans()
    assert eventually(run.none_runs)


def test_sigkill_of_the_launcher_fails_the_test(tmp_path: Path) -> None:
    """When the launcher is killed in the midst of a test, the test fails and says so, its processes end, the next test
    gets a new launcher, and the control groups of the old one are removed."""
    run = KilledRun(tmp_path)
    os.kill(run.launcher, signal.SIGKILL)
    output, _ = run.pytest.communicate(timeout=60)
    assert run.none_runs()
    assert re.search(r"FAILED test_inner.py::test_killed - .*launcher", output)
    assert "1 failed, 1 passed" in output
    assert run.no_cgroup_left()


def test_sigkill_of_the_launcher_that_has_not_ended_yet(pytester: pytest.Pytester) -> None:
    """A program that goes with the launcher has failed by that, also while it can't be seen yet that it has ended."""
    pytester.makeconftest(
        """
        from pytest_crate.sandbox.sandbox import Engine
        Engine._has_ended = lambda *_: False
        """
    )
    pytester.makepyfile(
        """
        import threading, psutil, pytest

        @pytest.mark.crate
        def test_killed(crate_sandbox):
            (launcher,) = (each for each in psutil.Process().children() if each.name() == "crate-launcher")
            threading.Timer(0.5, launcher.kill).start()
            crate_sandbox.run(["sleep", "60"], check=True)
        """
    )
    done = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    assert done.parseoutcomes() == {"failed": 1}
    done.stdout.fnmatch_lines(["FAILED *ask the launcher: it ended, and every crate with it*"])


def test_sigkill_of_the_launcher_at_the_end(pytester: pytest.Pytester) -> None:
    """When the launcher is killed after the last crate, its control groups are removed all the same, at the end."""
    before = leftover_cgroups()
    pytester.makeconftest(
        """
        import psutil

        def pytest_sessionfinish():
            (launcher,) = (each for each in psutil.Process().children() if each.name() == "crate-launcher")
            launcher.kill()
        """
    )
    pytester.makepyfile("def test_it(): pass")
    done = pytester.runpytest_subprocess("--crate-all", "-p", "no:cacheprovider")
    assert done.parseoutcomes()["passed"] == 1
    assert leftover_cgroups() <= before


# In the place of a launcher's own beginning: the first of a run are killed, each at its moment.
KILLED_LAUNCHER = """
import os, signal
from pytest_crate.kernel import overlay
from pytest_crate.sandbox import launcher

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

with open({begun!r}, "a+") as begun:
    print(os.getpid(), file=begun, flush=True)
    begun.seek(0)
    number = len(begun.readlines())
match dict(enumerate({moments!r}, 1)).get(number):
    case "beginning": die()
    case "answer": overlay.is_refused = die
    case "end": launcher.Launcher.end = die
launcher.main()
"""


@pytest.mark.parametrize(
    ("moments", "outcome"),
    [
        pytest.param(["end"], "passed", id="as it ends"),
        pytest.param(["end", "beginning", "answer", "end"], "passed", id="and those that clear up behind it"),
        pytest.param(["answer", "answer"], "errors", id="and no launcher has ever answered"),
    ],
)
def test_sigkill_of_launchers_at_any_moment(pytester: pytest.Pytester, moments: list[str], outcome: str) -> None:
    """Whenever launchers are killed, also one that is ending, one that is beginning, and one that is there only to
    clear up behind another, the run's end leaves no control group."""
    begun = pytester.path / "begun"
    program = KILLED_LAUNCHER.format(begun=str(begun), moments=moments)
    pytester.makeconftest(
        f"""
        from pytest_crate.sandbox import sandbox

        assert sandbox._LAUNCH.endswith("; main()")
        sandbox._LAUNCH = sandbox._LAUNCH.removesuffix("main()") + "exec(" + repr({program!r}) + ")"
        """
    )
    pytester.makepyfile("def test_it(): pass")
    done = pytester.runpytest_subprocess("--crate-all", "-p", "no:cacheprovider")
    assert done.parseoutcomes() == {outcome: 1}
    launchers = [int(line) for line in begun.read_text().split()]
    assert len(launchers) == len(moments) + 1
    # Other runs' directories come and go meanwhile.
    left = [name for _, names, _ in os.walk("/sys/fs/cgroup") for name in names]
    assert [name for pid in launchers for name in left if name.startswith(f"pytest-crate-{pid}-")] == []
