"""Every private name of pytest and pluggy that the plugin touches, each behind a function that says what for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
from _pytest.outcomes import Failed

__all__ = [
    "Failed",
    "capture_suspended",
    "count_failed_subtest",
    "drop_wider_finalizers",
    "finalizers",
    "is_driven_by",
    "keep_only",
    "set_up_wider_fixtures",
    "tear_down_all",
]

# These names are pytest's own affair; nothing else in the package may use one.
# ruff: noqa: SLF001


def set_up_wider_fixtures(item: pytest.Item) -> None:
    """Set up, in the calling process, every fixture of the item with a scope wider than a function.

    In the order in which pytest itself would: ``fixturenames`` is sorted by scope. The values are
    cached by their definitions, so that the item's own set-up finds them.
    """
    request = getattr(item, "_request", None)
    information = getattr(item, "_fixtureinfo", None)
    if request is None or information is None:
        return  # an item of another plugin, without fixtures
    for name in list(getattr(item, "fixturenames", ())):
        definitions = information.name2fixturedefs.get(name)
        if definitions and definitions[-1].scope != "function":
            request.getfixturevalue(name)


def finalizers(item: pytest.Item) -> list[Callable[[], object]]:
    """Return the live list of the item's own finalizers, ``item.teardown`` first."""
    stack = item.session._setupstate.stack
    found: list[Callable[[], object]] = stack[item][0]
    return found


def drop_wider_finalizers(item: pytest.Item) -> None:
    """In a forked child: forget the finalizers of every collector; they are the parent's to run."""
    for node, (pending, _) in item.session._setupstate.stack.items():
        if node is not item:
            pending.clear()


def tear_down_all(item: pytest.Item) -> None:
    """Run every finalizer that is still pending, the item's before its collectors'."""
    item.session._setupstate.teardown_exact(None)


def keep_only(config: pytest.Config, hook_name: str, plugin: object) -> None:
    """In a forked child: let one plugin alone see a hook from now on."""
    caller = getattr(config.pluginmanager.hook, hook_name)
    for implementation in list(caller.get_hookimpls()):
        if implementation.plugin is not plugin:
            caller._remove_plugin(implementation.plugin)


def is_driven_by(item: pytest.Item, names: frozenset[str]) -> bool:
    """Return whether the item requests one of the fixtures, directly or through another fixture."""
    return not names.isdisjoint(getattr(item, "fixturenames", ()))


def capture_suspended(config: pytest.Config) -> AbstractContextManager[None]:
    """Return a context in which what is written to the terminal gets there, in the midst of a phase."""
    manager = config.pluginmanager.getplugin("capturemanager")
    suspended: AbstractContextManager[None] = (
        nullcontext() if manager is None else manager.global_and_fixture_disabled()
    )
    return suspended


def count_failed_subtest(item: pytest.Item, report: pytest.TestReport) -> None:
    """Count a report of the item's if it is a failed subtest's: a test with such a one fails (pytest 9)."""
    try:
        from _pytest import subtests
    except ImportError:
        return
    if report.failed and isinstance(report, subtests.SubtestReport):
        # The key is the node's id, which newer versions of pytest have as an object.
        item.config.stash[subtests.failed_subtests_key][getattr(item, "id", item.nodeid)] += 1
