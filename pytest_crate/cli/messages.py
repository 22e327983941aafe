"""What the command itself has to say, on standard error."""

from __future__ import annotations

import contextlib
import sys


def say(text: str) -> None:
    """Print a message, as far as anybody can still see it."""
    # Closed before we were started; print() would take standard output instead.
    if sys.stderr is None:
        return
    with contextlib.suppress(OSError):  # a terminal that has been hung up, a pipe without a reader
        print(text, file=sys.stderr)


def say_progress(line: str) -> None:
    """Print a line on a long work, if somebody watches."""
    if sys.stderr is not None and sys.stderr.isatty():
        say(line)
