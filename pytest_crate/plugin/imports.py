"""Modules that crates import: those to be imported once, before any crate, and what the others cost in each."""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections.abc import Callable, Iterable
from types import FunctionType
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
        original = getattr(machinery, "_find_and_load", None)
        # What the import statement calls for a module that is not in sys.modules, and for no other (CPython, import.c,
        # import_find_and_load). A finder in sys.meta_path would be seen there by tests.
        if original is not None:
            machinery._find_and_load = _timed(original, self._spent)  # noqa: SLF001

    def take(self) -> dict[str, int]:
        """Return the dearest modules and their microseconds, and forget all."""
        dear = sorted(
            ((usec, name) for name, usec in self._spent.items() if usec >= _LEAST_USEC and is_name(name)), reverse=True
        )
        self._spent.clear()
        return {name: usec for usec, name in dear[:MOST_MODULES]}


def _timed(original: Callable[..., Any], spent: dict[str, int]) -> Callable[..., Any]:
    mine, get_ident, now, modules = threading.get_ident(), threading.get_ident, time.monotonic_ns, sys.modules
    busy: list[str] = []

    def find_and_load(name: str, import_: Any) -> Any:
        # What is imported on the way is a part of the outermost.
        if busy or get_ident() != mine:
            return original(name, import_)
        busy.append(name)
        start = now()
        try:
            return original(name, import_)
        finally:
            busy.clear()
            if name in modules:
                spent[name] = spent.get(name, 0) + (now() - start) // 1_000

    # Under the name of the machinery's own file its frame is taken out of tracebacks as the machinery's are
    # (import.c, remove_importlib_frames).
    code = find_and_load.__code__.replace(co_filename=original.__code__.co_filename)
    return FunctionType(code, find_and_load.__globals__, "_find_and_load", None, find_and_load.__closure__)
