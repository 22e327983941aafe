"""``--crate-debug`` shows where the time of crates goes, and leaves no step out."""

from __future__ import annotations

import json
import re

import pytest

from pytest_crate.sandbox.steps import STEPS
from tests.inner import RunInner

# The clock of pytest's side runs from the item's own set-up to its tear-down; these are around them.
AROUND = """
import json, os, time, pytest
began = {}
@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    began[item.nodeid] = time.monotonic_ns()
    return (yield)
def pytest_runtest_logreport(report):
    if report.when == "teardown":
        took = (time.monotonic_ns() - began[report.nodeid]) // 1000
        with open(os.environ["CRATE_STEPS"], "a") as file:
            print(json.dumps({**report.crate["steps"], "took": took}), file=file)
"""


def test_every_step_is_there(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Each process's steps are those of the table, and pytest's are the whole of the time that the crate took."""
    pytester.makepyfile(
        conftest=AROUND, test_it="import pytest\n@pytest.mark.parametrize('n', range(5))\ndef test_it(n): pass\n"
    )
    path = pytester.path / "steps"
    run = run_inner("--crate-all", "--crate-debug", env={"CRATE_STEPS": str(path)})
    assert run.outcomes() == {"passed": 5}
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(found) == 5
    for spent in found:
        took = spent.pop("took")
        assert {process: tuple(steps) for process, steps in spent.items()} == {
            process: tuple(sorted(names, key=list(spent[process]).index)) for process, names in STEPS.items()
        }
        # What is left is hooks before and after; on a busy machine others may have their turn there.
        assert took * 0.9 - 100_000 < sum(spent["pytest"].values()) <= took
    table = run.text.partition("crate steps (median ms, crates):")[2]
    shown = re.findall(r"^ +(\S.*?) +\d+\.\d{3} +5$", table, re.MULTILINE)
    assert sorted(shown) == sorted([*STEPS, *(step for names in STEPS.values() for step in names)])


@pytest.mark.parametrize("args", [("--crate-scope=module",), ("-n2",)])
def test_sharing_and_workers(pytester: pytest.Pytester, run_inner: RunInner, args: tuple[str, ...]) -> None:
    """A test that goes on in a crate has no steps of its making; workers' figures are summed up in one table."""
    pytester.makepyfile("import pytest\n@pytest.mark.parametrize('n', range(4))\ndef test_it(n): pass\n")
    run = run_inner("--crate-all", "--crate-debug", *args)
    assert run.outcomes() == {"passed": 4}
    assert run.text.count("crate steps (median ms, crates):") == 1
    made = 1 if "-n2" not in args else 4
    assert re.search(rf"^    mount the root +\d+\.\d{{3}} +{made}$", run.text, re.MULTILINE)
    assert re.search(r"^    wait for the call's report +\d+\.\d{3} +4$", run.text, re.MULTILINE)


def test_off(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Without it nothing of the kind is noted or printed."""
    pytester.makepyfile("def test_it(): pass\n")
    pytester.makeconftest(
        "def pytest_runtest_logreport(report):\n    assert 'steps' not in getattr(report, 'crate', {})\n"
    )
    run = run_inner("--crate-all")
    assert run.outcomes() == {"passed": 1}
    assert "crate steps" not in run.text
