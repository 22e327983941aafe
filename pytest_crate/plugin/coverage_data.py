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
    # coverage.py notices the fork and begins data of its own, in a file of the crate's private layer.
    return base64.b64encode(running.get_data().dumps()).decode("ascii")


def give(packed: str) -> None:
    """In pytest: add what a child has measured to the measurement of this process."""
    running = _running()
    if running is None:
        return
    module: Any = sys.modules["coverage"]
    data = module.CoverageData(no_disk=True)
    data.loads(base64.b64decode(packed))
    running.get_data().update(data)
