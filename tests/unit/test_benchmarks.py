"""What the benchmarks say of their measurements is true, and fits on a narrow terminal."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

# Last: the plugin under test is the installed one.
sys.path.append(str(Path(__file__).parents[2]))

from benchmarks import document, table
from benchmarks.catalogue import CATALOGUE
from benchmarks.commands import CommandFailed, run, surroundings
from benchmarks.rounds import Comparison, Figure, Measured, Spread, Turn, figure_of, single
from benchmarks.sessions import Session, Timed, empty_tests

CHECKOUT = Path(__file__).parents[2]

ROUNDS = [{"crate": 12.0, "fork only": 6.0}, {"crate": 30.0, "fork only": 10.0}, {"crate": 10.0, "fork only": 10.0}]


def measured(*comparisons: Comparison, absent: Mapping[str, str] | None = None) -> Measured:
    """Return a figure with three rounds of two contenders."""
    figure = Figure(
        title="empty body",
        unit="ms per test",
        contenders=["crate", "fork only", *(absent or {})],
        measure=dict,
        comparisons=comparisons,
        absent=absent or {},
    )
    return Measured(name="empty", figure=figure, rounds=ROUNDS, seconds=4.4)


# -- statistics --------------------------------------------------------------------------------------


def test_spread() -> None:
    """It is the median and the quartiles, whatever the order; of one number it is that number."""
    assert Spread.of([5.0, 1.0, 3.0, 2.0, 4.0]) == Spread(median=3.0, low=2.0, high=4.0, count=5)
    assert Spread.of([7.0]) == Spread(median=7.0, low=7.0, high=7.0, count=1)
    assert Spread.of([]) is None


def test_ratios_are_of_rounds() -> None:
    """Each round gives a ratio, and the median is theirs: not the ratio of the medians."""
    found = Comparison(one="crate", other="fork only").over(ROUNDS)
    assert found is not None
    assert (found.median, found.count) == (2.0, 3)
    assert found.median != 12.0 / 10.0
    difference = Comparison(one="crate", other="fork only", kind="difference").over(ROUNDS)
    assert difference is not None
    assert difference.median == 6.0


def test_a_round_without_one_of_the_two() -> None:
    """It says nothing; where no round has both, nothing is known."""
    rounds = [{"crate": 3.0, "runc": 2.0}, {"crate": 99.0}]
    found = Comparison(one="crate", other="runc").over(rounds)
    assert found is not None
    assert (found.median, found.count) == (1.5, 1)
    assert Comparison(one="crate", other="crun").over(rounds) is None


@pytest.mark.parametrize(
    ("at_least", "value", "reached"), [(False, 0.9, True), (False, 0.91, False), (True, 1.6, True), (True, 1.59, False)]
)
def test_a_bar(at_least: bool, value: float, reached: bool) -> None:
    """A bar is met by what is as good as it is; without one nothing is met or missed."""
    bar = 1.6 if at_least else 0.9
    comparison = Comparison(one="one", other="other", bar=bar, at_least=at_least)
    assert comparison.reaches(value, comparison.bar) is reached
    assert comparison.reaches(value, comparison.aim) is None


# -- rounds ------------------------------------------------------------------------------------------


def test_turns() -> None:
    """In a round every contender has its turn, in order; one turn may measure several."""
    order: list[str] = []

    def value(name: str) -> float:
        order.append(name)
        return float(len(order))

    figure = figure_of(
        "title",
        "ms",
        [
            single("one", lambda: value("one")),
            Turn(names=("two", "three"), measure=lambda: {"two": value("two"), "three": value("three")}),
        ],
        (),
        {"four": "it is not installed"},
    )
    assert figure.contenders == ["one", "two", "three", "four"]
    assert [figure.measure(), figure.measure()] == [
        {"one": 1.0, "two": 2.0, "three": 3.0},
        {"one": 4.0, "two": 5.0, "three": 6.0},
    ]
    assert order == ["one", "two", "three"] * 2


def test_a_turn_that_fails() -> None:
    """It is not tried again and its reason is kept; the others go on."""

    calls = []

    def fail() -> float:
        calls.append(1)
        raise CommandFailed("it broke")

    figure = figure_of("title", "ms", [single("bad", fail), single("good", lambda: 1.0)], ())
    assert figure.contenders == ["bad", "good"]
    assert [figure.measure(), figure.measure()] == [{"good": 1.0}, {"good": 1.0}]
    assert (figure.absent, len(calls)) == ({"bad": "it broke"}, 1)


# -- sessions ----------------------------------------------------------------------------------------


def test_times_of_tests() -> None:
    """A mean is from the end of one test to the end of another: the first ones don't count."""
    ends = [("a.py::test_a", 10.0), ("a.py::test_b_0", 10.5), ("a.py::test_b_1", 10.75), ("a.py::test_b_2", 11.5)]
    timed = Timed(seconds=2.0, ends=ends)
    assert timed.ms_per_test(1) == 500.0
    assert timed.ms_per_test(1, 3) == 375.0
    assert timed.ms_of("::test_b_", first=1) == 500.0
    with pytest.raises(ValueError, match="do not follow each other"):
        Timed(seconds=2.0, ends=[ends[1], ends[0], ends[2]]).ms_of("::test_b_", first=1)
    assert Timed(seconds=9.0, ends=[("a", end) for end in (1.0, 1.25, 1.75, 9.0)]).typical_ms(1, 4) == 500.0


