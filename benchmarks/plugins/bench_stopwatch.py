"""Notes when each test of a run has ended, for the one who started the run."""

from __future__ import annotations

import json
import os
import time

import pytest


class Stopwatch:
    """The ends of the tests, as this process sees them."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._pid = os.getpid()
        self._ends: list[tuple[str, float]] = []
        self._outcomes: dict[str, int] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._ends.append((nodeid, time.perf_counter()))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._outcomes[report.outcome] = self._outcomes.get(report.outcome, 0) + 1

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        # A forked child that gets here by some plugin's way is not the one who is asked.
        if os.getpid() == self._pid:
            with open(self._path, "w", encoding="utf-8") as file:
                json.dump({"ends": self._ends, "outcomes": self._outcomes}, file)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Stopwatch(os.environ["BENCH_STOPWATCH"]), "bench-stopwatch-of-this-run")
