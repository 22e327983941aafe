"""Parts a crate from the way to pytest-xdist's controller, which is the worker's alone."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

from pytest_crate.plugin.interplay.adapter import Adapter


def adapter(config: pytest.Config) -> Adapter | None:
    for plugin in config.pluginmanager.get_plugins():
        if type(plugin).__name__ == "WorkerInteractor":
            # execnet's pipes; a worker reached by a socket has none.
            way = plugin.channel.gateway._io  # noqa: SLF001
            return _Worker([getattr(way, name).fileno() for name in ("infile", "outfile") if hasattr(way, name)])
    return None


class _Worker(Adapter):
    def __init__(self, descriptors: Sequence[int]) -> None:
        self._descriptors = descriptors

    def child_starts(self, item: pytest.Item) -> None:
        # A test that writes to all that it has inherited, or reads from it, would hang the whole run.
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for descriptor in self._descriptors:
            os.dup2(null, descriptor, inheritable=False)
        os.close(null)
