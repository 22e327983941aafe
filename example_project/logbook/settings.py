"""Site-wide settings."""

from __future__ import annotations

import configparser

SETTINGS_FILE = "/etc/logbook.conf"


def top_clients() -> int:
    """Return how many clients a summary lists: ``top`` in ``/etc/logbook.conf``, or 3."""
    parser = configparser.ConfigParser()
    parser.read(SETTINGS_FILE)
    return parser.getint("summary", "top", fallback=3)
