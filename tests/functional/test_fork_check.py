"""Threads that are alive where a crate is forked: named when it hangs, and before if that is asked for."""

from __future__ import annotations

import re

import pytest

from tests.inner import BothWays, RunInner

# pytest-rerunfailures, where it is installed, has a thread of its own.
ALONE = ("-p", "no:rerunfailures")

HOLDER = """
import threading, pytest
LOCK = threading.Lock()
class Server:
    def __init__(self):
        self.guard = threading.RLock()
        self.done = threading.Event()
        self.ready = threading.Event()
        self.free = threading.Lock()
    def serve(self):
        with LOCK, self.guard:
            self.free.acquire()
            self.free.release()
            self.ready.set()
            self.done.wait()
@pytest.fixture(scope="module")
def server():
    server = Server()
    thread = threading.Thread(target=server.serve, name="holder")
    thread.start()
    server.ready.wait()
    yield server
    server.done.set()
    thread.join()
"""


def test_a_hang_names_thread_and_locks(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A test that waits for a lock of a thread it has not: the timeout names the thread, its line and what it held."""
    source = HOLDER + "@pytest.mark.crate(timeout=1)\ndef test_waits(server): LOCK.acquire()\n"
    pytester.makepyfile(source)
    line = next(number for number, text in enumerate(source.strip().splitlines(), 1) if "done.wait" in text)
    run = run_inner(*ALONE)
    assert run.of("test_waits")["longrepr"] == (
        "timeout of 1 s exceeded\n"
        "1 other thread was alive in pytest when the crate was forked: "
        f"'holder' (test_a_hang_names_thread_and_locks.py:{line} in serve; locked: LOCK, self.guard). "
        "The crate has none of it, and what it had locked stays locked in it."
    )


def test_a_hang_beside_a_thread_without_locks(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A thread that holds nothing is probably not to blame: it is named among the crate's facts, not in the message."""
    source = HOLDER.replace("with LOCK, self.guard:", "if True:")
    pytester.makepyfile(source + "@pytest.mark.crate(timeout=1)\ndef test_waits(server): threading.Event().wait()\n")
    report = run_inner(*ALONE).of("test_waits")
    assert report["longrepr"] == "timeout of 1 s exceeded"
    assert re.search(
        r"^threads   alive in pytest, not in the crate: 'holder' \(\S+:\d+ in serve\)$",
        dict(report["sections"])["Crate"],
        re.MULTILINE,
    )


def test_a_hang_without_threads(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Where pytest had no other thread, none is blamed."""
    pytester.makepyfile("import pytest, time\n@pytest.mark.crate(timeout=0.5)\ndef test_waits(): time.sleep(60)")
    assert run_inner(*ALONE).of("test_waits")["longrepr"] == "timeout of 0.5 s exceeded"


def test_another_plugins_timeout(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Where a signal's handler in pytest ends the wait, its failure has the same note."""
    pytester.makeconftest(
        """
        import signal, pytest
        def late(number, frame): raise RuntimeError("too late")
        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_protocol(item):
            signal.signal(signal.SIGALRM, late)
            signal.setitimer(signal.ITIMER_REAL, 1)
            try:
                return (yield)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        """
    )
    pytester.makepyfile(HOLDER + "def test_waits(server): LOCK.acquire()\ndef test_after(): pass\n")
    run = run_inner(*ALONE, "--crate-all")
    assert run.outcomes() == {"failed": 1, "passed": 1}
    text = run.of("test_waits")["longrepr"]
    assert "RuntimeError: too late" in text
    assert "locked: LOCK, self.guard" in text


def test_by_default_nothing_is_said(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """A thread of a wider fixture is no reason for a warning: the suite says what it says without crates."""
    pytester.makepyfile(HOLDER + "def test_passes(server): pass\n")
    assert both_ways("-Werror").outcomes() == {"passed": 1}


def test_warn(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """``crate_fork_check = warn``: the test passes, with a warning that can be filtered by its class."""
    pytester.makepyfile(HOLDER + "def test_before(): pass\ndef test_passes(server): pass\n")
    run = run_inner(*ALONE, "--crate-all", "-ocrate_fork_check=warn")
    assert run.outcomes() == {"passed": 2, "warnings": 1}
    assert "CrateForkWarning: 1 other thread was alive in pytest when the crate was forked: 'holder'" in run.text
    silent = run_inner(
        *ALONE, "--crate-all", "-ocrate_fork_check=warn", "-Wignore::pytest_crate.plugin.CrateForkWarning", way="crated"
    )
    assert silent.outcomes() == {"passed": 2}


def test_error(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """``crate_fork_check = error``: such a test is an error, and doesn't run."""
    pytester.makepyfile(HOLDER + "def test_before(): pass\ndef test_never(server): open('ran', 'w')\n")
    run = run_inner(*ALONE, "--crate-all", "-ocrate_fork_check=error")
    assert run.outcomes() == {"passed": 1, "errors": 1}
    assert "'holder'" in run.of("test_never", "setup")["longrepr"]
    assert "(crate_fork_check = error)" in run.of("test_never", "setup")["longrepr"]
    assert run.of("test_never", "teardown")["crates"] == []


def test_unknown_check(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Another value stops pytest at once, with the choices."""
    pytester.makepyfile("def test(): pass")
    run = run_inner("-ocrate_fork_check=loud")
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    run.result.stderr.fnmatch_lines(["ERROR: ini crate_fork_check='loud': expected one of off, warn, error"])
