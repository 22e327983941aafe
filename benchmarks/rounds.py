"""Rounds of measurements, and what is said of them: medians of values, and of what is compared in each round."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from benchmarks.commands import CommandFailed

Round = Mapping[str, float]
"""What one round measured, by contender; a contender that could not be measured is missing."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The middle of some numbers, and the half of them that lies around it."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """Return the median and the quartiles; None of no values."""
        numbers = sorted(values)
        if not numbers:
            return None
        if len(numbers) == 1:
            return cls(median=numbers[0], low=numbers[0], high=numbers[0], count=1)
        low, median, high = statistics.quantiles(numbers, n=4, method="inclusive")
        return cls(median=median, low=low, high=high, count=len(numbers))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two contenders side by side: in each round the one is divided by the other, or the other subtracted from it.

    :ivar bar: what must be reached; None where nothing is asked.
    :ivar aim: what is hoped for.
    :ivar at_least: more is better; otherwise less is.
    """

    one: str
    other: str
    kind: Literal["ratio", "difference"] = "ratio"
    bar: float | None = None
    aim: float | None = None
    at_least: bool = False

    @property
    def title(self) -> str:
        return f"{self.one} {'/' if self.kind == 'ratio' else '-'} {self.other}"

    def of_round(self, measured: Round) -> float | None:
        """Return what one round says; None if it lacks one of the two."""
        if self.one not in measured or self.other not in measured:
            return None
        one, other = measured[self.one], measured[self.other]
        return one / other if self.kind == "ratio" else one - other

    def over(self, rounds: Iterable[Round]) -> Spread | None:
        """Return what the rounds say together."""
        found = (self.of_round(measured) for measured in rounds)
        return Spread.of(value for value in found if value is not None)

    def reaches(self, value: float, limit: float | None) -> bool | None:
        """Tell whether a value is as good as a limit; None if there is no limit."""
        if limit is None:
            return None
        return value >= limit if self.at_least else value <= limit


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One thing to measure, ready to be measured.

    :ivar unit: of the contenders' values.
    :ivar measure: one round: every contender once, in turn.
    :ivar contenders: their names, in the table's order.
    :ivar absent: for those that can't be measured here, the reason.
    """

    title: str
    unit: str
    contenders: Sequence[str]
    measure: Callable[[], Round]
    comparisons: Sequence[Comparison] = ()
    absent: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A figure that has been measured.

    :ivar seconds: how long all of it took.
    """

    name: str
    figure: Figure
    rounds: Sequence[Round]
    seconds: float

    def spread(self, contender: str) -> Spread | None:
        return Spread.of(measured[contender] for measured in self.rounds if contender in measured)

    def to_json(self) -> dict[str, Any]:
        """Return everything as builtins; what is unknown is None."""
        figure = self.figure
        return {
            "name": self.name,
            "title": figure.title,
            "unit": figure.unit,
            "seconds": round(self.seconds, 1),
            "rounds": [dict(measured) for measured in self.rounds],
            "contenders": [
                {"name": name, "absent": figure.absent.get(name), **_spread_json(self.spread(name))}
                for name in figure.contenders
            ],
            "comparisons": [
                {**dataclasses.asdict(comparison), **_verdict_json(comparison, comparison.over(self.rounds))}
                for comparison in figure.comparisons
            ],
        }


def _spread_json(spread: Spread | None) -> dict[str, Any]:
    if spread is None:
        return dict.fromkeys(("median", "low", "high", "count"))
    return dataclasses.asdict(spread)


def _verdict_json(comparison: Comparison, spread: Spread | None) -> dict[str, Any]:
    met = None if spread is None else comparison.reaches(spread.median, comparison.bar)
    return {**_spread_json(spread), "met": met}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What is measured at one go.

    :ivar names: of the contenders that it measures.
    :ivar measure: returns their values.
    """

    names: Sequence[str]
    measure: Callable[[], Round]


def single(name: str, measure: Callable[[], float]) -> Turn:
    """Return the turn of one contender."""
    return Turn(names=(name,), measure=lambda: {name: measure()})


def figure_of(
    title: str,
    unit: str,
    turns: Iterable[Turn],
    comparisons: Sequence[Comparison],
    absent: Mapping[str, str] | None = None,
) -> Figure:
    """Return a figure whose rounds give each contender its turn.

    One that fails is absent from then on, and its reason is the figure's; the others go on.

    :param absent: contenders that have no turn, and why.
    """
    turns = list(turns)
    reasons = dict(absent or {})

    def measure() -> Round:
        measured: dict[str, float] = {}
        for turn in list(turns):
            try:
                measured.update(turn.measure())
            except CommandFailed as error:
                turns.remove(turn)
                reasons.update(dict.fromkeys(turn.names, str(error)))
        return measured

    names = [name for turn in turns for name in turn.names]
    return Figure(
        title=title,
        unit=unit,
        contenders=[*names, *(name for name in reasons if name not in names)],
        measure=measure,
        comparisons=comparisons,
        absent=reasons,
    )
