"""Keeps Python's garbage collector away, in a crate, from what pytest's process holds, until a test looks."""

from __future__ import annotations

import gc
from typing import Any

# What shows the difference (CPython, Modules/gcmodule.c): frozen objects are neither collected nor listed.
_LOOKS = ("collect", "freeze", "get_freeze_count", "get_objects", "get_referrers", "unfreeze")


def before_fork() -> bool:
    """Freeze what is alive; return whether that was done.

    A collection touches, and so copies, every page that holds an object (gc.freeze, Python 3.7). It is not done to who
    has frozen objects already: they could not be told apart any more.
    """
    if gc.get_freeze_count():
        return False
    gc.freeze()
    return True


def after_fork(frozen: bool) -> None:
    """In pytest: let the objects be collected again."""
    if frozen:
        gc.unfreeze()


def in_child(frozen: bool) -> None:
    """In a child: have the objects there again as soon as one of the collector's functions is looked up."""
    if not frozen:
        return
    module = vars(gc)
    # Not functions in place of theirs: get_referrers would find the frame that calls one, and so would a mock.
    functions = {name: module.pop(name) for name in _LOOKS}

    def unfreeze() -> None:
        if functions:
            functions["unfreeze"]()
            for name, function in functions.items():
                module.setdefault(name, function)  # a test may have put another there
            functions.clear()
            del module["__getattr__"], module["__dir__"]

    def look_up(name: str) -> Any:
        unfreeze()
        return getattr(gc, name)

    def names() -> list[str]:
        unfreeze()
        return dir(gc)

    # A module's own, asked for a name that it lacks (PEP 562).
    module.update(__getattr__=look_up, __dir__=names)
