"""Compares runs of a suite: which tests look, in a crate, like none of their plain runs."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tests.comparing import without_varying
from tests.parity.running import Run
from tests.parity.suites import Suite

_MORE_VARYING = (
    (re.compile(r"pytest-of-(\w+)/pytest-\d+"), r"pytest-of-\1/pytest-N"),
    # What xdist puts before every failure.
    (re.compile(r"\[gw\d+\] linux -- Python [^\\\"]*(?:\\n)*"), ""),
    (re.compile(r"\[gw\d+\]"), "[gwN]"),
    (re.compile(r"popen-gw\d+/"), ""),
    (re.compile(r"\bgw\d+\b"), "gwN"),
    # Tests of one name share a row of numbers, in the order in which they come to a worker.
    (re.compile(r"(/pytest-N/\w*?)\d+\b"), r"\1N"),
)

_DIFF_LINES = 40

Key = tuple[str, str]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How a test looked in one run: ``coarse`` is what never varies of a steady test, ``full`` everything."""

    coarse: str
    full: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A test that looked, in crates, like none of its plain runs.

    :ivar reason: why the table of suites allows it; None if it does not.
    """

    test: str
    run: str
    reason: str | None
    text: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the runs of a suite come to.

    :ivar tests: tests reported in crates, in one process.
    :ivar reports: their reports, subtests' included.
    :ivar crated: tests whose body rode in a crate.
    :ivar unsteady: tests that look different from one plain run to another.
    :ivar flaky: tests whose outcome differs from one plain run to another.
    """

    tests: int
    reports: int
    crated: int
    unsteady: tuple[str, ...]
    flaky: tuple[str, ...]
    differences: tuple[Difference, ...]

    @property
    def unexplained(self) -> list[Difference]:
        return [difference for difference in self.differences if difference.reason is None]


def judge(suite: Suite, plain: Sequence[Run], crated: Sequence[Run]) -> Verdict:
    """Compare: each test must look, in each crated run, like one of its plain runs.

    Where a test looks the same in all plain runs, it must look so in every particular. Where it doesn't, because
    its texts vary or because it is flaky, its reports and their outcomes must be those of one plain run.
    """
    before = [_looks(run) for run in plain]
    keys = sorted({key for looks in before for key in looks})
    unsteady = [key for key in keys if len({looks[key].full if key in looks else "" for looks in before}) > 1]
    flaky = [key for key in keys if len({looks[key].coarse if key in looks else "" for looks in before}) > 1]
    differences = []
    for run in crated:
        looks = _looks(run)
        for key in sorted({*keys, *looks}):
            seen = [each.get(key) for each in before]
            now = looks.get(key)
            level = "coarse" if key in set(unsteady) else "full"
            if _at(now, level) not in {_at(each, level) for each in seen}:
                text = _diff(seen[0], now, run.name, level)
                differences.append(
                    Difference(test=key[1], run=f"{run.name}, {key[0]}", reason=suite.reason(key[1]), text=text)
                )
        if run.returncode not in {each.returncode for each in plain} and all(d.reason is None for d in differences):
            text = f"exit status {plain[0].returncode} plain, {run.returncode} in crates"
            differences.append(Difference(test="", run=run.name, reason=suite.reason(""), text=text))
    first = crated[0]
    return Verdict(
        tests=len({report["nodeid"] for report in first.reports}),
        reports=len(first.reports),
        crated=len({report["nodeid"] for report in first.reports if report["crates"]}),
        unsteady=tuple(sorted({_as_in_junit(test) for _, test in unsteady})),
        flaky=tuple(sorted({_as_in_junit(test) for _, test in flaky})),
        differences=tuple(differences),
    )


def _at(look: Look | None, level: str) -> str:
    return "" if look is None else str(getattr(look, level))


def _looks(run: Run) -> dict[Key, Look]:
    """Return how every test looked, by what is looked at: its reports, its warnings, its JUnit XML."""
    found: defaultdict[Key, list[tuple[Any, Any]]] = defaultdict(list)
    for report in run.reports:
        full = {name: value for name, value in report.items() if name not in ("crates", "uncrated", "pid")}
        # pytest's own name for a body's crate; what an allowed difference adds to a failure is in its sections.
        coarse = [report["when"], report["outcome"], report["kind"], [title for title, _ in report["sections"]]]
        found["reports", report["nodeid"]].append((coarse, full))
    for warning in run.warnings:
        found["warnings", warning["nodeid"]].append(([warning["category"], warning["when"]], warning))
    for tag, attributes, text, children in run.junit:
        name = f"{attributes.get('classname', '')}::{attributes.get('name', tag)}"
        found["JUnit XML", name].append(([tag, [child[0] for child in children]], [tag, attributes, text, children]))
    return {key: _look(parts) for key, parts in found.items()}


def _look(parts: Iterable[tuple[Any, Any]]) -> Look:
    # Reports of one test come in one order; warnings, of several processes, do not.
    coarse, full = zip(*sorted(parts, key=lambda part: json.dumps(part[0])), strict=True)
    return Look(coarse=json.dumps(coarse, indent=1), full=_steady(json.dumps(full, indent=1)))


def _steady(text: str) -> str:
    text = without_varying(text)
    for pattern, replacement in _MORE_VARYING:
        text = pattern.sub(replacement, text)
    return text


def _diff(plain: Look | None, crated: Look | None, name: str, level: str) -> str:
    if plain is None or crated is None:
        return f"only {'plain' if crated is None else name}"
    lines = list(
        difflib.unified_diff(
            _at(plain, level).replace("\\n", "\n").splitlines(),
            _at(crated, level).replace("\\n", "\n").splitlines(),
            "plain",
            name,
            n=2,
            lineterm="",
        )
    )
    more = len(lines) - _DIFF_LINES
    return "\n".join([*lines[:_DIFF_LINES], *([f"... {more} more lines"] if more > 0 else [])])


def describe(suite: Suite, verdict: Verdict) -> str:
    """Return what there is to say of a suite, differences first by kind of run."""
    lines = [
        f"{suite.name} {suite.version}: {verdict.tests} tests, {verdict.reports} reports, {verdict.crated} in crates",
        f"  {len(verdict.unsteady)} vary plain, {len(verdict.flaky)} of them in their outcome",
        f"  {len(verdict.differences)} differences, {len(verdict.unexplained)} without a reason",
    ]
    lines += [f"  flaky plain: {test}" for test in verdict.flaky]
    for difference in verdict.differences:
        lines.append(f"- {difference.test or 'the run'} ({difference.run})")
        lines.append(f"  allowed: {difference.reason}" if difference.reason else difference.text)
    return "\n".join(lines)


def _as_in_junit(test: str) -> str:
    """Return one name for a test, whether it is told of by its node id or as JUnit XML has it."""
    return test.replace(".py::", ".").replace("::", ".").replace("/", ".")


def reasons(verdict: Verdict) -> Mapping[str, int]:
    """Return how many tests differ for each reason of the table."""
    tests = {(_as_in_junit(each.test), each.reason) for each in verdict.differences if each.reason}
    return Counter(reason for _, reason in sorted((test, reason) for test, reason in tests if reason))
