"""Collects, in the process with the terminal, what every crate used; prints the summary and writes the JSON report."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_crate.report.record import TestRecord


class Summary:
    """What became of the crates of the whole run, whichever worker ran them."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self._records: list[TestRecord] = []
        self._specs: dict[str, dict[str, Any]] = {}
        self._host: dict[str, Any] = {}
        self._header = ""
        self._imports: list[dict[str, int]] = []
        self._steps: list[dict[str, dict[str, int]]] = []
        self._report_line: tuple[str, bool] | None = None

    def watch(self) -> None:
        """Look at every report from now on: in a run that has no crates this would be a price for nothing."""
        if not self.config.pluginmanager.hasplugin(_Watch.NAME):
            self.config.pluginmanager.register(_Watch(self._add), _Watch.NAME)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self) -> None:
        """Watch the reports of xdist's workers, whichever of them has crates."""
        self.watch()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Raise what an xdist worker found wrong with its crates: by itself, xdist would say nothing of it."""
        messages = getattr(node, "workeroutput", {}).get("crate_usage_error")
        if messages:
            raise pytest.UsageError(*messages)

    def _add(self, nodeid: str, outcome: str, data: dict[str, Any]) -> None:
        from pytest_crate.report.record import TestRecord

        self._host, self._header = data["host"], data["header"]
        if "imports" in data:
            self._imports.append(data["imports"])
        if "steps" in data:
            self._steps.append(data["steps"])
        # Thousands of tests share a few specs: one copy of each is kept.
        spec = self._specs.setdefault(repr(data["spec"]), data["spec"])
        self._records.append(TestRecord.from_json({**data, "spec": spec, "nodeid": nodeid, "outcome": outcome}))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the JSON report, before the summary tells where it is."""
        path = self.config.getoption("crate_report")
        if path is None or self.config.getoption("collectonly"):
            return
        from pytest_crate.errors import CrateError
        from pytest_crate.report.document import json_report, write_report
        from pytest_crate.report.hints import preload_hints

        try:
            write_report(path, json_report(self._host, self._records, preload_hints(self._imports)))
        except CrateError as error:
            # What asked for the report, a CI job for instance, must not take the run for a success.
            self._report_line = (str(error), False)
            if session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
        else:
            self._report_line = (f"crate report: {path}", True)

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._records:
            self._print_table(terminalreporter)
        if self._report_line is not None:
            line, written = self._report_line
            terminalreporter.write_line(line, **({} if written else {"red": True, "bold": True}))

    def _print_table(self, terminalreporter: pytest.TerminalReporter) -> None:
        from pytest_crate.report.table import summary

        terminalreporter.section("crates")
        if self.config.getoption("numprocesses", None):
            # The workers' headers are not shown.
            terminalreporter.write_line(self._header)
        writer = self.config.get_terminal_writer()
        lines = summary(
            self._records,
            top=self.config.getoption("crate_top"),
            width=writer.fullwidth,
            ascii_only=not _can_write("█…"),
        )
        for line in lines:
            for text, markup in line:
                terminalreporter.write(text, **markup)
            terminalreporter.line("")
        if self._imports:
            from pytest_crate.report.hints import preload_hints

            for hint in preload_hints(self._imports)[:1]:
                terminalreporter.write_line(str(hint))
        if self._steps:
            from pytest_crate.report.profile import profile_lines

            for text in profile_lines(self._steps):
                terminalreporter.write_line(text)


class _Watch:
    """Takes from each test's reports what came with crates."""

    NAME = "crate-watch"

    def __init__(self, add: Callable[[str, str, dict[str, Any]], None]) -> None:
        """
        :param add: is given a test's name, outcome and what its crates used.
        """
        self._outcomes: dict[str, str] = {}
        self._add = add

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> Generator[None, object, object]:
        result = yield
        if report.when != "teardown":
            if report.when == "setup":  # of a test that a plugin tries again: this is another try
                self._outcomes.pop(report.nodeid, None)
            # It may log more reports than its own: none of them makes good a failure.
            elif self._outcomes.get(report.nodeid) in ("failed", "error"):
                return result
            if report.when == "call" or not report.passed:
                self._outcomes[report.nodeid] = _outcome(report)
            return result
        earlier = self._outcomes.pop(report.nodeid, "passed")
        data = getattr(report, "crate", None)
        if data is not None:
            outcome = "error" if report.failed and earlier in ("passed", "xpassed") else earlier
            self._add(report.nodeid, outcome, data)
            # pytest keeps every report to the end. The other plugins have seen it; what it carried is kept here.
            del report.crate
        return result


def _outcome(report: pytest.TestReport) -> str:
    expected = hasattr(report, "wasxfail")
    if report.passed:
        return "xpassed" if expected else "passed"
    if report.skipped:
        return "xfailed" if expected else "skipped"
    return "failed" if report.when == "call" else "error"


def _can_write(text: str) -> bool:
    # pytest's terminal writer keeps a copy of this stream, with its encoding.
    encoding = getattr(sys.__stdout__, "encoding", None) or "ascii"
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
