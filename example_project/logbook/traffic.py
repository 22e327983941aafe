"""Made-up traffic, the same each time, for demonstrations and tests."""

from __future__ import annotations

from collections.abc import Iterator

_PATHS = ("/", "/about", "/feed.xml", "/photos/harbour.jpg", "/missing")


def traffic(lines: int) -> Iterator[str]:
    """Yield log lines of 50 clients from the addresses set aside for documentation (RFC 5737)."""
    for number in range(lines):
        path = _PATHS[number % len(_PATHS)]
        status = 404 if path == "/missing" else 200
        client = f"192.0.2.{1 + number % 50}"
        yield f'{client} - - [23/Nov/2026:10:00:00 +0000] "GET {path} HTTP/1.1" {status} {100 + number % 900}\n'
