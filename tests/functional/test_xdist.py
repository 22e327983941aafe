"""Under pytest-xdist the report is the same as in one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.inner import RunInner

pytestmark = pytest.mark.needs("xdist")

SUITE = """
import os, pytest, warnings
pytestmark = pytest.mark.crate(memory="64m")
@pytest.fixture(scope="module", params=["a", "b"])
def wide(request): yield request.param
@pytest.mark.parametrize("number", range(4))
def test_passes(number, record_property): record_property("object", object); print("out")
def test_fails(wide): assert 0
def test_oom(): bytearray(200 << 20)
def test_crashes(): os._exit(3)
def test_skips(): pytest.skip("not now")
@pytest.mark.xfail
def test_xfails(): assert 0
def test_warns(): warnings.warn("careful")
def test_drives(crate_sandbox): crate_sandbox.run(["true"])
def test_subtests(subtests):
    for number in range(3):
        with subtests.test(number=number): assert number != 1
"""


def _kept(path: Path) -> list[Any]:
    """Return the report's tests without what varies between runs: numbers and workers."""
    tests = json.loads(path.read_text())["tests"]
    for test in tests:
        del test["worker"]
        for crate in test["crates"]:
            crate["usage"] = sorted(crate["usage"])
    return list(tests)


def _rows(run: Any) -> list[list[str]]:
    lines = run.result.outlines
    start = next(number for number, line in enumerate(lines) if line.strip("=") == " crates ")
    return sorted([line.split()[0], *line.split()[-1:]] for line in lines[start:] if "::" in line.split(" ")[0])


@pytest.mark.parametrize("dist", ["load", "loadscope", "worksteal"])
def test_same_report(pytester: pytest.Pytester, run_inner: RunInner, dist: str) -> None:
    """Table and JSON report of -n 2 are those of -n 0, but for the figures and the workers' names."""
    pytester.makepyfile(test_suite=SUITE)
    one, two = pytester.path / "one.json", pytester.path / "two.json"
    alone = run_inner("--crate-top=0", f"--crate-report={one}", "-n0")
    spread = run_inner("--crate-top=0", f"--crate-report={two}", "-n2", f"--dist={dist}")
    assert _kept(two) == _kept(one)
    assert len(_kept(one)) == 13
    assert [row[0] for row in _rows(spread)] == [row[0] for row in _rows(alone)]
    workers = {test["worker"] for test in json.loads(two.read_text())["tests"]}
    assert workers <= {"gw0", "gw1"}
    assert len([line for line in spread.result.outlines if line.startswith("crate: cgroup v")]) == 1
    outcomes = {name: count for name, count in spread.outcomes().items() if name != "warnings"}
    assert outcomes == {name: count for name, count in alone.outcomes().items() if name != "warnings"}


def test_killed_worker(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A worker killed by a plain test costs that test alone; every crate that ended is in the report."""
    pytester.makepyfile(
        """
        import os, pytest
        @pytest.mark.parametrize("number", range(6))
        @pytest.mark.crate
        def test_crated(number): pass
        def test_kills(): os.kill(os.getpid(), 9)
        @pytest.mark.parametrize("number", range(6))
        @pytest.mark.crate
        def test_later(number): pass
        """
    )
    path = pytester.path / "report.json"
    run = run_inner("-n2", f"--crate-report={path}")
    assert run.outcomes() == {"passed": 12, "failed": 1}
    tests = json.loads(path.read_text())["tests"]
    assert len(tests) == 12
    assert all(test["crates"][0]["usage"]["memory_peak_bytes"] > 0 for test in tests)


def test_garbage_on_every_descriptor(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A body that writes to all that it has inherited, or reads it, spoils its own report, not its worker's words."""
    pytester.makepyfile(
        """
        import fcntl, os
        import pytest

        pytestmark = pytest.mark.crate(timeout=20)

        def test_writes():
            for fd in range(3, 64):
                try: os.write(fd, b"\\x02\\x00\\x00\\x02{}" * 64)
                except OSError: pass

        def test_reads():
            for fd in range(3, 64):
                try:
                    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK)
                    os.read(fd, 1 << 20)
                except OSError: pass

        def test_after(): pass
        """
    )
    run = run_inner("-n", "1")
    assert run.of("test_writes")["outcome"] == "failed"
    assert "wrote to its report's descriptor" in run.of("test_writes")["longrepr"]
    assert run.of("test_after")["outcome"] == "passed"
    assert len(run.reports) == 9


WARNS = """
import os, warnings
from pathlib import Path
import pytest

class Known(UserWarning):
    pass

def test_local():
    class Local(DeprecationWarning): pass
    warnings.warn(Local("a local one"))
def test_forged():
    made = type("system", (UserWarning,), {"__module__": "os"})
    warnings.warn(made(f"touch {Path(__file__).parent}/called"))
def test_known(): warnings.warn("an ordinary one", FutureWarning)
def test_fails(): assert 0
"""


def test_a_warning_is_no_call(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """The process that shows it imports the module of its class, and calls what is there by that name: it is told only
    of classes that are there. pytest-xdist alone ends the run."""
    pytester.makepyfile(test_suite=WARNS)
    run = run_inner("--crate-all", "-n2")
    assert run.outcomes() == {"passed": 3, "failed": 1, "warnings": 3}, run.text
    assert not (pytester.path / "called").exists()
    assert "DeprecationWarning: test_local.<locals>.Local: a local one" in run.text
    assert "UserWarning: system: touch " in run.text
    assert "FutureWarning: an ordinary one" in run.text
