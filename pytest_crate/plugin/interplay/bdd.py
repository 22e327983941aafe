"""Brings home the steps of a scenario that pytest-bdd has run in a crate, for its Gherkin and Cucumber reports."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from pytest_crate.plugin.interplay.adapter import Adapter, expect

_NAMED: dict[str, Any] = {"keyword": str, "name": str, "description": str, "tags": [str]}
# pytest_bdd.reporting.ScenarioReportDict, of pytest-bdd 9.0.
_SCENARIO: dict[str, Any] = {
    **_NAMED,
    "line_number": int,
    "rule": _NAMED,
    "feature": {**_NAMED, "filename": str, "rel_filename": str, "language": str, "line_number": int},
    "steps": [{"name": str, "type": str, "keyword": str, "line_number": int, "failed": bool, "duration": (int, float)}],
}
_MAY_LACK = ("rule",)


def adapter(_config: pytest.Config) -> Adapter | None:
    # Until pytest-bdd 9 the scenario was an attribute of pytest's report, and came home with that.
    known = hasattr(sys.modules["pytest_bdd.reporting"], "scenario_reports_registry")
    return _Scenarios() if known else None


class _Report:
    """Stands for pytest-bdd's report of a scenario, of which only this is asked when it has run."""

    def __init__(self, scenario: dict[str, Any]) -> None:
        self._scenario = scenario

    def serialize(self) -> dict[str, Any]:
        return self._scenario


class _Scenarios(Adapter):
    def take_phase(self, item: pytest.Item) -> Any:
        report = _reports().get(item)
        return None if report is None else report.serialize()

    def give_phase(self, item: pytest.Item, data: Any) -> None:
        _reports()[item] = _Report(_as(_SCENARIO, data))


def _reports() -> Any:
    return sys.modules["pytest_bdd.reporting"].scenario_reports_registry


def _as(shape: Any, value: Any) -> Any:
    """Return a copy of data that has a shape.

    :raises TypeError, KeyError: it hasn't.
    """
    if isinstance(shape, dict):
        held = expect(value, dict)
        return {name: _as(inner, held[name]) for name, inner in shape.items() if name in held or name not in _MAY_LACK}
    if isinstance(shape, list):
        return [_as(shape[0], each) for each in expect(value, list)]
    return expect(value, shape)
