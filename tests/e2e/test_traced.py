"""Processes that are traced, by their parent outside of the crate or by others in it, and their ends."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from pytest_crate.errors import SandboxError
from pytest_crate.sandbox import host_view, rootfs, sandbox
from pytest_crate.sandbox.crate_sandbox import CrateSandbox
from pytest_crate.sandbox.sandbox import Engine
from pytest_crate.spec import Layer, build_spec

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


UNKILLABLE = """
child = os.fork()
if child == 0:
    while True:
        time.sleep(1)
assert ptrace(0x4206, child, 0, 0x40) == 0  # PTRACE_SEIZE, PTRACE_O_TRACEEXIT
print("ready", flush=True)
time.sleep(100)
"""


def test_a_crate_that_the_kernel_cannot_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes that wait for each other's exit as tracers can't be killed. It is said, other crates are made and
    ended, and the run comes to its end. (One of the two is held here, so that they can be let go.)"""
    begin, found, _ = sandbox._LAUNCH.rpartition("; main()")  # noqa: SLF001 - with less patience
    assert found
    less = "from pytest_crate.sandbox import launcher; launcher._KILL_SECONDS = 1.0"
    monkeypatch.setattr(sandbox, "_LAUNCH", f"{begin}; {less}; main()")
    engine = Engine()
    try:
        stuck, other = (_crate(engine) for _ in range(2))
        command = [sys.executable, "-S", "-c", PTRACE + UNKILLABLE]
        program = stuck.popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd="/")
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        held, let_go = threading.Event(), threading.Event()
        thread = threading.Thread(target=_hold, args=(program.pid, held, let_go))
        thread.start()
        assert held.wait(10)
        try:
            with pytest.raises(SandboxError, match=r"end the crate: a process in it has not ended 1 s after SIGKILL"):
                stuck.close()
            began = time.monotonic()
            stuck.close()
            assert other.run(["echo", "x"], cwd="/").stdout == "x\n"
            other.close()
            assert time.monotonic() - began < 1
        finally:
            let_go.set()
            thread.join()
    finally:
        engine.close()
    assert not psutil.pid_exists(program.pid)


def _crate(engine: Engine) -> CrateSandbox:
    spec = build_spec([Layer(origin="test", values={})])
    view = host_view.program_view("/", rootless=False, environ=os.environ)
    return CrateSandbox(engine.create(spec, rootfs.plan_root(spec, view, rootfs=None)), spec, name="crate")


def _hold(pid: int, held: threading.Event, let_go: threading.Event) -> None:
    """Trace a process until it is to be let go, as the other of the two would."""
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = [ctypes.c_long] * 4
    assert ptrace(0x4206, pid, 0, 0x40) == 0
    held.set()
    let_go.wait()
    ptrace(17, pid, 0, 0)  # PTRACE_DETACH
