"""The terminal's settings are a body's to change, and after its test they are as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.features.on_terminal import Session, session

Start = Callable[..., Session]

HELPERS = """
import os, termios, pytest
def terminal():
    return next(number for number in range(60) if os.isatty(number))
def local(*off):
    settings = termios.tcgetattr(terminal())
    for flag in off: settings[3] &= ~flag
    if off: termios.tcsetattr(terminal(), termios.TCSANOW, settings)
    return settings[3]
"""


@pytest.fixture(params=["function", "module"])
def start(pytester: pytest.Pytester, request: pytest.FixtureRequest) -> Iterator[Start]:
    """Start pytest on a terminal, with every test in a crate: one each, or one for all."""
    crates = ("--crate-all", f"--crate-scope={request.param}")
    with ExitStack() as stack:
        yield lambda *args: stack.enter_context(session(pytester.path, *crates, *args))


@pytest.mark.parametrize("capture", ["fd", "sys", "no"])
def test_settings_are_set_back(pytester: pytest.Pytester, start: Start, capture: str) -> None:
    """What a test sets is so until it has ended, in all of its phases, and not in the next one, nor after the run."""
    pytester.makepyfile(
        HELPERS
        + """
ALL = termios.ECHO | termios.ICANON | termios.ISIG
@pytest.fixture
def quiet(): local(termios.ECHO)
def test_sets(quiet):
    assert not local() & termios.ECHO
    settings = termios.tcgetattr(terminal())
    settings[1] &= ~termios.OPOST
    termios.tcsetattr(terminal(), termios.TCSANOW, settings)
    local(ALL)
def test_next():
    assert local() & ALL == ALL
    assert termios.tcgetattr(terminal())[1] & termios.OPOST
def test_killed():
    local(ALL)
    os.kill(os.getpid(), 9)
"""
    )
    status, rest = start(f"--capture={capture}").ends()
    assert "1 failed, 2 passed" in rest
    assert status == 1


def test_of_a_wider_fixture(pytester: pytest.Pytester, start: Start) -> None:
    """What a wider fixture has set is what is set back to."""
    pytester.makepyfile(
        HELPERS
        + """
@pytest.fixture(scope="module")
def quiet():
    before = termios.tcgetattr(terminal())
    local(termios.ECHO)
    yield
    assert local() & termios.ISIG
    termios.tcsetattr(terminal(), termios.TCSANOW, before)
def test_before(): assert local() & termios.ECHO
def test_sets(quiet): local(termios.ISIG)
def test_next(quiet):
    assert not local() & termios.ECHO
    assert local() & termios.ISIG
"""
    )
    status, rest = start().ends()
    assert "3 passed" in rest
    assert status == 0


def test_output_is_suspended(pytester: pytest.Pytester, start: Start) -> None:
    """A body that suspends the terminal's output does not have pytest wait for ever."""
    pytester.makepyfile(
        HELPERS
        + """
@pytest.fixture
def suspended(): termios.tcflow(terminal(), termios.TCOOFF)
def test_in_set_up(suspended): pass
def test_in_call(): termios.tcflow(terminal(), termios.TCOOFF)
"""
    )
    status, rest = start("-v").ends()
    assert "2 passed" in rest
    assert status == 0
