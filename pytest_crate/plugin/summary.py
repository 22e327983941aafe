"""Collects, in the process with the terminal, what every crate used; prints the summary and writes the JSON report."""

from __future__ import annotations

import sys
from typing import Any

import pytest


class Summary:
    """What became of the crates of the whole run, whichever worker ran them."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self._outcomes: dict[str, str] = {}
        self._data: list[tuple[str, str, dict[str, Any]]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # Only what comes with crates is looked at twice: without crates this must cost nothing.
        if report.when != "teardown":
            if report.when == "call" or not report.passed:
                self._outcomes[report.nodeid] = _outcome(report)
            return
        earlier = self._outcomes.pop(report.nodeid, "passed")
        data = getattr(report, "crate", None)
        if data is not None:
            outcome = "error" if report.failed and earlier in ("passed", "xpassed") else earlier
            self._data.append((report.nodeid, outcome, data))

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        path = self.config.getoption("crate_report")
        if not self._data and path is None:
            return
        from pytest_crate.report.document import json_report, write_report
        from pytest_crate.report.record import TestRecord
        from pytest_crate.report.table import summary

        records = [
            TestRecord.from_json({**data, "nodeid": nodeid, "outcome": outcome}) for nodeid, outcome, data in self._data
        ]
        if records:
            terminalreporter.section("crates")
            if self.config.getoption("numprocesses", None):
                terminalreporter.write_line(self._data[0][2]["header"])
            lines = summary(
                records,
                top=self.config.getoption("crate_top"),
                width=terminalreporter.screen_width if hasattr(terminalreporter, "screen_width") else 80,
                ascii_only=not _encodes(terminalreporter, "█…"),
            )
            for line in lines:
                for text, markup in line:
                    terminalreporter.write(text, **markup)
                terminalreporter.line("")
        if path is not None:
            host = self._data[0][2]["host"] if self._data else {}
            write_report(path, json_report(host, records))
            terminalreporter.write_line(f"crate report: {path}")


def _outcome(report: pytest.TestReport) -> str:
    expected = hasattr(report, "wasxfail")
    if report.passed:
        return "xpassed" if expected else "passed"
    if report.skipped:
        return "xfailed" if expected else "skipped"
    return "failed" if report.when == "call" else "error"


def _encodes(terminalreporter: pytest.TerminalReporter, text: str) -> bool:
    encoding = getattr(terminalreporter._tw._file, "encoding", None) or sys.getdefaultencoding()  # noqa: SLF001
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
