"""The debugger, on a real terminal, inside the crate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.features.on_terminal import Session, session

Start = Callable[..., Session]


@pytest.fixture(params=["function", "module"])
def start(pytester: pytest.Pytester, request: pytest.FixtureRequest) -> Iterator[Start]:
    """Start pytest on a terminal, with every test in a crate: one each, or one for all."""
    crates = ("--crate-all", f"--crate-scope={request.param}")
    with ExitStack() as stack:
        yield lambda *args, **how: stack.enter_context(session(pytester.path, *crates, *args, **how))


@pytest.mark.parametrize("statement", ["breakpoint()", "pytest.set_trace()", "import pdb; pdb.set_trace()"])
def test_a_breakpoint(pytester: pytest.Pytester, start: Start, statement: str) -> None:
    """A breakpoint opens the prompt at its line, in the crate; the test goes on from there, its timeout stopped."""
    pytester.makepyfile(
        f"""
        import os, socket, time, pytest
        @pytest.fixture
        def inner(): yield "of the fixture"; print("torn down")
        @pytest.mark.crate(timeout=1.5)
        def test_stops(inner):
            local = "of the body"; print("said before")
            {statement}
            assert local == "changed"
        def test_after(): pass
        """
    )
    run = start("-v")
    run.expect(r"IO-capturing turned off")
    run.expect(r"\(Pdb\) ")
    run.type("p local, inner, socket.gethostname()\r")
    run.expect(r"\('of the body', 'of the fixture', 'crate'\)")
    run.type("import time; time.sleep(2); print('sle' + 'pt')\r")
    run.expect("slept")
    run.type("local = 'changed'\r")
    run.expect(r"\(Pdb\) ")
    run.type("c\r")
    run.expect(r"PDB continue \(IO-capturing resumed\)")
    status, rest = run.ends()
    assert status == 0
    assert "2 passed" in rest
    assert "over a limit" in rest


def test_pdb_on_a_failure(pytester: pytest.Pytester, start: Start) -> None:
    """--pdb opens the prompt where a test failed, in the crate, below the line that says so; q ends the run."""
    pytester.makepyfile(
        """
        import socket
        def test_fails():
            local = socket.gethostname()
            assert local == "outside"
        def test_never(): pass
        """
    )
    run = start("--pdb")
    run.expect(r"test_pdb_on_a_failure.py F")
    run.expect(r"(?s)entering PDB.*> .*test_pdb_on_a_failure.py\(4\)test_fails\(\)")
    run.expect(r"\(Pdb\) ")
    run.type("p local\r")
    run.expect("'crate'")
    run.type("q\r")
    status, rest = run.ends()
    assert status == pytest.ExitCode.INTERRUPTED, rest
    assert "Exit: Quitting debugger" in rest
    assert "1 failed" in rest
    assert rest.count("(Pdb)") == 1  # where q was typed


def test_pdb_in_each_phase(pytester: pytest.Pytester, start: Start) -> None:
    """--pdb stops in set-up, body and tear-down, once each, with the clock stopped; c goes on."""
    pytester.makepyfile(
        """
        import pytest
        pytestmark = pytest.mark.crate(timeout=1.5)
        @pytest.fixture
        def up(): raise OSError("up")
        @pytest.fixture
        def down(): yield; raise OSError("down")
        def test_setup(up): pass
        def test_teardown(down): pass
        def test_after(): pass
        """
    )
    run = start("--pdb")
    for words in ("up", "down"):
        run.expect(f"OSError: {words}")
        run.expect(r"\(Pdb\) ")
        run.type("import time; time.sleep(2); print('sle' + 'pt')\r")
        run.expect("slept")
        run.type("c\r")
    status, rest = run.ends()
    assert status == pytest.ExitCode.TESTS_FAILED
    assert "2 passed, 2 errors" in rest


def test_trace(pytester: pytest.Pytester, start: Start) -> None:
    """--trace stops at the first line of each test."""
    pytester.makepyfile("def test_one():\n    value = 1\n    assert value\ndef test_two():\n    assert 1\n")
    run = start("--trace")
    run.expect(r"test_trace.py\(2\)test_one\(\)")
    run.type("n\r")
    run.expect(r"test_trace.py\(3\)test_one\(\)")
    run.type("c\r")
    run.expect(r"test_trace.py\(5\)test_two\(\)")
    run.expect(r"\(Pdb\) ")
    run.type("c\r")
    status, rest = run.ends()
    assert status == 0
    assert "2 passed" in rest


def test_interrupt_at_the_prompt(pytester: pytest.Pytester, start: Start) -> None:
    """Ctrl-C at the prompt is the debugger's: it says so and asks again; after it, Ctrl-C is pytest's."""
    pytester.makepyfile(
        """
        import os, time
        def test_stops():
            breakpoint()
            os.write(1, b"go" + b"ing on")  # the signal may come at once, and no print() is to be in its way
            time.sleep(60)
        def test_never(): pass
        """
    )
    run = start("-s")
    run.expect(r"\(Pdb\) ")
    run.await_reader()
    run.type("\x03")
    run.expect(r"--KeyboardInterrupt--")
    run.expect(r"\(Pdb\) ")
    run.type("c\r")
    run.expect("going on")
    run.type("\x03")
    status, rest = run.ends()
    assert status == pytest.ExitCode.INTERRUPTED, rest
    assert "KeyboardInterrupt" in rest


def test_a_prompt_that_nobody_answers(pytester: pytest.Pytester, start: Start) -> None:
    """Ctrl-C after the prompt may open pdb's own, where the test is killed in the end; the terminal is as it was."""
    pytester.makepyfile(
        """
        import os, time
        def test_stops():
            breakpoint()
            os.write(1, b"go" + b"ing on")
            end = time.monotonic() + 60
            while time.monotonic() < end: time.sleep(0.01)
        """
    )
    run = start("-s")
    run.expect(r"\(Pdb\) ")
    run.await_reader()
    run.type("c\r")
    run.expect("going on")
    run.type("\x03")
    run.expect(r"Program interrupted.*(?s:.)*\(Pdb\) ")
    status, rest = run.ends()
    assert status == pytest.ExitCode.INTERRUPTED, rest


