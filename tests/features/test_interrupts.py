"""Ctrl-C, SIGINT and SIGTERM: one clean stop, with nothing left behind."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import psutil
import pytest

from tests.features.on_terminal import PATIENCE_SEC, Session, session

Start = Callable[..., Session]

HANGS = """
import os, time, pytest
@pytest.fixture(scope="session", autouse=True)
def wide(): yield; print("wide down", flush=True)
def test_before(): pass
def test_hangs():
    print("han" + "ging", flush=True)
    time.sleep(100)
def test_never(): print("nev" + "er", flush=True)
"""


@pytest.fixture
def start(pytester: pytest.Pytester) -> Iterator[Start]:
    """Start pytest on a terminal, with every test in a crate."""
    with ExitStack() as stack:
        yield lambda *args: stack.enter_context(session(pytester.path, "--crate-all", *args))


@pytest.mark.parametrize("key", [True, False], ids=["ctrl-c", "kill -INT"])
def test_one_interrupt(pytester: pytest.Pytester, start: Start, key: bool) -> None:
    """Ctrl-C, or SIGINT to pytest, ends the run once and cleanly; what finished tests used is still told."""
    pytester.makepyfile(HANGS)
    run = start("-s", "-v")
    run.expect("hanging")
    processes = psutil.Process(run.process.pid).children(recursive=True)
    if key:
        run.type("\x03")
    else:
        run.interrupt()
    status, rest = run.ends()
    assert status == pytest.ExitCode.INTERRUPTED, rest
    assert rest.count("!! KeyboardInterrupt !!") == 1
    assert "wide down" in rest
    assert "never" not in rest
    assert "1 passed in" in rest
    assert "test_one_interrupt.py::test_before" in rest.partition(" crates ")[2]
    assert len(processes) > 1
    assert psutil.wait_procs(processes, timeout=10)[1] == []


def test_an_interrupt_with_workers(pytester: pytest.Pytester, start: Start) -> None:
    """Ctrl-C ends the run and each worker's crate, after the tear-down of its test."""
    (pytester.path / "down").mkdir()
    pytester.makepyfile(
        """
        import os, pathlib, time, pytest
        DOWN = pathlib.Path("down")
        @pytest.fixture
        def narrow():
            (DOWN / f"up {os.environ['PYTEST_XDIST_WORKER']}").touch()
            yield
            (DOWN / f"down {os.environ['PYTEST_XDIST_WORKER']}").touch()
        @pytest.mark.parametrize("number", range(4))
        def test_hangs(narrow, number): time.sleep(100)
        """
    )
    run = start("-n2", "-v", "--crate-mount=down:rw")
    _wait_for(lambda: {path.name for path in (pytester.path / "down").iterdir()} == {"up gw0", "up gw1"})
    processes = psutil.Process(run.process.pid).children(recursive=True)
    run.type("\x03")
    status, rest = run.ends()
    assert status == pytest.ExitCode.INTERRUPTED, rest
    assert rest.count("!! KeyboardInterrupt !!") == 1
    assert len(processes) > 4
    assert psutil.wait_procs(processes, timeout=10)[1] == []
    assert {"down gw0", "down gw1"} < {path.name for path in (pytester.path / "down").iterdir()}


def _wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_SEC
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_second_interrupt(pytester: pytest.Pytester, start: Start) -> None:
    """A second Ctrl-C, while a wider fixture is torn down, ends that, too; no process is left."""
    pytester.makepyfile(
        """
        import time, pytest
        @pytest.fixture(scope="session", autouse=True)
        def wide():
            yield
            print("slow" + "ly", flush=True); time.sleep(100)
        def test_hangs():
            print("han" + "ging", flush=True); time.sleep(100)
        """
    )
    run = start("-s")
    run.expect("hanging")
    processes = psutil.Process(run.process.pid).children(recursive=True)
    run.type("\x03")
    run.expect("slowly")
    run.type("\x03")
    status, _ = run.ends()
    assert status != pytest.ExitCode.OK
    assert len(processes) > 1
    assert psutil.wait_procs(processes, timeout=10)[1] == []


def test_a_test_that_ignores_it(pytester: pytest.Pytester, start: Start) -> None:
    """A test that ignores SIGINT ends with its crate all the same."""
    pytester.makepyfile(
        """
        import signal, time
        def test_hangs():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            print("han" + "ging", flush=True)
            while True: time.sleep(100)
        """
    )
    run = start("-s")
    run.expect("hanging")
    run.type("\x03")
    status, rest = run.ends()
    assert status == pytest.ExitCode.INTERRUPTED, rest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_other_signals(pytester: pytest.Pytester, start: Start, number: signal.Signals) -> None:
    """SIGTERM, SIGHUP and SIGKILL end pytest as always, and every crate with it."""
    pytester.makepyfile(HANGS)
    run = start("-s")
    run.expect("hanging")
    processes = psutil.Process(run.process.pid).children(recursive=True)
    run.process.send_signal(number)
    status, rest = run.ends()
    assert status == -number
    assert "never" not in rest
    assert psutil.wait_procs(processes, timeout=10)[1] == []
