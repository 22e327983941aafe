"""Brings home the examples that Hypothesis saves in its database, so that the next run replays a failure first."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_crate.plugin.interplay.adapter import Adapter, expect, from_bytes, to_bytes

_METHODS = ("save", "delete", "move")


def adapter(_config: pytest.Config) -> Adapter:
    return _Examples()


def _database(item: pytest.Item) -> Any:
    """Return the database of the item's settings, if it is a test of Hypothesis'."""
    hypothesis: Any = sys.modules["hypothesis"]
    function = getattr(item, "obj", None)
    # What hypothesis.is_hypothesis_test looks at, which older releases have elsewhere.
    if not getattr(function, "is_hypothesis_test", False):
        return None
    # As Hypothesis' own pytest plugin finds them.
    settings = getattr(function, "_hypothesis_internal_use_settings", hypothesis.settings.default)
    return settings.database


class _Examples(Adapter):
    def __init__(self) -> None:
        self._changes: list[list[str]] = []

    def shares(self, item: pytest.Item) -> bool:
        return _database(item) is None

    def child_starts(self, item: pytest.Item) -> None:
        database = _database(item)
        if database is None:
            return
        # On the class: each look at the settings may make another object for the same directory.
        for name in _METHODS:
            setattr(type(database), name, self._noting(database, name, getattr(type(database), name)))

    def _noting(self, database: Any, name: str, change: Any) -> Any:
        def change_and_note(changed: Any, *arguments: bytes) -> None:
            before = len(self._changes)
            change(changed, *arguments)
            # A move may be made of the other two: it is noted as one.
            if changed == database:
                self._changes[before:] = [[name, *map(from_bytes, arguments)]]

        return change_and_note

    def verify_report(self, item: pytest.Item, report: pytest.TestReport) -> None:
        # What Hypothesis' own pytest plugin adds to a report, and takes from it at the run's end: how a test went, and
        # examples for a patch of the file that it is in, which is read whole.
        expect(getattr(report, "_hypothesis_stats", ""), (str, type(None)))
        examples = expect(getattr(report, "_hypothesis_failing_examples", ""), str)
        if examples:
            file, *sources = (expect(part, str) for part in expect(json.loads(examples), list))
            module = sys.modules[item.obj.__module__]  # type: ignore[attr-defined]
            if len(sources) != 2 or Path(file).absolute() != Path(str(module.__file__)).absolute():
                raise ValueError(f"a patch of {file!r}")

    def take(self, item: pytest.Item) -> Any:
        return self._changes or None

    def give(self, item: pytest.Item, data: Any) -> None:
        database = _database(item)
        for name, *arguments in expect(data, list):
            if name not in _METHODS or database is None:
                raise ValueError(f"{name!r} is no change of a database of examples")
            getattr(database, name)(*(to_bytes(expect(argument, str)) for argument in arguments))
