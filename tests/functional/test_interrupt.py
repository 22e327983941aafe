"""Ctrl-C: one clean stop that names the test's own line, after the test's own tear-down."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_crate.kernel import processes
from tests.inner import BothWays, RunInner

# It says that it waits in the line in which it waits, and by C alone: the signal may come at once.
BODY = """
import os, signal, time, pytest
@pytest.fixture(scope="session", autouse=True)
def wide(tmp_path_factory):
    yield
    (tmp_path_factory.getbasetemp() / "session-down").touch()
@pytest.fixture
def narrow(tmp_path_factory):
    yield
    (tmp_path_factory.getbasetemp() / "function-down").touch()
def test_before(): pass
def test_waits(narrow, tmp_path_factory):
    STATEMENT
    started = str(tmp_path_factory.getbasetemp() / "started")
    while True:
        os.close(os.open(started, os.O_CREAT | os.O_WRONLY)) or time.sleep(0.01)
"""
LINE = next(number for number, line in enumerate(BODY.splitlines(), 1) if "time.sleep" in line)

Interrupt = Callable[..., tuple[int, str, set[str]]]


@pytest.fixture
def interrupt(tmp_path: Path) -> Interrupt:
    """Run pytest, send it SIGINT so many times while a test waits, and return its status, words and files made."""

    def run(*args: str, statement: str = "pass", times: int = 1, conftest: str = "") -> tuple[int, str, set[str]]:
        project, base = tmp_path / "project", tmp_path / "base"
        project.mkdir(exist_ok=True)
        (project / "test_it.py").write_text(BODY.replace("STATEMENT", statement))
        (project / "conftest.py").write_text(conftest)
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--basetemp={base}", *args]
        process = subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            if times:
                _wait_for(base / "started", process)
            for _ in range(times):
                process.send_signal(signal.SIGINT)
                time.sleep(0.3)  # a signal that comes while the one before it is pending is lost (signal(7))
            out, _ = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
        return process.returncode, out, {path.name for path in base.glob("*-down")}

    return run


def _wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    "args", [(), ("--crate-all",), ("--crate-all", "--crate-scope=module")], ids=["plain", "crated", "shared"]
)
def test_one_clean_stop(interrupt: Interrupt, args: tuple[str, ...]) -> None:
    """The interrupted line is named, the test's and the session's fixtures are torn down, as in a plain run."""
    code, out, down = interrupt(*args)
    assert code == pytest.ExitCode.INTERRUPTED, out
    assert f"test_it.py:{LINE}: KeyboardInterrupt" in out
    assert out.count("KeyboardInterrupt") - out.count("on KeyboardInterrupt use --full-trace") == 2  # rule and place
    assert down == {"function-down", "session-down"}
    assert "1 passed" in out


def test_usage_of_finished_tests(interrupt: Interrupt) -> None:
    """What the tests before it used is in the summary."""
    _, out, _ = interrupt("--crate-all")
    table = out.partition("= crates =")[2]
    assert "test_it.py::test_before" in table
    assert "test_waits" not in table


def test_a_body_that_swallows_it(interrupt: Interrupt) -> None:
    """A test that goes on all the same has a few seconds, then its crate is killed, and the test named."""
    code, out, down = interrupt("--crate-all", statement="signal.signal(signal.SIGINT, signal.SIG_IGN)")
    assert code == pytest.ExitCode.INTERRUPTED, out
    first = next(number for number, line in enumerate(BODY.splitlines(), 1) if "def test_waits" in line)
    assert f"test_it.py:{first}: KeyboardInterrupt" in out
    assert down == {"session-down"}


def test_a_second_one(interrupt: Interrupt) -> None:
    """A second Ctrl-C waits for nothing."""
    patient = "from pytest_crate.plugin import body\nbody._INTERRUPT_SECONDS = 1e6\n"
    code, out, down = interrupt(
        "--crate-all", statement="signal.signal(signal.SIGINT, signal.SIG_IGN)", times=2, conftest=patient
    )
    assert code == pytest.ExitCode.INTERRUPTED, out
    assert "KeyboardInterrupt" in out
    assert down == {"session-down"}


@pytest.mark.parametrize(
    "args", [(), ("--crate-all",), ("--crate-all", "--crate-scope=module")], ids=["plain", "crated", "shared"]
)
def test_a_body_that_catches_it(interrupt: Interrupt, args: tuple[str, ...]) -> None:
    """A test that handles it ends as it likes, and the run goes on, as in a plain run."""
    code, out, down = interrupt(
        *args,
        statement="""with pytest.raises(KeyboardInterrupt):
        (tmp_path_factory.getbasetemp() / "started").touch()
        time.sleep(60)
    return""",
    )
    assert (code, down) == (0, {"function-down", "session-down"})
    assert "2 passed" in out


# While pytest is in a hook, the test is in its body already; unless pytest has threads, as rerunfailures starts one.
IN_A_HOOK = """
import os, signal, time, pytest
def pytest_runtest_logreport(report):
    if report.when == "setup" and "test_waits" in report.nodeid:
        while not os.path.exists("BASE/started"): time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