@pytest.mark.parametrize(
    ("text", "way"), [(empty_tests(25), ()), (empty_tests(25), ("-p", "bench_fork_only"))], ids=["plain", "fork only"]
)
def test_a_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, way: tuple[str, ...]) -> None:
    """Every test's end is noted; the bare fork plugin runs them, too."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text(text)
    timed = _session(tmp_path, *way).run()
    assert [name for name, _ in timed.ends] == [f"test_it.py::test_{number:04}" for number in range(25)]
    assert 0 < timed.ms_per_test() < timed.seconds * 1e3


@pytest.mark.parametrize(
    ("test", "said"),
    [
        ("def test_it():\n    assert 0\n", "ended with 1"),
        ("import pytest\npytestmark = pytest.mark.skip('no')\ndef test_it(): ...", "skipped"),
    ],
)
@pytest.mark.parametrize("way", [(), ("-p", "bench_fork_only")], ids=["plain", "fork only"])
def test_a_session_that_is_no_measurement(tmp_path: Path, way: tuple[str, ...], test: str, said: str) -> None:
    """A run in which a test fails, or none passes, is an error: it may be quick for the wrong reason."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text(test)
    with pytest.raises(CommandFailed, match=said):
        _session(tmp_path, *way).run()


def _session(where: Path, *args: str) -> Session:
    plugins = CHECKOUT / "benchmarks" / "plugins"
    # With what this interpreter's packages may be found by: tests.pythons gives it a directory of them.
    path = os.pathsep.join(filter(None, (str(plugins), os.environ.get("PYTHONPATH"))))
    return Session(python=Path(sys.executable), where=where, args=args, environ={"PYTHONPATH": path})


def test_the_fork_only_plugin_forks(tmp_path: Path) -> None:
    """Each test has a process of its own."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    tests = "import os\ndef test_one():\n    open('pid', 'w').write(str(os.getpid()))\n"
    tests += "def test_two():\n    assert open('pid').read() not in (str(os.getpid()), str(os.getppid()))\n"
    (tmp_path / "test_it.py").write_text(tests)
    assert len(_session(tmp_path, "-p", "bench_fork_only").run().ends) == 2


def test_ballast(tmp_path: Path) -> None:
    """pytest is as big as it is asked to be."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text(
        "import resource\ndef test_it():\n"
        "    pages = int(open('/proc/self/statm').read().split()[1])\n"
        "    assert 200 <= pages * resource.getpagesize() / 2**20 < 240\n"
    )
    _session(tmp_path, "-p", "bench_ballast").but(BENCH_RSS_MB="200").run()


# -- commands ----------------------------------------------------------------------------------------


def test_a_command_that_fails() -> None:
    """The error has its status and what it printed last."""
    with pytest.raises(CommandFailed, match=r"ended with 3\nno luck"):
        run(["sh", "-c", "echo no luck; exit 3"])
    with pytest.raises(CommandFailed, match="No such file"):
        run(["/no/such/program"])
    with pytest.raises(CommandFailed, match=r"still ran after 0\.1 s"):
        run(["sleep", "60"], seconds=0.1)


def test_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an outer pytest or Python was told is not for the measured ones."""
    for name in ("PYTEST_ADDOPTS", "PYTHONDONTWRITEBYTECODE", "CRATE_CI_REQUIRE", "CI"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("OTHER", "1")
    assert {"PYTEST_ADDOPTS", "PYTHONDONTWRITEBYTECODE", "CRATE_CI_REQUIRE", "CI"} & set(surroundings()) == set()
    assert surroundings()["OTHER"] == "1"


# -- the table ---------------------------------------------------------------------------------------


def test_table() -> None:
    """It has each contender's median, each comparison with its bar, and the reason for what is not there."""
    lines = table.lines(
        measured(
            Comparison(one="crate", other="fork only", bar=1.35),
            Comparison(one="crate", other="runc", bar=0.3),
            absent={"runc": "runc run ended with 1\nno cgroups here"},
        )
    )
    assert "\n".join(lines) == (
        """
empty: empty body =============================================== 3 rounds, 4 s
ms per test                             median     quartiles
  crate                                   12.0    11.0..21.0
  fork only                               10.0    8.00..10.0
  runc                                       -             -  no cgroups here
crate / fork only                         2.00    1.50..2.50  <= 1.35 missed
crate / runc                                 -             -
      <= 0.3 - runc is not there"""
    )


