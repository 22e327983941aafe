"""The terminal while a debugger in a crate has it: Ctrl-C is the debugger's, and its settings come back."""

from __future__ import annotations

import contextlib
import os
import signal
import termios
import threading
from types import FrameType

_STDIN = 0


class Lent:
    """The terminal, lent to the process behind a pidfd until it is taken back.

    That process is in a session of its own, and so not among those that the terminal sends its signals to.
    """

    def __init__(self, pidfd: int) -> None:
        self._pidfd = pidfd
        self._settings = termios.tcgetattr(_STDIN) if os.isatty(_STDIN) else None
        self._handles = threading.current_thread() is threading.main_thread()
        if self._handles:
            self._before = signal.signal(signal.SIGINT, self._pass_on)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended: who waits for it learns that, too
            signal.pidfd_send_signal(self._pidfd, number)

    def take_back(self) -> None:
        """Have Ctrl-C interrupt pytest again, on a terminal that is as it was: a killed debugger restores nothing."""
        if self._handles:
            signal.signal(signal.SIGINT, self._before)
        if self._settings is not None:
            termios.tcsetattr(_STDIN, termios.TCSADRAIN, self._settings)
