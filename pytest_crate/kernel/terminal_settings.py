"""The settings of pytest's terminal, which a body has: what it sets there is set back."""

from __future__ import annotations

import contextlib
import os
import signal
import termios
from collections.abc import Iterator
from typing import Any


class TerminalSettings:
    """A terminal's settings, noted now, and whether its output flows.

    Nothing happens to what is no terminal. The settings are those of whoever is in the foreground, be it a shell that
    reads a line: where this process is in the background they are neither noted nor set.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._is_terminal = os.isatty(descriptor)
        self._noted: list[Any] | None = None
        self.note()

    def note(self) -> None:
        """Note the settings anew."""
        self._noted = None
        if self._is_foreground():
            with contextlib.suppress(termios.error):  # it has hung up
                self._noted = termios.tcgetattr(self._descriptor)

    def let_flow(self) -> None:
        """Let output go on where it was suspended by tcflow(3), for ever; Ctrl-S is the user's (tty_ioctl.c, TCOON)."""
        if self._is_terminal:
            with _not_stopped(), contextlib.suppress(termios.error):
                termios.tcflow(self._descriptor, termios.TCOON)

    def restore(self) -> None:
        """Have the output flow, and once the settings as they were noted: later ones may be another's, until noted."""
        self.let_flow()
        if self._noted is not None and self._is_foreground():
            with _not_stopped(), contextlib.suppress(termios.error):
                if termios.tcgetattr(self._descriptor) != self._noted:
                    termios.tcsetattr(self._descriptor, termios.TCSANOW, self._noted)
        self._noted = None

    def _is_foreground(self) -> bool:
        try:
            return self._is_terminal and os.tcgetpgrp(self._descriptor) == os.getpgrp()
        except OSError:  # it isn't this session's, or has hung up
            return False


@contextlib.contextmanager
def _not_stopped() -> Iterator[None]:
    """Change a terminal without being stopped, whoever has the foreground by now (tcsetattr(3), SIGTTOU)."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})  # a handler may raise when it has
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