@pytest.mark.parametrize(
    ("comparison", "said"),
    [
        (Comparison(one="a", other="b"), ""),
        (Comparison(one="a", other="b", bar=2.0), "<= 2 met"),
        (Comparison(one="a", other="b", bar=1.9), "<= 1.9 missed"),
        (Comparison(one="a", other="b", bar=2.1, aim=1.15), "<= 2.1 met, aim <= 1.15 missed"),
        (Comparison(one="a", other="b", bar=1.6, at_least=True), ">= 1.6 met"),
    ],
)
def test_verdict(comparison: Comparison, said: str) -> None:
    """A bar is met or missed by the median; of what is unknown neither is said."""
    assert table.verdict(comparison, Spread(median=2.0, low=0.0, high=9.0, count=3)) == said
    assert table.verdict(comparison, None) == re.sub("met|missed", "-", said)


def test_summary() -> None:
    """It counts what is met and missed, and leaves out comparisons without a bar or an aim."""
    lines = list(
        table.summary(
            [
                measured(
                    Comparison(one="crate", other="fork only", bar=1.35),
                    Comparison(one="crate", other="fork only", bar=2.0),
                    Comparison(one="fork only", other="crate"),
                    Comparison(one="crate", other="runc", bar=1.0),
                )
            ]
        )
    )
    assert lines[1].endswith(" 1 met, 1 missed")
    names = [line.split("  ")[0] for line in lines[3:]]
    assert names == ["empty", "crate / fork only", "crate / fork only", "crate / runc"]
    assert list(table.summary([measured()])) == []


@pytest.mark.parametrize(
    ("value", "said"),
    [(1234.5, "1234"), (123.4, "123"), (12.34, "12.3"), (1.234, "1.23"), (0.0123, "0.012"), (-3.5, "-3.50")],
)
def test_number(value: float, said: str) -> None:
    """A number is as long as it means something."""
    assert table.number(value) == said


def test_width() -> None:
    """No line is wider than a terminal, however long a reason is."""
    long = measured(
        Comparison(one="crate", other="x" * 30, bar=1.0, aim=0.5), absent={"x" * 30: "because of this " * 20}
    )
    lines = "\n".join(table.lines(long)).splitlines()
    assert len(lines) > 8
    assert max(map(len, lines)) <= table.WIDTH == 79


# -- files -------------------------------------------------------------------------------------------


def test_json() -> None:
    """It has every round, and of what is unknown null."""
    found = measured(
        Comparison(one="crate", other="fork only", bar=2.0),
        Comparison(one="crate", other="runc", bar=0.3),
        absent={"runc": "not installed"},
    )
    data = json.loads(json.dumps(document.to_json(dt.datetime(2026, 1, 2, tzinfo=dt.UTC), ["Linux"], [found])))
    assert (data["schema"], data["started"], data["facts"]) == (1, "2026-01-02T00:00:00+00:00", ["Linux"])
    (figure,) = data["figures"]
    assert figure["rounds"] == ROUNDS
    assert [(each["name"], each["median"], each["absent"]) for each in figure["contenders"]] == [
        ("crate", 12.0, None),
        ("fork only", 10.0, None),
        ("runc", None, "not installed"),
    ]
    assert [(each["bar"], each["median"], each["met"]) for each in figure["comparisons"]] == [
        (2.0, 2.0, True),
        (0.3, None, None),
    ]


def test_update(tmp_path: Path) -> None:
    """The table on a page is replaced, and nothing around it."""
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- written by: tox -e bench -- --update -->\nold\n<!-- end -->\nafter\n")
    for _ in range(2):
        document.update(page, ["Linux"], [measured()])
    text = page.read_text()
    assert text.startswith(
        "before\n<!-- written by: tox -e bench -- --update -->\n\n```text\nLinux\n\nempty: empty body ="
    )
    assert text.endswith("8.00..10.0\n```\n\n<!-- end -->\nafter\n")
    assert "old" not in text
    page.write_text("no marks")
    with pytest.raises(ValueError, match="has no lines"):
        document.update(page, [], [])


def test_the_page_has_every_figure() -> None:
    """The documentation says of every figure what it is, and has the place for the results."""
    page = (CHECKOUT / "docs" / "benchmarks.md").read_text()
    assert [name for name in CATALOGUE if f"\n| `{name}` |" not in page] == []
    assert "<!-- written by: tox -e bench -- --update -->" in page
