"""Builds the image that some tests run on, and lends all tests a log."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    """Build the image before collection; under xdist the workers find it built."""
    if not hasattr(config, "workerinput"):
        runpy.run_path(str(HERE / "images" / "build_appliance.py"), run_name="__main__")


@pytest.fixture
def log() -> str:
    """A log of four requests by three clients."""
    return "".join(
        f'{client} - - [23/Nov/2026:10:00:00 +0000] "GET {path} HTTP/1.1" {status} {size}\n'
        for client, path, status, size in [
            ("192.0.2.1", "/", 200, 100),
            ("192.0.2.2", "/missing", 404, 50),
            ("192.0.2.1", "/about", 200, 250),
            ("127.0.0.1", "/", 200, 100),
        ]
    )
