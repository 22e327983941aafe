"""JUnit XML and durations have the crate's own."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.inner import BothWays, RunInner

TESTS = """
import logging, sys, pytest
@pytest.fixture
def inner(): print("up"); yield; print("down"); logging.warning("down")
def test_passes(inner, record_property): record_property("a", "b"); print("out"); print("err", file=sys.stderr)
def test_fails(inner): logging.error("logged"); print("said"); assert 0
def test_skips(): pytest.skip("no")
@pytest.mark.xfail
def test_xfails(): assert 0
@pytest.fixture
def breaks(): yield; raise OSError
def test_error(breaks): assert 1
def test_ends(record_testsuite_property): record_testsuite_property("of", "suite"); print("\\x1b[31m \\x00 <&>")
"""


@pytest.mark.parametrize(
    "options",
    [
        "-o junit_family=xunit2 -o junit_logging=all",
        "-o junit_family=xunit1 -o junit_logging=system-out -o junit_log_passing_tests=false",
        "-o junit_logging=log -o junit_suite_name=own --junit-prefix=pre",
    ],
)
def test_families_and_logging(pytester: pytest.Pytester, both_ways: BothWays, options: str) -> None:
    """Of each family, with each kind of output, the XML is that of a plain run."""
    pytester.makepyfile(TESTS)
    run = both_ways(*options.split())
    assert "suite" in str(run.junit)


def test_times(pytester: pytest.Pytester, run_inner: RunInner, tmp_path: Path) -> None:
    """The XML's times, --durations and a report's duration are those of the phases in the crate."""
    pytester.makepyfile(
        """
        import time, pytest
        @pytest.fixture
        def slow(): time.sleep(0.25); yield; time.sleep(0.35)
        def test_slow(slow): time.sleep(0.45)
        """
    )
    run = run_inner("--crate-all", "--durations=3", "-vv", "-o", "junit_duration_report=call")
    lines = [line.split() for line in run.result.outlines if line.endswith("::test_slow") and "s " in line]
    shown = {phase: float(seconds.rstrip("s")) for seconds, phase, _ in lines}
    assert shown["setup"] >= 0.25
    assert shown["call"] >= 0.45
    assert shown["teardown"] >= 0.35
    (case,) = ET.parse(tmp_path / "plain.xml").iter("testcase")
    assert abs(float(case.attrib["time"]) - shown["call"]) < 0.02


def test_durations_are_the_crates(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """The duration of a report in pytest is, to the last digit, the one that it was made with in the crate."""
    pytester.makeconftest(
        """
        import os, socket, pytest
        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_makereport(item, call):
            report = yield
            report.made = [socket.gethostname(), report.duration]
            return report
        def pytest_runtest_logreport(report):
            print("made", report.when, *report.made, report.made[1] == report.duration)
        """
    )
    pytester.makepyfile("def test_it(tmp_path): pass\n")
    run = run_inner("--crate-all", "-s")
    made = [line.split("made ")[1].split() for line in run.result.outlines if "made " in line]
    assert [(when, host, same) for when, host, _, same in made] == [
        (when, "crate", "True") for when in ("setup", "call", "teardown")
    ]
