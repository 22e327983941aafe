"""Whether a crate's price grows: with pytest's memory, with the image, with the number of tests."""

from __future__ import annotations

import functools
import tarfile
from pathlib import Path

from benchmarks import sessions
from benchmarks.commands import CommandFailed
from benchmarks.place import Place
from benchmarks.programs import Programs
from benchmarks.rounds import Comparison, Figure, Round, Turn, figure_of, single
from benchmarks.sessions import Session

_BODIES, _RUNS, _UNCOUNTED = 24, 14, 3

_TESTS = """\
import pytest


@pytest.mark.crate
@pytest.mark.parametrize("number", range({bodies}))
def test_body(number):
    pass


@pytest.mark.parametrize("number", range({runs}))
def test_run(crate_sandbox, number):
    assert crate_sandbox.run([{true!r}]).returncode == 0
"""


def rss(place: Place, *, quick: bool) -> Figure:
    """By pytest's resident memory."""
    sizes = (50, 400) if quick else (50, 400, 1600)
    bodies = place.project("rss-fork", {"test_fork.py": sessions.empty_tests(_BODIES)})
    both = place.project("rss-crate", {"test_crate.py": _TESTS.format(bodies=_BODIES, runs=_RUNS, true="true")})
    turns = []
    for size in sizes:
        ballast = {"BENCH_RSS_MB": str(size)}
        forks = Session(
            python=place.only_plugin, where=bodies, args=("-p", "bench_ballast", *sessions.FORK_ONLY), environ=ballast
        )
        crates = Session(
            python=place.only_plugin, where=both, args=("-p", "bench_ballast", *sessions.DRIVE), environ=ballast
        )
        turns += [
            single(f"fork only {size} MB", functools.partial(_bodies, forks)),
            _bodies_and_runs(crates, f"crate {size} MB", f"run {size} MB"),
        ]
    big = sizes[-1]
    return figure_of(
        "by pytest's memory (RSS)",
        "ms per test",
        turns,
        (
            Comparison(one=f"run {big} MB", other="run 50 MB", bar=1.2),
            Comparison(one=f"crate {big} MB", other="crate 50 MB"),
            Comparison(one=f"fork only {big} MB", other="fork only 50 MB"),
            Comparison(one=f"crate {big} MB", other=f"fork only {big} MB"),
        ),
    )


def _bodies(session: Session) -> float:
    return session.run().ms_per_test(_UNCOUNTED)


def _bodies_and_runs(session: Session, body: str, run: str) -> Turn:
    def measure() -> Round:
        timed = session.run()
        return {
            body: timed.ms_of("::test_body[", first=_UNCOUNTED),
            run: timed.ms_of("::test_run[", first=_UNCOUNTED),
        }

    return Turn(names=(body, run), measure=measure)


# -- images ------------------------------------------------------------------------------------------

_SMALL, _BIG = "1 MB", "450 MB"
# About as many files, of about the sizes, as a Debian system with a few services has.
_BIG_FILES, _BIG_FILE_BYTES = 9_000, 50_000


def image(place: Place, *, quick: bool) -> Figure:
    """By the size of the image."""
    title, unit = "by the image's size", "ms"
    runs = [f"{kind}, {size}" for kind in ("body", "run") for size in (_SMALL, _BIG)]
    starts = [f"one test, {size}" for size in (_SMALL, _BIG)]
    comparisons = (
        Comparison(one=runs[1], other=runs[0], bar=1.2, aim=1.05),
        Comparison(one=runs[3], other=runs[2], bar=1.2, aim=1.05),
        Comparison(one=starts[1], other=starts[0], bar=1.2, aim=1.05),
    )
    try:
        tarballs = {size: _tarball(place, size) for size in (_SMALL, _BIG)}
    except CommandFailed as error:
        return figure_of(title, unit, [], comparisons, dict.fromkeys([*runs, *starts], str(error)))
    ini = f"[pytest]\ncrate_image_store = {place.directory / 'images'}\n"
    turns = []
    for size, tarball in tarballs.items():
        tests = _TESTS.format(bodies=_BODIES, runs=_RUNS, true="/true")
        where = place.project(f"image-{size.replace(' ', '-')}", {"test_image.py": tests, "pytest.ini": ini})
        session = Session(python=place.only_plugin, where=where, args=(*sessions.DRIVE, f"--crate-image={tarball}"))
        place.say(f"extracting the image of {size}")
        one = session.but("test_image.py::test_run[0]")
        one.run()
        turns.append(_bodies_and_runs(session, f"body, {size}", f"run, {size}"))
        turns.append(single(f"one test, {size}", one.whole_ms))
    return figure_of(title, unit, turns, comparisons)


def _tarball(place: Place, size: str) -> Path:
    """Return the tarball of an image: a program and, in the big one, files that nothing opens."""
    path = place.directory / f"image-{size.replace(' ', '-')}.tar"
    if path.exists():
        return path
    place.say(f"making an image of {size}")
    true = Programs(place).static_true()
    filling = place.directory / "filling"
    filling.write_bytes(bytes(range(250)) * (_BIG_FILE_BYTES // 250))
    partial = path.with_suffix(".partial")
    with tarfile.open(partial, "w") as tar:
        tar.add(true, "true")
        for number in range(_BIG_FILES if size == _BIG else 4):
            tar.add(filling, f"usr/share/{number // 100:03}/{number:05}")
    filling.unlink()
    partial.rename(path)
    return path


# -- the number of tests -----------------------------------------------------------------------------


def many(place: Place, *, quick: bool) -> Figure:
    """The first 100 tests of a long run and the last 100."""
    count = 400 if quick else 2000
    where = place.project("many", {"test_many.py": sessions.empty_tests(count)})

    def turn(name: str, way: tuple[str, ...]) -> Turn:
        session = Session(python=place.only_plugin, where=where, args=way)
        names = (f"{name} first", f"{name} last")

        def measure() -> Round:
            timed = session.run()
            # The very first one starts the launcher.
            return {names[0]: timed.typical_ms(1, 101), names[1]: timed.typical_ms(count - 100, count)}

        return Turn(names=names, measure=measure)

    return figure_of(
        f"the first and the last 100 of {count} tests",
        "ms per test",
        [turn("fork only", sessions.FORK_ONLY), turn("crate", sessions.CRATE)],
        (
            Comparison(one="crate last", other="crate first", bar=1.1),
            Comparison(one="fork only last", other="fork only first"),
        ),
    )
