"""The steps of a crate's life have the names that the code gives them, and no gap between them."""

from __future__ import annotations

import ast
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pytest_crate
from pytest_crate.report.profile import profile_lines
from pytest_crate.sandbox import steps

NAMES = {step for names in steps.STEPS.values() for step in names}
SOURCES = [path for path in Path(pytest_crate.__file__).parent.rglob("*.py") if path.name != "steps.py"]


def _strings(node: ast.AST) -> Iterator[str]:
    for each in ast.walk(node):
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield each.value


def test_every_step_that_the_code_notes_has_its_place() -> None:
    """What is passed to a clock is a step of the table."""
    noted = {
        text
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "done"
        for argument in node.args
        for text in _strings(argument)
    }
    assert len(noted) > 20
    assert noted - {"setup", "call"} <= NAMES  # a phase's name, in a condition


def test_every_step_of_the_table_is_noted() -> None:
    """No step of the table is without its place in the code."""
    written = {text for path in SOURCES for text in _strings(ast.parse(path.read_text()))}
    assert NAMES - written == set()


def test_no_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step begins where the one before it ended; one that comes again is summed up; then the clock begins anew."""
    times = iter([1_000_000, 1_300_000, 2_000_000, 2_500_000, 9_000_000])
    monkeypatch.setattr(time, "monotonic_ns", lambda: next(times))
    clock = steps.Running()
    for step in ("a", "b", "a"):
        clock.done(step)
    assert clock.spent() == {"a": 800, "b": 700}
    clock.done("c")
    assert clock.spent() == {"c": 6500}


def test_a_clock_that_is_off() -> None:
    """It knows of nothing."""
    steps.OFF.done("a")
    assert steps.OFF.spent() == {}


def test_the_table() -> None:
    """Each step has its median over the crates that had it, below the median of the process's sums."""
    lines = profile_lines([{"pytest": {"fork": 1000, "plan": 500}}, {"pytest": {"fork": 3000}, "body": {}}])
    assert [line.split() for line in lines[1:]] == [
        ["pytest", "2.250", "2"],
        ["fork", "2.000", "2"],
        ["plan", "0.500", "1"],
    ]
