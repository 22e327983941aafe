"""The results as text: narrow enough for any terminal, and without colour."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable, Iterator, Mapping

from benchmarks.rounds import Comparison, Measured, Spread

WIDTH = 79
_NAME = 38
_NUMBER = 8
_RANGE = 14


def lines(measured: Measured) -> Iterator[str]:
    """Yield a figure's table."""
    figure = measured.figure
    yield from _heading(f"{measured.name}: {figure.title}", f"{len(measured.rounds)} rounds, {measured.seconds:.0f} s")
    yield _row(figure.unit, "median", "quartiles")
    for name in figure.contenders:
        yield _row(f"  {name}", *_numbers(measured.spread(name)), reason(figure.absent, name))
    for comparison in figure.comparisons:
        yield comparison_row(comparison, comparison.over(measured.rounds), figure.absent)


def comparison_row(comparison: Comparison, spread: Spread | None, absent: Mapping[str, str]) -> str:
    """Return the row of a comparison, with its bar and whether it is met."""
    words = [verdict(comparison, spread)]
    if spread is None:
        words += [f"{name} is not there" for name in (comparison.one, comparison.other) if name in absent][:1]
    return _row(comparison.title, *_numbers(spread), " ".join(word for word in words if word))


def reason(absent: Mapping[str, str], name: str) -> str:
    """Return in a line why a contender is absent; nothing if it is not. Of what a program printed the end says it."""
    lines = absent.get(name, "").strip().splitlines()
    return "" if not lines else lines[0] if len(lines) == 1 else lines[-1]


def verdict(comparison: Comparison, spread: Spread | None) -> str:
    """Return what is asked and whether it is reached, such as ``<= 0.9 missed``."""
    sign = ">=" if comparison.at_least else "<="
    words: list[str] = []
    for name, limit in (("", comparison.bar), ("aim ", comparison.aim)):
        if limit is None:
            continue
        reached = None if spread is None else comparison.reaches(spread.median, limit)
        words.append(f"{name}{sign} {limit:g} {'-' if reached is None else 'met' if reached else 'missed'}")
    return ", ".join(words)


def summary(all_measured: Iterable[Measured]) -> Iterator[str]:
    """Yield every comparison that has a bar or an aim."""
    rows = [
        (measured, comparison, comparison.over(measured.rounds))
        for measured in all_measured
        for comparison in measured.figure.comparisons
        if comparison.bar is not None or comparison.aim is not None
    ]
    if not rows:
        return
    known = [
        each.reaches(spread.median, each.bar) for _, each, spread in rows if spread is not None and each.bar is not None
    ]
    yield from _heading("all bars", f"{known.count(True)} met, {known.count(False)} missed")
    yield _row("", "median", "quartiles", "bar")
    for measured, of_figure in itertools.groupby(rows, key=lambda row: row[0]):
        yield measured.name
        for _, comparison, spread in of_figure:
            yield comparison_row(comparison, spread, measured.figure.absent)


def number(value: float) -> str:
    """Return a number with three digits that mean something."""
    size = abs(value)
    return (
        f"{value:.0f}"
        if size >= 100
        else f"{value:.1f}"
        if size >= 10
        else f"{value:.2f}"
        if size >= 0.1
        else f"{value:.3f}"
    )


def _numbers(spread: Spread | None) -> tuple[str, str]:
    if spread is None:
        return "-", "-"
    return number(spread.median), f"{number(spread.low)}..{number(spread.high)}"


def _heading(left: str, right: str) -> Iterator[str]:
    yield ""
    yield f"{left} {'=' * max(1, WIDTH - len(left) - len(right) - 2)} {right}"


def _row(name: str, middle: str, span: str, remark: str = "") -> str:
    row = f"{name:<{_NAME}}{middle:>{_NUMBER}}{span:>{_RANGE}}  {remark}".rstrip()
    # A long reason goes on below, indented: a narrow terminal breaks no column.
    if len(row) <= WIDTH:
        return row
    row = f"{name:<{_NAME}}{middle:>{_NUMBER}}{span:>{_RANGE}}".rstrip()
    return "\n".join([row, *textwrap.wrap(remark, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)])
