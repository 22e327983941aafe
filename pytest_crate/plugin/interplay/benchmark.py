"""Brings home the timings that pytest-benchmark has taken in a crate."""

from __future__ import annotations

import math
import pstats
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from pytest_crate.plugin.interplay.adapter import Adapter, expect

_MOST_BENCHMARKS = 1000  # a fixture measures once


def adapter(config: pytest.Config) -> Adapter | None:
    session = getattr(config, "_benchmarksession", None)
    return None if session is None else _Benchmarks(session)


class _Benchmarks(Adapter):
    def __init__(self, session: Any) -> None:
        self._session = session
        self._before = 0

    def shares(self, item: pytest.Item) -> bool:
        return not self.brings_much(item)

    def brings_much(self, item: pytest.Item) -> bool:
        return not {"benchmark", "benchmark_weave"}.isdisjoint(getattr(item, "fixturenames", ()))

    def child_starts(self, item: pytest.Item) -> None:
        self._before = len(self._session.benchmarks)

    def take(self, item: pytest.Item) -> Any:
        return [_packed(measured) for measured in self._session.benchmarks[self._before :]] or None

    def give(self, item: pytest.Item, data: Any) -> None:
        fixtures: Any = sys.modules["pytest_benchmark.fixture"]
        if len(expect(data, list)) > _MOST_BENCHMARKS:
            raise ValueError(f"more than {_MOST_BENCHMARKS} benchmarks of one test")
        for packed in data:
            # The fixture as the plugin makes it: names, parameters and options are pytest's own word.
            marker = item.get_closest_marker("benchmark")
            options = {**self._session.options, **(marker.kwargs if marker else {})}
            if marker and "timer" in marker.kwargs:
                options["timer"] = sys.modules["pytest_benchmark.utils"].NameWrapper(marker.kwargs["timer"])
            fixture = fixtures.BenchmarkFixture(
                item,
                add_stats=_nothing,
                logger=self._session.logger,
                warner=item.warn,
                disabled=self._session.disabled,
                **options,
            )
            fixture.group = expect(packed["group"], (str, type(None)))
            fixture.extra_info = expect(packed["extra_info"], dict)
            fixture.has_error = expect(packed["has_error"], bool)
            fixture.skipped = expect(packed["skipped"], bool)
            measured = fixture._make_stats(expect(packed["iterations"], int))  # noqa: SLF001
            measured.stats.data = [_seconds(seconds) for seconds in expect(packed["data"], list)]
            if not measured.stats.data and not fixture.has_error:
                raise ValueError("a benchmark without a round")
            if packed["profile"] is not None:
                _add_profile(fixture, measured, packed["profile"])
            self._session.benchmarks.append(measured)


def _seconds(value: Any) -> float:
    seconds = float(expect(value, (int, float)))
    if not math.isfinite(seconds):  # the plugin's statistics would raise at the session's end
        raise ValueError(f"a round of {seconds} s")
    return seconds


def _packed(measured: Any) -> dict[str, Any]:
    profile = measured.cprofile_stats
    return {
        "group": measured.fixture.group,
        "extra_info": measured.extra_info,
        "has_error": measured.fixture.has_error,
        "skipped": measured.fixture.skipped,
        "iterations": measured.iterations,
        "data": measured.stats.data,
        "profile": None if profile is None else _packed_profile(profile.stats),
    }


# A profile is {(file, line, function): (calls, ..., {caller: (calls, ...)})} (pstats.Stats.stats).


def _packed_profile(stats: Any) -> list[Any]:
    return [
        [*function, *figures, [[*caller, *by_caller] for caller, by_caller in callers.items()]]
        for function, (*figures, callers) in stats.items()
    ]


class _Profile:
    """What pstats.Stats takes instead of a profiler."""

    def __init__(self, rows: Any) -> None:
        self.stats = {
            _function(row): (*_figures(row[3:7]), {_function(caller): _figures(caller[3:]) for caller in row[7]})
            for row in expect(rows, list)
        }

    def create_stats(self) -> None:
        """It is there already."""


def _function(row: Any) -> tuple[str, int, str]:
    return expect(row[0], str), expect(row[1], int), expect(row[2], str)


def _figures(row: Any) -> tuple[float, ...]:
    return tuple(expect(figure, (int, float)) for figure in row)


def _add_profile(fixture: Any, measured: Any, rows: Any) -> None:
    measured.cprofile_stats = pstats.Stats(cast("Any", _Profile(rows)))
    if fixture.cprofile_dump:
        slugify = sys.modules["pytest_benchmark.utils"].slugify
        dump = Path(f"{fixture.cprofile_dump}-{slugify(fixture.name)}.prof")
        dump.parent.mkdir(parents=True, exist_ok=True)
        measured.cprofile_stats.dump_stats(dump)


def _nothing(_measured: object) -> None:
    """Where the fixture would add to the session what is not filled in yet."""
