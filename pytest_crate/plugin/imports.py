"""Modules that crates import: those to be imported once, before any crate, and what the others cost in each."""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any

import pytest

_LEAST_USEC = 1_000
MOST_MODULES = 20


def preload(names: Iterable[str]) -> None:
    """Import modules, so that crates that are forked later have them.

    :raises pytest.UsageError: one can't be imported.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - whatever the module raises
            raise pytest.UsageError(
                f"ini crate_preload: {name!r} can't be imported: {type(error).__name__}: {error}"
            ) from None


def is_name(name: str) -> bool:
    """Whether a module may be hinted at by this name, which need not be an identifier: one word that can be printed."""
    return name.isprintable() and name.split() == [name]


class ImportTimes:
    """In a child: what it took to import modules that were not there yet, by the name that was asked for."""

    def __init__(self) -> None:
        self._spent: dict[str, int] = {}

    def start(self) -> None:
        """Measure from now on, in this thread; the process ends in a crate, so nothing is restored."""
        machinery: Any = importlib._bootstrap  # noqa: SLF001
        original = getattr(machinery, "_ModuleLockManager", None)
        # In this context the machinery loads a module, or loads it again. A function around that would be a frame in
        # tracebacks, and a finder in sys.meta_path would be seen there by tests.
        if original is not None:
            machinery._ModuleLockManager = _timed(original, self._spent)  # noqa: SLF001

    def take(self) -> dict[str, int]:
        """Return the dearest modules and their microseconds, and forget all."""
        dear = sorted(
            ((usec, name) for name, usec in self._spent.items() if usec >= _LEAST_USEC and is_name(name)), reverse=True
        )
        self._spent.clear()
        return {name: usec for usec, name in dear[:MOST_MODULES]}


def _timed(original: Any, spent: dict[str, int]) -> type[Any]:
    mine, get_ident, now, modules = threading.get_ident(), threading.get_ident, time.monotonic_ns, sys.modules
    busy: list[object] = []

    class Timed(original):  # type: ignore[misc]
        """The lock of a module that is loaded, and the time for which it is held."""

        def __init__(self, name: str) -> None:
            super().__init__(name)
            self._module = name
            self._start = 0

        def __enter__(self) -> None:
            super().__enter__()
            # What is imported on the way is a part of the outermost.
            if not busy and get_ident() == mine and self._module not in modules:
                busy.append(self)
                self._start = now()

        def __exit__(self, *error: object) -> None:
            super().__exit__(*error)
            if busy and busy[0] is self:
                busy.clear()
                if self._module in modules:
                    spent[self._module] = spent.get(self._module, 0) + (now() - self._start) // 1_000

    return Timed
