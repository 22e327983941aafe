"""The documentation's table of places and what crates have there, made from runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tests.places.place import ALL_LIMITS, Place

HEAD = """\
<!-- written by: tox -e guest -- --places-update -->

| place | header | isolation, images, timeout | memory | cpus | pids | cpuset | what the failures name |
|---|---|---|---|---|---|---|---|
"""


def row(place: Place, header: str) -> str:
    """Return a place's line; only a place where all was as it must be gets one."""
    limits = ("memory", "cpus", "pids", "cpuset")
    marks = ["yes" if place.namespaces else "refused"]
    marks += ["yes" if place.namespaces and limit in place.limits else "refused" for limit in limits]
    enforced = place.namespaces and place.limits == ALL_LIMITS
    why = "" if enforced else f"`{place.refusal}`"
    return f"| {place.name} | `{header}` | {' | '.join(marks)} | {why} |"


def update(path: Path, rows: dict[str, str]) -> None:
    """Write the rows of the places that were visited; others stay as they are, in their order."""
    known: dict[str, str] = {}
    lines: Iterable[str] = path.read_text(encoding="utf-8").splitlines()[4:] if path.exists() else []
    for line in lines:
        known[line.split("|")[1].strip()] = line
    known.update(rows)
    path.write_text(HEAD + "".join(f"{line}\n" for line in known.values()), encoding="utf-8")
