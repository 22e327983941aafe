"""Hypothesis: its database of examples, statistics, deadlines and health checks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.inner import FORGING, BothWays, RunInner

FAILING = """
import json, os, pathlib
from hypothesis import given, settings, strategies as st

@given(st.integers(0, 10**9))
def test_small(number):
    with (pathlib.Path(os.environ["SEEN"])).open("a") as file: file.write(f"{number}\\n")
    assert number < int(os.environ["MOST"])
"""


def test_a_failure_is_replayed(pytester: pytest.Pytester, run_inner: RunInner, tmp_path: Path) -> None:
    """A failure found in a crate is the first thing that the next run tries: in a crate, and without one."""
    pytester.makepyfile(FAILING)
    options = (f"--crate-mount={tmp_path / 'seen'}:rw",)
    (tmp_path / "seen").mkdir()
    env = {"SEEN": str(tmp_path / "seen" / "numbers"), "MOST": "12345"}

    def tried() -> list[int]:
        numbers = Path(env["SEEN"])
        found = [int(line) for line in numbers.read_text().split()]
        numbers.unlink()
        return found

    first = run_inner("--crate-all", *options, way="crated", plugins=["hypothesispytest"], env=env)
    assert first.outcomes() == {"failed": 1}
    assert "number=12345" in first.of("test_small")["longrepr"]
    assert tried()[0] != 12_345
    assert list((pytester.path / ".hypothesis" / "examples").iterdir())
    again = run_inner("--crate-all", *options, way="crated", plugins=["hypothesispytest"], env=env)
    assert again.outcomes() == {"failed": 1}
    assert tried()[0] == 12_345
    plain = run_inner(*options, plugins=["hypothesispytest"], env=env)
    assert plain.outcomes() == {"failed": 1}
    assert tried()[0] == 12_345


def test_what_was_mended_is_forgotten(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """An example that fails no longer is deleted from the database by a run in crates."""
    pytester.makepyfile(test_it=FAILING)
    env = {"SEEN": "/dev/null", "MOST": "12345"}
    plain = run_inner(plugins=["hypothesispytest"], env=env)
    assert plain.outcomes() == {"failed": 1}
    examples = pytester.path / ".hypothesis" / "examples"
    stored = [path for path in examples.rglob("*") if path.is_file()]
    assert stored
    mended = {**env, "MOST": str(10**10)}
    shutil.copytree(examples, examples.with_name("before"))
    left = []
    for way in ((), ("--crate-all",)):
        run = run_inner(*way, plugins=["hypothesispytest"], env=mended)
        assert run.outcomes() == {"passed": 1}
        left.append({path for path in stored if path.exists()})
        shutil.rmtree(examples)
        shutil.copytree(examples.with_name("before"), examples)
    # Which it tries again, of many, and so forgets, is left to chance.
    assert left[0] < set(stored)
    assert left[1] < set(stored)


def test_reports_are_the_same(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """Failures, notes, statistics, deadlines, health checks, classes, assume, examples, state machines."""
    pytester.makepyfile(
        """
        import time, unittest, pytest
        from hypothesis import HealthCheck, assume, example, given, note, settings, strategies as st, target
        from hypothesis.stateful import RuleBasedStateMachine, rule

        settings.register_profile("fixed", derandomize=True, database=None, print_blob=True)
        settings.load_profile("fixed")

        @given(st.lists(st.integers()))
        def test_fails(numbers):
            note(f"noted {len(numbers)}")
            assert sum(numbers) < 100
        @given(st.integers(), st.text())
        def test_passes(number, text): assume(number != 3); target(float(min(number, 10)))
        @settings(deadline=50, max_examples=5)
        @given(st.just(1))
        def test_deadline(number): time.sleep(0.3)
        @given(st.integers())
        def test_function_scoped(tmp_path, number): pass
        @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
        @given(st.integers())
        def test_suppressed(tmp_path, number): pass
        @given(st.integers().filter(lambda number: False))
        def test_filters_too_much(number): pass
        @pytest.fixture(scope="module")
        def wide(): return 1
        class TestClass:
            @given(number=st.integers(1))
            @example(number=5)
            def test_method(self, wide, number): assert number >= wide
        class TestCase(unittest.TestCase):
            @given(st.integers(1))
            def test_case(self, number): self.assertNotEqual(number, 77)
        class Machine(RuleBasedStateMachine):
            def __init__(self): super().__init__(); self.count = 0
            @rule(step=st.integers(1, 3))
            def add(self, step): self.count += step; assert self.count < 8
        TestMachine = Machine.TestCase
        @given(st.data())
        def test_two_errors(data):
            number = data.draw(st.integers())
            if number > 100: raise ValueError("big")
            if number < -100: raise TypeError("small")
        """
    )
    # pytest 8 shows a frame of Hypothesis' own below a missed deadline; in long tracebacks that has times in it.
    run = both_ways("-v", *(["--tb=short"] if pytest.version_tuple < (9,) else []), plugins=["hypothesispytest"])
    assert run.outcomes() == {"passed": 4, "failed": 6}


def test_statistics(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """--hypothesis-show-statistics has the same lines, but for the times in them."""
    pytester.makepyfile(
        """
        from hypothesis import given, settings, strategies as st, event
        @settings(derandomize=True, database=None, max_examples=20)
        @given(st.integers())
        def test_events(number): event("even" if number % 2 == 0 else "odd")
        """
    )
    found = []
    for way in ((), ("--crate-all",)):
        run = run_inner(*way, "--hypothesis-show-statistics", plugins=["hypothesispytest"])
        lines = [line.strip() for line in run.result.outlines]
        start = next(number for number, line in enumerate(lines) if line.strip("=") == " Hypothesis Statistics ")
        found.append(
            [line for line in lines[start:] if line.endswith(("%, odd", "%, even")) or "Stopped because" in line]
        )
    assert found[0]
    assert found[1] == found[0]


def test_a_custom_database(pytester: pytest.Pytester, run_inner: RunInner, tmp_path: Path) -> None:
    """A database of the project's own gets what was saved in a crate, though it lives in pytest's process."""
    pytester.makeconftest(
        """
        import json, os
        from hypothesis import settings
        from hypothesis.database import InMemoryExampleDatabase
        kept = InMemoryExampleDatabase()
        settings.register_profile("own", database=kept)
        settings.load_profile("own")
        def pytest_unconfigure():
            with open(os.environ["KEPT"], "w") as file: json.dump(sum(map(len, kept.data.values())), file)
        """
    )
    pytester.makepyfile(FAILING)
    counts = []
    for way in ((), ("--crate-all",)):
        env = {"KEPT": str(tmp_path / "kept"), "SEEN": "/dev/null", "MOST": "12345"}
        run = run_inner(*way, plugins=["hypothesispytest"], env=env)
        assert run.outcomes() == {"failed": 1}
        counts.append(json.loads((tmp_path / "kept").read_text()))
    assert min(counts) > 0


@pytest.mark.parametrize(
    "added",
    [
        {"_hypothesis_failing_examples": "x"},
        {"_hypothesis_failing_examples": '["/dev/zero", "a", "b"]'},
        {"_hypothesis_failing_examples": '["/etc/passwd", "root", "toor"]'},
        {"_hypothesis_stats": 5},
    ],
    ids=str,
)
def test_what_is_no_report_of_its(pytester: pytest.Pytester, run_inner: RunInner, added: dict[str, object]) -> None:
    """What Hypothesis' plugin would read, or stumble over, at the run's end, fails the test that sent it."""
    pytester.makepyfile(f"import hypothesis\n{FORGING.format(added=added)}")
    run = run_inner("--crate-all", "--hypothesis-show-statistics", plugins=["hypothesispytest"])
    assert run.outcomes() == {"passed": 1, "failed": 1}, run.text
    assert "what hypothesis takes from a report" in run.text
    assert "Traceback" not in run.result.stderr.str()
