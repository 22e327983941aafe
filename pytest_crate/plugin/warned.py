"""Warnings as builtins: what a test in its crate warned of, shown by pytest as if it had been warned here."""

from __future__ import annotations

import linecache
import os
import stat
import tracemalloc
import warnings
from collections.abc import Mapping
from typing import Any

from pytest_crate.plugin import classes, private, raised, transfer

_MAX_WARNING = 1 << 16  # pytest's summary puts all warnings together in its memory
_MAX_SOURCE_BYTES = 1 << 20


class WarningCollector:
    """In a crate: keeps what is warned, with its source, until it is taken for pytest."""

    def __init__(self) -> None:
        self._log: list[warnings.WarningMessage] = []

    def start(self) -> None:
        """Keep what is warned from now on in this process."""
        # Not warnings.showwarning: it is not told the source. The process ends in here, so nothing is restored.
        self._log = warnings.catch_warnings(record=True).__enter__()

    def take(self) -> list[dict[str, Any]]:
        """Return what was warned since the last call, as builtins."""
        taken = list(self._log)
        del self._log[: len(taken)]
        return [_pack_warning(warning) for warning in taken]


def _pack_warning(warning: warnings.WarningMessage) -> dict[str, Any]:
    packed = {
        "text": transfer.to_builtins(transfer.to_text(warning.message)),
        "classes": [classes.name_of(kind) for kind in warning.category.__mro__],
        "filename": warning.filename,
        "lineno": warning.lineno,
        # Read where the test runs: it may have named any file, and one of the host's is not to be shown.
        "line": transfer.to_builtins(_line_of(warning)),
    }
    if warning.source is not None:
        allocated = tracemalloc.get_object_traceback(warning.source)
        packed["allocated"] = [] if allocated is None else transfer.to_builtins(allocated.format())
    return packed


def _line_of(warning: warnings.WarningMessage) -> str:
    if warning.line is None and is_source(warning.filename):
        return linecache.getline(warning.filename, warning.lineno).strip()
    return (warning.line or "").strip()


class _Source:
    """Stands for the object that a warning of a crate is about, such as an open file."""


def show_warning(data: Mapping[str, Any], *, abroad: bool) -> None:
    """In pytest: show a warning of a crate as if it had been raised here, past any filter.

    :param abroad: it is shown by another process, which is told classes by the names of modules (pytest-xdist).
    """
    names = [transfer.shortened(str(name), _MAX_WARNING) for name in data["classes"]]
    text = transfer.shortened(str(data["text"]), _MAX_WARNING)
    message: Warning | str
    if abroad:
        # It imports the module, and calls whatever there has that name: it gets a text, and a class that it has, too.
        known = (classes.find(name, Warning) for name in names)
        category = next((kind for kind in known if kind is not None and classes.is_of_a_module(kind)), Warning)
        message = text if classes.name_of(category) == names[0] else f"{names[0].partition(':')[2]}: {text}"
    else:
        made = raised.rebuilt(names, text)
        message = made if isinstance(made, Warning) else Warning(text)
        category = type(message)
    path, number = transfer.shortened(str(data["filename"]), _MAX_WARNING), int(data["lineno"])
    if number < 0:
        raise ValueError(f"a warning of line {number}")
    allocated = data.get("allocated")
    # Whoever formats a warning without a line reads the file, whatever that is.
    line = transfer.shortened(str(data["line"]), _MAX_WARNING)
    if allocated:
        # pytest would look for it in its own memory. It shows the line of the source, and then this.
        line = transfer.shortened("\n".join([line, "", "Object allocated at:", *allocated]), _MAX_WARNING)
    source = _Source() if allocated == [] else None
    shown = warnings.WarningMessage(message, category, path, number, line=line, source=source)
    private.show_warning_message(shown)


def is_source(path: str) -> bool:
    """Whether a file may be read to show a line of it.

    A test may name anything, a pipe or a file without end, which nobody should wait for or hold.
    """
    if path in linecache.cache:
        return True
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size <= _MAX_SOURCE_BYTES
