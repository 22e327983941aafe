"""What was measured as a file: JSON for programs, and the table in the documentation."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import table
from benchmarks.rounds import Measured

_BEGIN = "<!-- written by: tox -e bench -- --update -->"
_END = "<!-- end -->"


def to_json(started: dt.datetime, facts: Sequence[str], done: Sequence[Measured]) -> dict[str, Any]:
    """Return everything as builtins."""
    return {
        "schema": 1,
        "started": started.isoformat(timespec="seconds"),
        "facts": list(facts),
        "figures": [measured.to_json() for measured in done],
    }


def update(page: Path, facts: Sequence[str], done: Sequence[Measured]) -> None:
    """Put the tables between the marks of a page.

    :raises ValueError: the page lacks the marks.
    """
    before, begin, rest = page.read_text().partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{page} has no lines {_BEGIN} and {_END}")
    page.write_text("\n".join([f"{before}{begin}", "", "```text", *_text(facts, done), "```", "", f"{end}{after}"]))


def _text(facts: Sequence[str], done: Sequence[Measured]) -> Iterator[str]:
    yield from facts
    for measured in done:
        yield from table.lines(measured)
    yield from table.summary(done)
