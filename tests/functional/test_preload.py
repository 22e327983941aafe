"""What many crates import is hinted at, and ``crate_preload`` imports it once."""

from __future__ import annotations

import json

import pytest

from tests.inner import RunInner

SLOW = (
    "import time, os\ntime.sleep(0.4)\nwith open(os.environ['CRATE_LOG'], 'a') as file: print(os.getpid(), file=file)\n"
)
SUITE = """
import pytest
@pytest.mark.parametrize("number", range(4))
def test_it(number):
    import slow
    from json import dumps
"""


@pytest.mark.parametrize("workers", ["-n0", "-n2"])
def test_hint(pytester: pytest.Pytester, run_inner: RunInner, workers: str) -> None:
    """The summary names the module, and the line that mends it; the JSON report has it, too; workers add up."""
    pytester.makepyfile(slow=SLOW, test_it=SUITE)
    path = pytester.path / "report.json"
    env = {"CRATE_LOG": "/dev/null"}
    run = run_inner("--crate-all", workers, f"--crate-report={path}", env=env)
    assert run.outcomes() == {"passed": 4}
    run.result.stdout.re_match_lines(
        [r"hint: 4 crates imported slow, \d{3,4} ms each; crate_preload = slow imports it once"]
    )
    (hint,) = json.loads(path.read_text())["hints"]
    assert (hint["kind"], hint["module"], hint["crates"]) == ("preload", "slow", 4)
    assert hint["import_usec"] >= 400_000


def test_a_module_whose_name_is_no_identifier(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """What a library imports by a name of that kind is its own affair: the test passes."""
    pytester.makepyfile(**{"data17-0-0": "import time\ntime.sleep(0.05)\n"})
    pytester.makepyfile(test_it="import importlib\ndef test_it(): importlib.import_module('data17-0-0')\n")
    run = run_inner("--crate-all")
    assert run.outcomes() == {"passed": 1}, run.text


def test_preload(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """It is imported once, in pytest's process; there is nothing to hint at then."""
    pytester.makepyfile(slow=SLOW, test_it=SUITE)
    pytester.makeini("[pytest]\ncrate_preload = slow\n")
    path, log = pytester.path / "report.json", pytester.path / "log"
    run = run_inner("--crate-all", f"--crate-report={path}", env={"CRATE_LOG": str(log)})
    assert run.outcomes() == {"passed": 4}
    assert len(log.read_text().split()) == 1
    assert "hint:" not in run.text
    assert json.loads(path.read_text())["hints"] == []


def test_not_without_crates(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Where no body rides in a crate, nothing is imported: not in a plain run, nor for a test that drives one."""
    pytester.makepyfile(slow=SLOW, test_it="def test_plain(): pass\ndef test_drives(crate_sandbox): pass\n")
    pytester.makeini("[pytest]\ncrate_preload = slow\n")
    log = pytester.path / "log"
    assert run_inner(env={"CRATE_LOG": str(log)}).outcomes() == {"passed": 2}
    assert not log.exists()


@pytest.mark.parametrize("workers", ["-n0", "-n2"])
def test_a_module_that_is_not_there(pytester: pytest.Pytester, run_inner: RunInner, workers: str) -> None:
    """The run stops before any test, and names it."""
    pytester.makepyfile(test_it="def test_it(): pass\n")
    pytester.makeini("[pytest]\ncrate_preload = crate_absent\n")
    run = run_inner("--crate-all", workers)
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    assert "crate_preload: 'crate_absent' can't be imported: ModuleNotFoundError" in run.result.stderr.str() + run.text
    assert not run.reports