"""


@pytest.mark.parametrize("args", [(), ("--crate-scope=module",)], ids=["crated", "shared"])
def test_while_pytest_is_in_a_hook(interrupt: Interrupt, tmp_path: Path, args: tuple[str, ...]) -> None:
    """It is the test's all the same, and the line named is the test's."""
    conftest = IN_A_HOOK.replace("BASE", f"{tmp_path}/base")
    code, out, down = interrupt("--crate-all", "-p", "no:rerunfailures", *args, times=0, conftest=conftest)
    assert code == pytest.ExitCode.INTERRUPTED, out
    assert f"test_it.py:{LINE}: KeyboardInterrupt" in out
    assert down == {"function-down", "session-down"}


def test_caught_while_pytest_is_in_a_hook(interrupt: Interrupt, tmp_path: Path) -> None:
    """A test that handles it goes on, and so does the run."""
    code, out, down = interrupt(
        *("--crate-all", "-p", "no:rerunfailures"),
        times=0,
        conftest=IN_A_HOOK.replace("BASE", f"{tmp_path}/base"),
        statement="""with pytest.raises(KeyboardInterrupt):
        (tmp_path_factory.getbasetemp() / "started").touch()
        time.sleep(60)
    return""",
    )
    assert (code, down) == (0, {"function-down", "session-down"}), out
    assert "2 passed" in out


@pytest.mark.parametrize("args", [(), ("--crate-scope=module",)], ids=["crated", "shared"])
@pytest.mark.parametrize("when", ["takes its last words", "has its last words"])
def test_when_the_test_has_ended(interrupt: Interrupt, when: str, args: tuple[str, ...]) -> None:
    """It ends the run, although the test in the crate hears nothing any more."""
    after = when == "has its last words"
    code, out, down = interrupt(
        *("--crate-all", *args),
        times=0,
        conftest=f"""
import os, signal
from pytest_crate.plugin.body import Body
take_rest = Body.take_rest
def interrupted(body, **kwargs):
    if "test_before" not in body.item.nodeid:
        return take_rest(body, **kwargs)
    if {after}: take_rest(body, **kwargs)
    else:
        import select; select.poll().poll(500)  # the child has said them
    os.kill(os.getpid(), signal.SIGINT)
    if not {after}: take_rest(body, **kwargs)
Body.take_rest = interrupted
""",
    )
    assert code == pytest.ExitCode.INTERRUPTED, out
    assert down == {"session-down"}
    assert "1 passed" in out
    assert "test_waits" not in out


def test_when_a_test_is_about_to_begin(interrupt: Interrupt) -> None:
    """One that comes before the next test in a shared crate has begun is that test's."""
    code, out, down = interrupt(
        *("--crate-all", "--crate-scope=module"),
        times=0,
        statement="return",
        conftest="""
import os, signal
from pytest_crate.plugin.body import Body
tell = Body.tell
def interrupted(body, word):
    if "test_waits" in body.item.nodeid and len(word) > 1:  # which test is next
        os.kill(os.getpid(), signal.SIGINT)
    tell(body, word)
Body.tell = interrupted
""",
    )
    assert code == pytest.ExitCode.INTERRUPTED, out
    assert "1 passed" in out
    assert down == {"session-down"}


@pytest.mark.parametrize("when", ["setup", "call"])
def test_between_two_phases(pytester: pytest.Pytester, both_ways: BothWays, when: str) -> None:
    """Where another plugin ends the run between two phases, what the test has set up is torn down in its crate."""
    pytester.makeconftest(
        f"""
        import pytest
        def pytest_runtest_logreport(report):
            if report.when == {when!r}: pytest.exit("enough")
        """
    )
    pytester.makepyfile(
        """
        import pytest
        @pytest.fixture
        def narrow(tmp_path_factory):
            yield
            (tmp_path_factory.getbasetemp() / "function-down").touch()
        def test_ends(narrow): pass
        """
    )
    # No report of a tear-down is made, and so none that says what the crate used.
    both_ways(f"--basetemp={pytester.path / 'base'}", crated=False)
    assert (pytester.path / "base" / "function-down").exists()


def test_another_signal_while_pytest_forks(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A handler that raises, as an alarm's may, ends the test when its process is known: its crate ends at once."""
    pytester.makeconftest(
        """
        import signal, threading
        from pytest_crate.kernel import namespaces
        fork_inside, rings = namespaces.fork_inside, [1]
        def ring(number, frame):
            raise RuntimeError("the alarm rings")
        signal.signal(signal.SIGALRM, ring)
        def fork_and_ring(*args, **keys):
            fork = fork_inside(*args, **keys)
            if fork.pid and rings.pop():
                rings.append(0)
                signal.pthread_kill(threading.get_ident(), signal.SIGALRM)
            return fork
        namespaces.fork_inside = fork_and_ring
        """
    )
    pytester.makepyfile("def test_rings(): pass\ndef test_after(): pass\n")
    begun = time.monotonic()
    run = run_inner("--crate-all", "-p", "no:rerunfailures")
    assert run.outcomes() == {"errors": 1, "passed": 1}, run.text
    assert "the alarm rings" in run.text
    assert time.monotonic() - begun < processes.KILL_SECONDS / 2
