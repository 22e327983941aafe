"""Has pytest-django set up its databases once, outside: it asks for that only while a test is set up."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from pytest_crate.plugin.interplay.adapter import Adapter


def adapter(_config: pytest.Config) -> Adapter:
    return _Databases()


class _Databases(Adapter):
    def wider_fixtures(self, item: pytest.Item) -> Iterable[str]:
        # The plugin's own fixture for the marker, and those for live_server, ask by name.
        if item.get_closest_marker("django_db") or "live_server" in getattr(item, "fixturenames", ()):
            return ("django_db_setup",)
        return ()
