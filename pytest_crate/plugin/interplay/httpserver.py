"""Has pytest-httpserver's server serve in the crate: its thread is pytest's, and so is the network it listens in."""

from __future__ import annotations

import sys

import pytest

from pytest_crate.plugin import private, specs
from pytest_crate.plugin.interplay.adapter import Adapter


def adapter(_config: pytest.Config) -> Adapter:
    return _Servers()


class _Servers(Adapter):
    def shares(self, item: pytest.Item) -> bool:
        kind = sys.modules["pytest_httpserver"].HTTPServer
        return not any(isinstance(server, kind) for server in private.wider_values(item))

    def child_starts(self, item: pytest.Item) -> None:
        kind = sys.modules["pytest_httpserver"].HTTPServer
        for server in private.wider_values(item):
            if isinstance(server, kind) and server.is_running():
                server.server.server_close()
                server.server = server.server_thread = None
                if item.stash[specs.SPEC].network == "host":
                    server.port = 0  # the one it had is taken there: pytest's own process listens
                server.start()
