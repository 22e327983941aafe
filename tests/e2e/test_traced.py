"""Processes that are traced, by their parent outside of the crate or by others in it, and their ends."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import RunCrated

pytestmark = pytest.mark.needs("root", "overlay")

PTRACE = """
import ctypes, os, signal, sys, threading, time
ptrace = ctypes.CDLL(None, use_errno=True).ptrace
ptrace.argtypes = [ctypes.c_long] * 4
"""
STOPS = "assert ptrace(0, 0, 0, 0) == 0; os.kill(os.getpid(), signal.SIGUSR1); time.sleep(100)"
GOES_ON = """
assert ptrace(0, 0, 0, 0) == 0
signal.signal(signal.SIGUSR1, lambda *_: print("handled", flush=True))
os.kill(os.getpid(), signal.SIGUSR1)
os.execv(sys.executable, [sys.executable, "-S", "-c", "print('executed', flush=True); raise SystemExit(5)"])
"""
THREAD = """
def traced():
    assert ptrace(0, 0, 0, 0) == 0
    WHAT
thread = threading.Thread(target=traced)
thread.start()
time.sleep(0.2)
os._exit(7)
"""

TRACED = f"""
    import subprocess, sys, time
    import pytest

    def run(box, script, **options):
        began = time.monotonic()
        done = box.run([sys.executable, "-S", "-c", {PTRACE!r} + script], **options)
        assert time.monotonic() - began < 10
        return done

    @pytest.mark.crate
    @pytest.mark.parametrize(
        ("script", "expected"),
        [({STOPS!r}, -10), ({GOES_ON!r}, 5), ({THREAD!r}, 7), ({THREAD.replace("WHAT", "time.sleep(100)")!r}, 7)],
    )
    def test_ends(crate_sandbox, script, expected):
        done = run(crate_sandbox, script.replace("WHAT", ""))
        assert done.returncode == expected, done
        assert crate_sandbox.run(["echo", "x"]).stdout == "x\\n"

    @pytest.mark.crate(timeout=20)
    @pytest.mark.parametrize("script", [{GOES_ON.replace("raise SystemExit(5)", "import time; time.sleep(100)")!r}])
    def test_is_killed(crate_sandbox, script):
        done = run(crate_sandbox, script, timeout=1)
        assert (done.returncode, done.exceeded) == (-9, ("timeout",))
        assert done.stdout == "handled\\nexecuted\\n"

    @pytest.mark.crate
    @pytest.mark.parametrize("what", ["", "time.sleep(100)"])
    def test_is_left(crate_sandbox, what):
        script = {THREAD.replace("os._exit(7)", "print('ready', flush=True); time.sleep(100)")!r}
        command = [sys.executable, "-S", "-c", {PTRACE!r} + script.replace("WHAT", what)]
        left = crate_sandbox.popen(command, stdout=subprocess.PIPE)
        assert left.stdout.readline() == "ready\\n"
        began = time.monotonic()
        crate_sandbox.close()
        assert time.monotonic() - began < 10
"""


def test_a_program_whose_parent_is_made_to_trace_it(run_crated: RunCrated) -> None:
    """Who asks to be traced by its parent, which is the launcher, or has a thread do so, ends as any other does, and so
    does its crate; what it does meanwhile is as if nobody traced it."""
    run = run_crated(TRACED)
    assert run.all_passed(), run.text


BODIES = f"""
    import os, signal, subprocess, sys, threading, time
    import pytest

    exec({PTRACE!r})

    def traced(then=lambda: None):
        assert ptrace(0, 0, 0, 0) == 0
        then()

    def in_a_thread(then=lambda: None):
        thread = threading.Thread(target=traced, args=(then,), daemon=True)
        thread.start()
        time.sleep(0.2)

    @pytest.mark.crate
    def test_passes():
        traced()

    @pytest.mark.crate
    def test_thread():
        in_a_thread()

    @pytest.mark.crate
    def test_thread_lives():
        in_a_thread(signal.pause)

    @pytest.mark.crate(timeout=2)
    def test_stops():
        traced()
        os.kill(os.getpid(), signal.SIGUSR2)
        time.sleep(100)

    @pytest.mark.crate(timeout=2)
    def test_thread_is_killed():
        in_a_thread(signal.pause)
        time.sleep(100)
"""


def test_a_body_whose_parent_is_made_to_trace_it(run_crated: RunCrated) -> None:
    """The same of a test's body, whose parent is pytest: it ends as any other, or at its timeout."""
    run = run_crated(BODIES)
    killed = {"test_stops": "failed", "test_thread_is_killed": "failed"}
    assert run.outcomes == {"test_passes": "passed", "test_thread": "passed", "test_thread_lives": "passed"} | killed
    for name in killed:
        assert run.crate(name)["exceeded"] == ["timeout"]


