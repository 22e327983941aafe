"""Whole commands: real suites, on one worker and on two, and what the plugin costs who does not use it."""

from __future__ import annotations

from benchmarks import sessions
from benchmarks.place import Place
from benchmarks.rounds import Comparison, Figure, figure_of, single
from benchmarks.sessions import Session

_WAYS = {
    "plain": sessions.PLAIN,
    "fork only": sessions.FORK_ONLY,
    "pytest-forked": sessions.FORKED,
    "crate": sessions.CRATE,
}

# Some milliseconds of work, the same on every machine's scale.
_WORK = """\
import pytest


@pytest.mark.parametrize("number", range({count}))
def test_work(number):
    assert sum(each * each % 7 for each in range(250_000)) > 0
"""


def suite(name: str, place: Place) -> Figure:
    """A real suite, from its start to its end."""
    where = place.suite(name)
    return figure_of(
        f"{name}'s own tests, the whole command",
        "ms",
        [
            single(way, Session(python=place.peers, where=where, args=(*args, *sessions.OWN_WARNINGS)).whole_ms)
            for way, args in _WAYS.items()
        ],
        (
            Comparison(one="crate", other="plain"),
            Comparison(one="crate", other="fork only"),
            Comparison(one="crate", other="pytest-forked"),
        ),
    )


def itsdangerous(place: Place, *, quick: bool) -> Figure:
    return suite("itsdangerous", place)


def jinja2(place: Place, *, quick: bool) -> Figure:
    return suite("jinja2", place)


def workers(place: Place, *, quick: bool) -> Figure:
    """pytest-xdist with one process and with two workers."""
    work = place.project("work", {"test_work.py": _WORK.format(count=40 if quick else 150)})
    click = place.suite("click")
    options = (*sessions.OWN_WARNINGS, "tests/test_options.py")
    suites = {
        "work, plain": Session(python=place.current, where=work, args=sessions.PLAIN),
        "work": Session(python=place.current, where=work, args=sessions.CRATE),
        "click forks": Session(python=place.current, where=click, args=(*sessions.FORK_ONLY, *options)),
        "click": Session(python=place.current, where=click, args=(*sessions.CRATE, *options)),
    }
    turns = [
        single(f"{name}, -n {count}", session.but("-p", "xdist", "-n", count).whole_ms)
        for name, session in suites.items()
        for count in ("0", "2")
    ]
    return figure_of(
        "two workers, the whole command",
        "ms",
        turns,
        [
            Comparison(
                one=f"{name}, -n 0",
                other=f"{name}, -n 2",
                at_least=True,
                bar=1.6 if name in ("work", "click") else None,
            )
            for name in suites
        ],
    )


# -- installed, and not used -------------------------------------------------------------------------


def start(place: Place, *, quick: bool) -> Figure:
    """A run of one test."""
    return _unused(place, "unused: a run of one test", 1, whole=True)


def unused(place: Place, *, quick: bool) -> Figure:
    """Each of many tests."""
    return _unused(place, "unused: each test of many", 500 if quick else 3000, whole=False)


def _unused(place: Place, title: str, count: int, *, whole: bool) -> Figure:
    where = place.project(f"unused-{count}", {"test_unused.py": sessions.empty_tests(count)})
    off = ("-p", "no:pytest_crate")
    runs = {
        "without it": Session(python=place.bare, where=where, args=(), autoload=True),
        "blocked": Session(python=place.only_plugin, where=where, args=off, autoload=True),
        "installed": Session(python=place.only_plugin, where=where, args=(), autoload=True),
    }
    comparisons: tuple[Comparison, ...]
    if whole:
        comparisons = (
            Comparison(one="installed", other="without it", kind="difference", bar=20.0),
            Comparison(one="installed", other="blocked", kind="difference"),
        )
    else:
        comparisons = (
            Comparison(one="installed", other="without it", bar=1.01),
            Comparison(one="installed", other="blocked"),
        )
    turns = [single(name, session.whole_ms if whole else session.ms_per_test) for name, session in runs.items()]
    return figure_of(title, "ms" if whole else "ms per test", turns, comparisons)
