"""Brings home what coverage.py has measured in a crate, whose files are gone when it ends."""

from __future__ import annotations

import base64
import sys
from typing import Any


def _running() -> Any:
    # Not imported: whoever measures has imported it.
    module: Any = sys.modules.get("coverage")
    return None if module is None else module.Coverage.current()


def take() -> str | None:
    """In a child that is about to leave: end the measurement and return its data, packed; None if nothing measures."""
    running = _running()
    if running is None:
        return None
    running.stop()
    # coverage.py notices the fork and begins a file of its own, in the crate's private layer; but it believes to have
    # said there already whether lines or branches are measured. A copy says it.
    copy = sys.modules["coverage"].CoverageData(no_disk=True)
    copy.update(running.get_data())
    return base64.b64encode(copy.dumps()).decode("ascii")


def give(packed: str) -> None:
    """In pytest: add what a child has measured to the measurement of this process."""
    running = _running()
    if running is None:
        return
    module: Any = sys.modules["coverage"]
    data = module.CoverageData(no_disk=True)
    data.loads(base64.b64decode(packed))
    measured = running.get_data()
    measured.update(data)
    if not data.measured_contexts() - {""}:
        # Said once more, piece by piece: coverage combines only one of several workers' files that have the same
        # hash, and what update() adds is not hashed (coverage 7.17, sqldata.py). Contexts are, by their names.
        for file in data.measured_files():
            if data.has_arcs():
                measured.add_arcs({file: data.arcs(file) or []})
            else:
                measured.add_lines({file: data.lines(file) or []})
