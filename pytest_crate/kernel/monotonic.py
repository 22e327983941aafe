"""The monotonic clock, which all processes of a run share, read so that a suite that freezes ``time`` doesn't stop it.

What freezes time for a test replaces the functions of ``time`` wherever a module has them; ``clock_gettime`` goes on.
"""

from __future__ import annotations

import time


def seconds() -> float:
    """Return what ``time.monotonic`` does (clock_gettime(2), CLOCK_MONOTONIC)."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def nanoseconds() -> int:
    """Return what ``time.monotonic_ns`` does."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)
