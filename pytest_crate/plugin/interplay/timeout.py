"""Moves pytest-timeout's timer into the crate: neither a thread nor an interval timer survives a fork."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Self

import pytest

from pytest_crate.kernel import monotonic
from pytest_crate.plugin.interplay.adapter import Adapter


def adapter(config: pytest.Config) -> Adapter | None:
    if not hasattr(config.hook, "pytest_timeout_set_timer"):
        return None
    moved = _Timer()
    config.pluginmanager.register(moved, "crate-timeout")
    return moved


class _Rest(float):
    """The seconds that are left of a timeout, which prints as the whole."""

    def __new__(cls, rest: float, whole: object) -> Self:
        seconds = super().__new__(cls, rest)
        seconds.whole = whole  # type: ignore[attr-defined]
        return seconds

    def __str__(self) -> str:
        return str(self.whole)  # type: ignore[attr-defined]


class _Timer(Adapter):
    def __init__(self) -> None:
        self._set: tuple[float, Any] | None = None
        self._mirroring = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_timeout_set_timer(self, settings: Any) -> bool | None:
        """Note until when; in the mirror no timer is set, for the child sets it, too."""
        if isinstance(settings.timeout, _Rest):
            return None
        self._set = (monotonic.seconds() + settings.timeout, settings)
        return True if self._mirroring else None

    @pytest.hookimpl(tryfirst=True)
    def pytest_timeout_cancel_timer(self) -> None:
        """Note that there is none any more."""
        self._set = None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """In the mirror: note a failure, after which there is no timer any more (pytest_exception_interact)."""
        report = yield
        if self._mirroring and report.failed and not hasattr(report, "wasxfail"):
            self._set = None
        return report

    def child_starts(self, item: pytest.Item) -> None:
        # Zero would be no timeout at all.
        self._go_on(item, least=0.001)

    def mirror_starts(self, item: pytest.Item) -> None:
        running = self._set
        item.config.hook.pytest_timeout_cancel_timer(item=item)
        self._set, self._mirroring = running, True

    def mirror_ends(self, item: pytest.Item) -> None:
        self._mirroring = False
        self._go_on(item)

    def _go_on(self, item: pytest.Item, least: float = 0) -> None:
        if self._set is None:
            return
        end, settings = self._set
        rest = max(end - monotonic.seconds(), least)
        if rest > 0:  # else it was over in the crate
            settings = settings._replace(timeout=_Rest(rest, settings.timeout))
            item.config.hook.pytest_timeout_set_timer(item=item, settings=settings)
