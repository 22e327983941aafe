"""pytest-xdist: every way of sharing tests out, a worker that dies, an end after the first failures."""

from __future__ import annotations

import pytest

from tests.comparing import without_varying
from tests.inner import InnerRun, RunInner

SUITE = """
import os, pytest

@pytest.fixture(scope="module")
def wide(worker_id): return worker_id

class TestOne:
    @pytest.mark.parametrize("number", range(4))
    def test_passes(self, number, wide): assert wide.startswith("gw")
    def test_fails(self): assert [1, 2] == [1, 3]

class TestTwo:
    def test_skips(self): pytest.skip("not now")
    @pytest.mark.xfail
    def test_xfails(self): assert 0
    def test_worker(self, worker_id, testrun_uid):
        assert os.environ["PYTEST_XDIST_WORKER"] == worker_id and testrun_uid
@pytest.fixture
def breaks():
    yield
    raise ValueError("afterwards")
def test_error(breaks): print("said")
"""


def _sorted(run: InnerRun) -> list[tuple[object, ...]]:
    keys = ("nodeid", "when", "outcome", "wasxfail", "longrepr", "sections")
    rows = [tuple(without_varying(str(report[key])) for key in keys) for report in run.reports]
    return sorted(tuple(part.replace("gw1", "gw0") for part in row) for row in rows)


@pytest.mark.parametrize("dist", ["load", "loadscope", "loadfile", "worksteal"])
def test_every_distribution(pytester: pytest.Pytester, run_inner: RunInner, dist: str) -> None:
    """Every test's reports are the same, whichever worker ran it."""
    pytester.makepyfile(test_one=SUITE, test_two=SUITE)
    options = ("-n2", f"--dist={dist}")
    plain = run_inner(*options, plugins=["xdist"])
    crated = run_inner("--crate-all", *options, plugins=["xdist"], way="crated")
    assert _sorted(crated) == _sorted(plain)
    assert crated.outcomes() == plain.outcomes() == {"passed": 12, "failed": 2, "skipped": 2, "xfailed": 2, "errors": 2}
    assert crated.ret == plain.ret == 1
    assert all(report["crates"] == ["body"] for report in crated.reports if report["when"] == "teardown")


def test_worker_dies(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A body that kills its parent, the worker: plain it takes the worker down, in a crate there is nobody to kill."""
    pytester.makepyfile(
        """
        import os, pytest, signal
        @pytest.mark.parametrize("number", range(4))
        def test_before(number): pass
        def test_kills_itself(): os.kill(os.getpid(), signal.SIGKILL)
        @pytest.mark.parametrize("number", range(4))
        def test_after(number): pass
        """
    )
    plain = run_inner("-n2", plugins=["xdist"])
    crated = run_inner("--crate-all", "-n2", plugins=["xdist"], way="crated")
    assert plain.outcomes() == crated.outcomes() == {"passed": 8, "failed": 1}
    assert "crashed while running" in plain.text
    assert "crashed while running" not in crated.text
    assert "the test's process was killed by SIGKILL" in crated.of("test_kills_itself")["longrepr"]


def test_worker_dies_outside_of_a_crate(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A wider fixture kills the worker: the test is failed and another worker goes on, as without crates."""
    pytester.makepyfile(
        """
        import os, pytest, signal
        @pytest.fixture(scope="module")
        def kills(): os.kill(os.getpid(), signal.SIGKILL)
        @pytest.mark.parametrize("number", range(4))
        def test_before(number): pass
        def test_needs(kills): pass
        @pytest.mark.parametrize("number", range(4))
        def test_after(number): pass
        """
    )
    plain = run_inner("-n2", plugins=["xdist"])
    crated = run_inner("--crate-all", "-n2", plugins=["xdist"], way="crated")
    assert plain.outcomes() == crated.outcomes() == {"passed": 8, "failed": 1}
    for run in (plain, crated):
        assert "crashed while running" in run.text
        assert run.ret == pytest.ExitCode.TESTS_FAILED
    ends = [report for report in crated.reports if report["when"] == "teardown"]
    assert [report["crates"] for report in ends] == [["body"]] * 8


def test_maxfail(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """--maxfail ends the run; no test that was begun is left without its reports."""
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.parametrize("number", range(40))
        def test_fails(number): assert number < 0
        """
    )
    run = run_inner("--crate-all", "-n2", "--maxfail=3", plugins=["xdist"], way="crated")
    assert run.ret == 2
    assert "stopping after 3 failures" in run.text
    phases: dict[str, list[str]] = {}
    for report in run.reports:
        phases.setdefault(report["nodeid"], []).append(report["when"])
    assert all(found == ["setup", "call", "teardown"] for found in phases.values())
    assert 3 <= len(phases) < 40
