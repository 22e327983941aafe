"""A plugin of an inner pytest run that keeps every report, in the process with the terminal; tests copy it in."""

from __future__ import annotations

import json
import os
import warnings
from typing import Any

import pytest

# What is recorded, as plain data: written to $RECORDED at the end, {"reports": [...], "warnings": [...]}.


class Recorder:
    """Keeps reports and warnings as the other plugins see them."""

    def __init__(self) -> None:
        self.reports: list[dict[str, Any]] = []
        self.warnings: list[dict[str, Any]] = []

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.reports.append(
            {
                "nodeid": report.nodeid,
                "when": report.when,
                "outcome": report.outcome,
                "wasxfail": getattr(report, "wasxfail", None),
                "longrepr": report.longreprtext,
                "sections": [list(section) for section in report.sections],
                "properties": [
                    [name, str(value)] for name, value in report.user_properties if not name.startswith("crate.")
                ],
                "location": list(report.location),
                "keywords": sorted(report.keywords),
                "kind": type(report).__name__,
                "crates": [crate["name"] for crate in getattr(report, "crate", {"crates": []})["crates"]],
                "uncrated": getattr(report, "crate", {"uncrated": None})["uncrated"],
                "pid": os.getpid(),
            }
        )

    def pytest_warning_recorded(self, warning_message: warnings.WarningMessage, when: str, nodeid: str) -> None:
        self.warnings.append(
            {
                "nodeid": nodeid,
                "when": when,
                "category": warning_message.category.__name__,
                "text": str(warning_message.message),
            }
        )

    def pytest_unconfigure(self) -> None:
        with open(os.environ["RECORDED"], "w", encoding="utf-8") as file:
            json.dump({"reports": self.reports, "warnings": self.warnings}, file)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(), "crate-test-recorder")
