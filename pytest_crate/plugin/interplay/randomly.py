"""Keeps the random numbers that pytest-randomly has seeded: Python seeds its generator anew in a forked process."""

from __future__ import annotations

import random
from typing import Any

import pytest

from pytest_crate.plugin.interplay.adapter import Adapter


def adapter(_config: pytest.Config) -> Adapter:
    return _Seeded()


class _Seeded(Adapter):
    def __init__(self) -> None:
        self._state: Any = None

    def before_fork(self, item: pytest.Item) -> None:
        self._state = random.getstate()

    def child_starts(self, item: pytest.Item) -> None:
        random.setstate(self._state)
