"""Has pytest-postgresql start its server once, outside: its clients ask for that only while a test is set up."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

import pytest

from pytest_crate.plugin import private
from pytest_crate.plugin.interplay.adapter import Adapter


def adapter(_config: pytest.Config) -> Adapter:
    return _Servers()


class _Servers(Adapter):
    def wider_fixtures(self, item: pytest.Item) -> Iterable[str]:
        for function in private.fixture_functions(item):
            if function.__module__ == "pytest_postgresql.factories.client":
                # What the factory of the client was given as the name of its server's fixture.
                yield inspect.getclosurevars(function).nonlocals["process_fixture_name"]