@pytest.mark.parametrize("options", [["-s"], []], ids=["-s", "captured"])
def test_stop_at_the_prompt(pytester: pytest.Pytester, start: Start, options: list[str]) -> None:
    """Ctrl-Z at the prompt stops pytest and the debugger; keys are the shell's until the job goes on."""
    pytester.makepyfile("def test_stops():\n    local = 'of the body'\n    breakpoint()\n")
    run = start(*options, by_shell=True)
    run.expect(r"\(Pdb\) ")
    for typed in ("first", "second"):
        run.await_reader()
        run.type("\x1a")
        run.expect(r"\$ ")
        run.type(f"{typed}\r")
        run.expect(f"stopped; shell read '{typed}'")
        run.type("p local\r")
        run.expect("'of the body'")
        run.expect(r"\(Pdb\) ")
    run.type("c\r")
    status, rest = run.ends()
    assert status == 0, rest
    assert "1 passed" in rest


def test_killed_at_the_prompt(pytester: pytest.Pytester, start: Start) -> None:
    """When the debugger is killed at its prompt, the terminal is as it was, and the test has failed."""
    pytester.makepyfile("import os\ndef test_stops():\n    breakpoint()\ndef test_after(): pass\n")
    run = start()
    run.expect(r"\(Pdb\) ")
    run.type("os.kill(os.getpid(), 9)\r")
    status, rest = run.ends()
    assert status == pytest.ExitCode.TESTS_FAILED
    assert "killed by SIGKILL before it could report" in rest
    assert "1 failed, 1 passed" in rest


def test_a_breakpoint_in_a_hook(pytester: pytest.Pytester, start: Start) -> None:
    """A breakpoint in a conftest file's hook stops once, in the crate."""
    pytester.makeconftest("def pytest_runtest_call(item):\n    breakpoint()\n    del item\n")
    pytester.makepyfile("def test_one(): pass\n")
    run = start()
    run.expect(r"\(Pdb\) ")
    run.type("import socket; print(socket.gethostname())\r")
    run.expect("crate\r\n")
    run.type("c\r")
    status, rest = run.ends()
    assert status == 0
    assert rest.count("(Pdb)") == 1  # where c was typed


def test_quit(pytester: pytest.Pytester, start: Start) -> None:
    """q at a breakpoint ends the run as in a plain one; what wider fixtures have to do is done."""
    pytester.makepyfile(
        """
        import pytest
        @pytest.fixture(scope="session", autouse=True)
        def wide(): yield; print("wide down", flush=True)
        def test_stops():
            breakpoint()
            x = 1
        def test_never(): pass
        """
    )
    run = start("-s")
    run.expect(r"\(Pdb\) ")
    run.type("q\r")
    status, rest = run.ends()
    assert status == pytest.ExitCode.INTERRUPTED, rest
    assert "wide down" in rest
    assert "Exit: Quitting debugger" in rest


def test_reading_the_keyboard(pytester: pytest.Pytester, start: Start) -> None:
    """With -s a test can ask a question on the terminal."""
    pytester.makepyfile("def test_asks():\n    assert input('who? ') == 'me'\n")
    run = start("-s")
    run.expect(r"who\? ")
    run.type("me\r")
    assert run.ends()[0] == 0
