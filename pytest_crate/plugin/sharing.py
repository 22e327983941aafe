"""Which tests share a crate, one after the other: those of a class or module that follow each other (``scope``)."""

from __future__ import annotations

import dataclasses

import pytest

from pytest_crate.plugin import specs

NUMBER = pytest.StashKey[int]()
"""On an item: its place among all items. A child finds the next test by it."""

_NODES: dict[str, type[pytest.Class | pytest.File]] = {"class": pytest.Class, "module": pytest.File}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sharing:
    """What the tests in a shared crate have in common.

    :ivar home: their class or module.
    :ivar number: which of this process's shared crates it is.
    :ivar fixtures: how many wider fixtures had been set up or torn down in pytest when it was forked.
    """

    home: pytest.Collector
    number: int
    fixtures: int


def number_of(item: pytest.Item | None) -> int:
    """Return an item's place among all; -1 if there is no item, or it came later than the others."""
    return -1 if item is None else item.stash.get(NUMBER, -1)


def home_of(item: pytest.Item | None) -> pytest.Collector | None:
    """Return the class or module whose tests share the item's crate; None if the item has a crate of its own."""
    if item is None or not specs.rides(item) or NUMBER not in item.stash:
        return None
    kind = _NODES.get(item.stash[specs.SPEC].scope)
    return None if kind is None else item.getparent(kind)


def follows(item: pytest.Item | None, earlier: pytest.Item) -> bool:
    """Return whether an item can share a crate with an earlier one."""
    home = home_of(item)
    return (
        item is not None
        and home is not None
        and home is home_of(earlier)
        and item.stash[specs.SPEC] == earlier.stash[specs.SPEC]
    )
