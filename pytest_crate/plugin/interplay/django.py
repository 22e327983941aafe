"""Has pytest-django set up its databases once, outside, and its live server serve in the crate."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import pytest

from pytest_crate.plugin import private, specs
from pytest_crate.plugin.interplay.adapter import Adapter


def adapter(_config: pytest.Config) -> Adapter:
    return _Databases()


class _Databases(Adapter):
    def shares(self, item: pytest.Item) -> bool:
        return not self.wider_fixtures(item)

    def wider_fixtures(self, item: pytest.Item) -> Iterable[str]:
        # It asks for that only while a test is set up: by the marker, or for live_server.
        if item.get_closest_marker("django_db") or "live_server" in getattr(item, "fixturenames", ()):
            return ("django_db_setup",)
        return ()

    def child_starts(self, item: pytest.Item) -> None:
        # Its thread is pytest's, and so are the network that it listens in and the database that it sees.
        kind = sys.modules["pytest_django.live_server_helper"].LiveServer
        for server in private.wider_values(item):
            if isinstance(server, kind):
                thread = server.thread
                thread.httpd.server_close()
                # On the host's network its port is taken: pytest's own process listens there.
                port = "" if item.stash[specs.SPEC].network == "host" else f":{thread.port}"
                kind.__init__(server, f"{thread.host}{port}")
