"""The table of results in the documentation: written by a run, never by hand."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.parity.suites import SUITES, Suite
from tests.parity.verdict import Verdict, reasons

_HEAD = (
    "<!-- written by: tox -e parity -- --parity-update -->",
    "",
    "| suite | version | tests | reports | in crates | vary plain | differences |",
    "|---|---|---:|---:|---:|---:|---|",
)


def lines(verdicts: Mapping[str, Verdict]) -> Iterator[str]:
    """Yield one row for each suite that was run."""
    for suite in SUITES:
        if suite.name in verdicts:
            yield row(suite, verdicts[suite.name])


def row(suite: Suite, verdict: Verdict) -> str:
    known = [f"{count}: {reason}" for reason, count in reasons(verdict).items()]
    if verdict.unexplained:
        known.append(f"**{len({each.test for each in verdict.unexplained})} unexplained**")
    cells = (
        suite.name,
        suite.version,
        verdict.tests,
        verdict.reports,
        verdict.crated,
        len(verdict.unsteady),
        "; ".join(known) or "none",
    )
    return f"| {' | '.join(map(str, cells))} |"


def read(path: Path) -> dict[str, str]:
    """Return the rows of the table by the suite's name."""
    text = path.read_text() if path.exists() else ""
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| suite |")]
    return {row.split(" | ")[0].removeprefix("| "): row for row in rows}


def update(path: Path, verdicts: Mapping[str, Verdict]) -> None:
    """Write the rows of the suites that were run; those of the other suites of the table stay."""
    with path.open("a") as locked:
        # One run may be at one half of the suites, and another at the other. The lock goes with the descriptor.
        fcntl.flock(locked, fcntl.LOCK_EX)
        rows = read(path)
        rows |= {suite.name: row(suite, verdicts[suite.name]) for suite in SUITES if suite.name in verdicts}
        kept = [rows[suite.name] for suite in SUITES if suite.name in rows]
        parts = [f"- {suite.name}, in part: {suite.part}" for suite in SUITES if suite.part and suite.name in rows]
        notes = [f"- {suite.name}: on two workers only" for suite in SUITES if suite.on_workers and suite.name in rows]
        path.write_text("\n".join([*_HEAD, *kept, "", *parts, *notes, ""]))
