"""What a test costs whose body rides in a crate: beside plain pytest, a bare fork, and the fork plugins."""

from __future__ import annotations

from pathlib import Path

from benchmarks import sessions
from benchmarks.commands import CommandFailed, run
from benchmarks.place import Place
from benchmarks.rounds import Comparison, Figure, Turn, figure_of, single
from benchmarks.sessions import Session

_WAYS = {
    "plain": sessions.PLAIN,
    "fork only": sessions.FORK_ONLY,
    "pytest-forked": sessions.FORKED,
    "pytest-isolate": sessions.ISOLATE,
    "crate": sessions.CRATE,
}
_NEWEST = {"fork only, newest": sessions.FORK_ONLY, "crate, newest": sessions.CRATE}
_UNIT = "ms per test"

COMPARISONS = (
    Comparison(one="crate", other="pytest-forked", bar=0.9),
    Comparison(one="crate", other="pytest-isolate"),
    Comparison(one="crate", other="fork only", bar=1.35, aim=1.15),
    Comparison(one="crate, newest", other="fork only, newest", bar=1.35, aim=1.15),
)


def empty(place: Place, *, quick: bool) -> Figure:
    """Empty tests."""
    where = place.project("empty", {"test_empty.py": sessions.empty_tests(60 if quick else 220)})
    return figure_of("empty body", _UNIT, _turns(place, where), COMPARISONS)


def click(place: Place, *, quick: bool) -> Figure:
    """A file of click's tests."""
    where = place.suite("click")
    return figure_of(
        "click's test_options.py",
        _UNIT,
        _turns(place, where, *sessions.OWN_WARNINGS, "tests/test_options.py"),
        COMPARISONS,
    )


def _turns(place: Place, where: Path, *args: str) -> list[Turn]:
    # pytest-isolate leaves files in the temporary directory.
    left = place.directory / "left"
    left.mkdir(exist_ok=True)
    environs = {"pytest-isolate": {"TMPDIR": str(left)}}
    return [
        single(
            name, Session(python=python, where=where, args=(*way, *args), environ=environs.get(name, {})).ms_per_test
        )
        for python, ways in ((place.peers, _WAYS), (place.current, _NEWEST))
        for name, way in ways.items()
    ]


def scope(place: Place, *, quick: bool) -> Figure:
    """Tests of a module that share a crate."""
    tests = sessions.empty_tests(60 if quick else 220)
    shared = 'import pytest\n\npytestmark = pytest.mark.crate(scope="module")\n\n'
    plain = Session(
        python=place.only_plugin, where=place.project("scope", {"test_scope.py": tests}), args=sessions.PLAIN
    )
    each = plain.but(*sessions.CRATE)
    turns = [single("plain", plain.ms_per_test), single("a crate each", each.ms_per_test)]
    absent = {}
    try:
        run([place.only_plugin, "-c", 'from pytest_crate.spec import KEYS; raise SystemExit("scope" not in KEYS)'])
    except CommandFailed:
        absent["a crate for all"] = "not built: the marker has no key scope"
    else:
        together = Session(
            python=place.only_plugin,
            where=place.project("scope-module", {"test_scope.py": shared + tests}),
            args=sessions.DRIVE,
        )
        turns.append(single("a crate for all", together.ms_per_test))
    return figure_of(
        'scope="module"',
        _UNIT,
        turns,
        (
            Comparison(one="a crate for all", other="a crate each", bar=0.3),
            Comparison(one="a crate for all", other="plain", kind="difference", aim=0.5),
        ),
        absent,
    )
