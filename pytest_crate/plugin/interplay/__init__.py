"""What other plugins keep in pytest's memory and files while a test runs, brought home from its crate."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from pytest_crate.plugin import transfer
from pytest_crate.plugin.interplay.adapter import Adapter

__all__ = ["HOME", "Adapter", "Interplay"]

# Each adapter's module, and the module of the plugin that it is for: it is loaded if that one is.
_ADAPTERS = (
    ("allure", "allure_pytest"),
    ("bdd", "pytest_bdd"),
    ("benchmark", "pytest_benchmark"),
    ("coverage", ""),  # may be started at any time, by a wider fixture too
    ("django", "pytest_django"),
    ("html", "pytest_html"),
    ("httpserver", "pytest_httpserver"),
    ("hypothesis", "hypothesis"),
    ("postgresql", "pytest_postgresql"),
    ("randomly", "pytest_randomly"),
    ("regressions", "pytest_regressions"),
    ("syrupy", "syrupy"),
    ("timeout", "pytest_timeout"),
    ("xdist", "xdist"),
)

_MAX_TOLD = 1 << 12

HOME = pytest.StashKey["Interplay"]()
"""On the config: the adapters of the plugins that are there."""


class Interplay:
    """The adapters of the plugins that are loaded; what they take is JSON of builtins."""

    def __init__(self, config: pytest.Config) -> None:
        self._adapters: dict[str, Adapter] = {}
        for name, module in _ADAPTERS:
            if not module or module in sys.modules:
                adapter = importlib.import_module(f"{__name__}.{name}").adapter(config)
                if adapter is not None:
                    self._adapters[name] = adapter

    def brings_much(self, item: pytest.Item) -> bool:
        """Whether what is brought home may be large."""
        return any(adapter.brings_much(item) for adapter in self._adapters.values())

    def wider_fixtures(self, item: pytest.Item) -> list[str]:
        """In pytest, before the fork: return the wider fixtures that plugins ask for while the item is set up."""
        return [name for adapter in self._adapters.values() for name in adapter.wider_fixtures(item)]

    def shares(self, item: pytest.Item) -> bool:
        """In pytest: whether the item can ride in a crate with others before and after it."""
        return all(adapter.shares(item) for adapter in self._adapters.values())

    def before_fork(self, item: pytest.Item) -> None:
        """In pytest, when the wider fixtures are set up."""
        for adapter in self._adapters.values():
            adapter.before_fork(item)

    def child_starts(self, item: pytest.Item) -> None:
        """In a child, confined: note what is there already."""
        for adapter in self._adapters.values():
            adapter.child_starts(item)

    def mirror_starts(self, item: pytest.Item) -> None:
        """In pytest, after the fork."""
        for adapter in self._adapters.values():
            adapter.mirror_starts(item)

    def mirror_ends(self, item: pytest.Item) -> None:
        """In pytest, when the crate is gone."""
        for adapter in self._adapters.values():
            adapter.mirror_ends(item)

    def take_phase(self, item: pytest.Item) -> dict[str, Any]:
        """In a child that reports a phase: return what each plugin has to have before it sees the report."""
        return self._take(lambda adapter: adapter.take_phase(item))

    def take(self, item: pytest.Item, *, leaves: bool) -> dict[str, Any]:
        """In a child, at the end of a test: return what each plugin has to have in pytest's process.

        :param leaves: no other test follows in this crate.
        """
        return self._take(lambda adapter: adapter.take(item) if leaves or not adapter.at_end else None)

    def _take(self, take: Callable[[Adapter], Any]) -> dict[str, Any]:
        taken: dict[str, Any] = {}
        for name, adapter in self._adapters.items():
            try:
                data = take(adapter)
            except Exception as error:  # noqa: BLE001 - another package's, and said
                taken[name] = {"lost": f"{type(error).__name__}: {error}"}
            else:
                if data is not None:
                    taken[name] = {"data": data}
        return taken

    def verify_report(self, item: pytest.Item, report: pytest.TestReport) -> None:
        """In pytest, before a report of a child's is used: verify what plugins take from it.

        :raises ValueError: it is not what they take; with the plugin's name.
        """
        for name, adapter in self._adapters.items():
            try:
                adapter.verify_report(item, report)
            except Exception as error:
                raise ValueError(f"what {name} takes from a report: {_told(error)}") from error

    def give_phase(self, item: pytest.Item, taken: Mapping[str, Any]) -> None:
        """In pytest, before a phase's report is made: give each plugin what :meth:`take_phase` returned.

        :raises ValueError: it is not that; with the plugin's name.
        """
        self._give(taken, lambda adapter, data: adapter.give_phase(item, data))

    def give(self, item: pytest.Item, taken: Mapping[str, Any]) -> None:
        """In pytest: give each plugin what was taken in the child.

        What it holds is the word of a process that may not be trusted; each adapter takes its own apart.

        :raises ValueError: it is not what :meth:`take` returns; with the plugin's name.
        """
        self._give(taken, lambda adapter, data: adapter.give(item, data))

    def _give(self, taken: Mapping[str, Any], give: Callable[[Adapter, Any], None]) -> None:
        for name, brought in taken.items():
            if name not in self._adapters or not isinstance(brought, dict):
                raise ValueError(f"nothing is expected from {name!r}")
            if "lost" in brought:
                raise ValueError(
                    f"what {name} kept in the crate could not be brought home: {_shortened(brought['lost'])}"
                )
            try:
                give(self._adapters[name], brought["data"])
            except Exception as error:
                raise ValueError(f"what {name} kept in the crate could not be used: {_told(error)}") from error


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {_shortened(error)}"


def _shortened(told: object) -> str:
    # A test's own word may be quoted in it, however long that is.
    return transfer.shortened(str(told), _MAX_TOLD)
