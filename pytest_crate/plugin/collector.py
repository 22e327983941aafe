"""Keeps Python's garbage collector away, in a crate, from what pytest's process holds, until a test looks."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
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
    """In a child: have the objects there again as soon as one of the collector's functions is called."""
    if not frozen:
        return
    own = {name: getattr(gc, name) for name in _LOOKS}
    looks: dict[str, Callable[..., Any]] = {}

    def unfreeze() -> None:
        for name, look in looks.items():
            if getattr(gc, name) is look:  # a test may have mocked it
                setattr(gc, name, own[name])
        own["unfreeze"]()

    def looking(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def look(*args: Any, **options: Any) -> Any:
            unfreeze()
            return function(*args, **options)

        return look

    for name, function in own.items():
        looks[name] = looking(function)
        setattr(gc, name, looks[name])
