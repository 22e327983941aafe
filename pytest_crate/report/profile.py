"""Where the time of a run's crates went: what ``--crate-debug`` prints at the end."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping

Spent = Mapping[str, Mapping[str, int]]
"""What each step of a crate took, by process and step, in microseconds."""


def profile_lines(crates: Iterable[Spent]) -> list[str]:
    """Return a table of the steps, process by process: each one's median over the crates that had it, and how many had.

    The processes are at work at the same time: each has a sum of its own. That of ``pytest`` is the time from a test's
    own set-up to the end of its crate.
    """
    found: dict[str, dict[str, list[int]]] = {}
    sums: dict[str, list[int]] = {}
    for spent in crates:
        for process, steps in spent.items():
            if steps:
                sums.setdefault(process, []).append(sum(steps.values()))
            for step, usec in steps.items():
                found.setdefault(process, {}).setdefault(step, []).append(usec)
    lines = ["crate steps (median ms, crates):"]
    for process, by_step in found.items():
        lines.append(_line(f"  {process}", sums[process]))
        lines += [_line(f"    {step}", figures) for step, figures in by_step.items()]
    return lines


def _line(title: str, usec: list[int]) -> str:
    return f"{title:<44}{statistics.median(usec) / 1e3:>9.3f}{len(usec):>7}"