UNKILLABLE = """
child = os.fork()
if child == 0:
    while True:
        time.sleep(1)
assert ptrace(0x4206, child, 0, 0x40) == 0  # PTRACE_SEIZE, PTRACE_O_TRACEEXIT
print("ready", flush=True)
time.sleep(100)
"""


SHORT = """
    from pytest_crate.sandbox import sandbox
    begin, found, _ = sandbox._LAUNCH.rpartition("; main()")
    assert found
    less = "from pytest_crate.kernel import processes; processes.KILL_SECONDS = 1.0"
    sandbox._LAUNCH = f"{begin}; {less}; main()"
"""
HOLD = """
    import ctypes, subprocess, sys, threading
    import pytest
    from pytest_crate import SandboxError

    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = [ctypes.c_long] * 4
    held, over = threading.Event(), threading.Event()

    def hold(pid):  # as the other of the two would, until both can be let go
        assert ptrace(0x4206, pid, 0, 0x40) == 0
        held.set()
        over.wait()
        ptrace(17, pid, 0, 0)  # PTRACE_DETACH

    threads = []
"""
STUCK = f"""{HOLD}
    def unkillable(box):
        command = [sys.executable, "-S", "-c", {PTRACE!r} + {UNKILLABLE!r}]
        program = box.popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert program.stdout.readline() == "ready\\n"
        held.clear()
        threads.append(threading.Thread(target=hold, args=(program.pid,)))
        threads[-1].start()
        assert held.wait(10)
        return program

    @pytest.mark.crate
    def test_sticks(crate_sandbox):
        program = unkillable(crate_sandbox)
        crate_sandbox.popen(["sleep", "100"], stdin=subprocess.DEVNULL)
        with pytest.raises(SandboxError, match="has not ended 1 s after SIGKILL"):
            program.end()

    @pytest.mark.crate(timeout=2)
    @pytest.mark.parametrize("end", ["wait", "communicate"])
    def test_is_waited_for(crate_sandbox, end):
        getattr(unkillable(crate_sandbox), end)()

    @pytest.mark.crate
    def test_goes_on(crate_sandbox):
        assert crate_sandbox.run(["echo", "x"]).stdout == "x\\n"
        over.set()
        for thread in threads:
            thread.join()

    @pytest.mark.crate
    def test_rides():
        pass
"""


def test_a_crate_that_the_kernel_cannot_end(pytester: pytest.Pytester, run_crated: RunCrated) -> None:
    """Two processes that wait for each other's exit as tracers can't be killed. That fails their test, which says so;
    the others run, and the run comes to its end. (One of the two is held here, so that they can be let go.)"""
    pytester.makeconftest(SHORT)
    run = run_crated(STUCK, "-rE")
    waited = {"test_is_waited_for[wait]": "failed", "test_is_waited_for[communicate]": "failed"}
    ends = {"test_sticks": "error", "test_goes_on": "passed", "test_rides": "passed"} | waited
    assert run.outcomes == ends, run.text
    assert run.text.count(f"SandboxError: end {sys.executable}: it has not ended 1 s after SIGKILL") == 2
    said = "crate: end the crate: a process in it has not ended 1 s after SIGKILL"
    assert f"ERROR test_inner.py::test_sticks - Failed: {said}" in run.short_summary


ENDED = f"""{HOLD}
    import os, signal, time

    @pytest.fixture
    def killed(crate_sandbox):
        held.clear(), over.clear()
        program = crate_sandbox.popen(["sleep", "100"], stdin=subprocess.DEVNULL)
        threads.append(threading.Thread(target=hold, args=(program.pid,)))
        threads[-1].start()
        assert held.wait(10)
        with open(f"/proc/{{program.pid}}/stat") as file:
            program.parent = int(file.read().rpartition(")")[2].split()[1])
        crate_sandbox._sandbox.kill()
        yield program
        over.set()
        threads[-1].join()

    @pytest.mark.crate
    def test_ends_unseen(killed):
        os.kill(killed.parent, signal.SIGSTOP)
        over.set()
        threads[-1].join()
        time.sleep(1.5)
        os.kill(killed.parent, signal.SIGCONT)
        assert killed.wait() == -signal.SIGKILL

    @pytest.mark.crate
    def test_ends_late(crate_sandbox, killed):
        with pytest.raises(SandboxError, match="has not ended 1 s after SIGKILL"):
            killed.wait()
        threading.Timer(0.5, over.set).start()
        crate_sandbox._sandbox._ask("end")
"""


def test_a_crate_that_has_ended_is_not_given_up(pytester: pytest.Pytester, run_crated: RunCrated) -> None:
    """A program is not told to be stuck that has ended while the launcher was held up, nor is a crate that ends while
    somebody waits for that. (What holds it is a tracer, as a body does that pytest has yet to reap.)"""
    pytester.makeconftest(SHORT)
    run = run_crated(ENDED)
    assert run.outcomes == {"test_ends_unseen": "passed", "test_ends_late": "passed"}, run.text
