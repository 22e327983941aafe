"""What an adapter for another plugin has to do on both sides of the fork."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any

import pytest


class Adapter:
    """Brings home what one plugin keeps in memory, or in files that are private in a crate."""

    at_end = False
    """Whether what is brought home is a whole crate's, and not a test's: it is taken once, at the crate's end."""

    def shares(self, item: pytest.Item) -> bool:
        """In pytest: whether the item can ride in a crate with others before and after it (``scope``).

        What is taken from a crate between two tests must then be each one's own.
        """
        return True

    def wider_fixtures(self, item: pytest.Item) -> Iterable[str]:
        """In pytest, before the fork: return the wider fixtures that the item asks for by name while it is set up.

        Nothing else says that it uses them; without this each crate would set up its own.
        """
        return ()

    def brings_much(self, item: pytest.Item) -> bool:
        """In pytest: whether what is brought home may be large: whole files, or something of every line."""
        return False

    def before_fork(self, item: pytest.Item) -> None:
        """In pytest, when the wider fixtures are set up."""

    def child_starts(self, item: pytest.Item) -> None:
        """In a child, before anything of the test runs."""

    def take_phase(self, item: pytest.Item) -> Any:
        """In a child that reports a phase: as :meth:`take`, of what has to be there when the report is made in pytest.

        Short: it goes with the report.
        """

    def verify_report(self, item: pytest.Item, report: pytest.TestReport) -> None:
        """In pytest, before a report of a child's is used: verify what the plugin has added to it, or takes from it.

        :raises ValueError, TypeError, KeyError: it is not what it should be.
        """

    def give_phase(self, item: pytest.Item, data: Any) -> None:
        """In pytest, before the report of a phase is made: use what :meth:`take_phase` returned, as :meth:`give`."""

    def take(self, item: pytest.Item) -> Any:
        """In a child that is about to leave: return, as JSON's builtins, what pytest's process needs; None if nothing.

        It goes home after the test's teardown; what a test killed by its crate had kept is lost.
        """

    def mirror_starts(self, item: pytest.Item) -> None:
        """In pytest, after the fork."""

    def mirror_ends(self, item: pytest.Item) -> None:
        """In pytest, when the crate is gone; before :meth:`give` is called no more."""

    def give(self, item: pytest.Item, data: Any) -> None:
        """In pytest: use what :meth:`take` returned, having checked all of it.

        A test may forge it. So it says *what*, and never *where*: the places that are written to, and the objects that
        are changed, are found in pytest's own process.

        :raises ValueError, TypeError, KeyError: it is not what it should be.
        """


def from_bytes(data: bytes) -> str:
    """Return bytes as text for JSON."""
    return base64.b64encode(data).decode("ascii")


def to_bytes(text: str) -> bytes:
    """Return the bytes of :func:`from_bytes`.

    :raises ValueError: the text is no base64.
    """
    return base64.b64decode(text, validate=True)


def expect(value: Any, kind: type | tuple[type, ...]) -> Any:
    """Return the value if it is of the kind; a bool counts as no number.

    :raises TypeError: it isn't.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise TypeError(f"{type(value).__name__} where {' or '.join(each.__name__ for each in kinds)} is expected")
    return value
