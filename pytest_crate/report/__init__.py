"""Usage becomes a table, JSON and messages."""

from __future__ import annotations

from pytest_crate.report.document import SCHEMA_VERSION, json_report, write_report
from pytest_crate.report.failure import failure_section
from pytest_crate.report.header import header_line
from pytest_crate.report.junit import junit_properties
from pytest_crate.report.limits import failure_message, near_limits
from pytest_crate.report.record import OUTCOMES, Outcome, TestRecord
from pytest_crate.report.table import Line, Segment, summary

__all__ = [
    "OUTCOMES",
    "SCHEMA_VERSION",
    "Line",
    "Outcome",
    "Segment",
    "TestRecord",
    "failure_message",
    "failure_section",
    "header_line",
    "json_report",
    "junit_properties",
    "near_limits",
    "summary",
    "write_report",
]
