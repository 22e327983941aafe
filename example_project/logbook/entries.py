"""Entries of a web server's log in the Common Log Format."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator

_LINE = re.compile(
    r'(?P<client>\S+) \S+ \S+ \[[^\]]*\] "(?P<method>[A-Z]+) (?P<path>\S+) [^"]*" (?P<status>\d{3}) (?P<size>\d+|-)'
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One request: who asked for what, and what came of it."""

    client: str
    path: str
    status: int
    size_bytes: int


def parse(lines: Iterable[str]) -> Iterator[Entry]:
    """Yield the entries of a log, one at a time; lines that are not requests are passed over."""
    for line in lines:
        if match := _LINE.match(line):
            size = match["size"]
            yield Entry(
                client=match["client"],
                path=match["path"],
                status=int(match["status"]),
                size_bytes=0 if size == "-" else int(size),
            )
