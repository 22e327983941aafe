"""What a child says of its own cost: nothing depends on it, but a test may have forged it, and it is printed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pytest_crate.plugin.imports import MOST_MODULES, is_name
from pytest_crate.sandbox.steps import STEPS


def checked_imports(told: object) -> Mapping[str, int]:
    """Return the modules that were imported, and the microseconds that took.

    :raises ValueError: it is nothing of the kind.
    """
    return _checked(told, is_name, MOST_MODULES)


def checked_steps(told: object) -> Mapping[str, int]:
    """Return the steps of a body, and the microseconds that each took.

    :raises ValueError: it is nothing of the kind.
    """
    return _checked(told, STEPS["body"].__contains__, len(STEPS["body"]))


def _checked(told: object, known: Callable[[str], bool], most: int) -> Mapping[str, int]:
    if not isinstance(told, dict) or len(told) > most:
        raise ValueError("these are no figures")
    for name, usec in told.items():
        if not known(name) or type(usec) is not int or not 0 <= usec < 1 << 53:
            raise ValueError(f"{name!r}: {usec!r} is no figure")
    return told
