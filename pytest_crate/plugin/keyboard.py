"""The terminal while a debugger in a crate has it: Ctrl-C is the debugger's, Ctrl-Z stops both, settings come back."""

from __future__ import annotations

import contextlib
import os
import signal
import termios
import threading
from types import FrameType
from typing import Any


class Lent:
    """The terminal, lent to the process behind a pidfd until it is taken back.

    That process is in a session of its own, and so not among those that the terminal sends its signals to.
    """

    def __init__(self, pidfd: int) -> None:
        self._pidfd = pidfd
        # Not descriptor 0: while pytest captures, that is /dev/null.
        try:
            self._terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:  # ENXIO: there is no terminal (tty(4))
            self._terminal = -1
        self._settings = self._get()
        self._handles = threading.current_thread() is threading.main_thread()
        if self._handles:
            handlers = {signal.SIGINT: self._pass_on, signal.SIGTSTP: self._stop}
            self._before = {number: signal.signal(number, handler) for number, handler in handlers.items()}

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended: who waits for it learns that, too
            signal.pidfd_send_signal(self._pidfd, number)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Stop the debugger, which would read the shell's keys, and then this process; both go on together."""
        self._pass_on(signal.SIGSTOP, frame)
        of_debugger = self._get()
        self._set(self._settings)
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)  # nothing happens where no shell could have it go on (credentials(7))
        signal.signal(signal.SIGTSTP, self._stop)
        self._set(of_debugger)
        self._pass_on(signal.SIGCONT, frame)

    def take_back(self) -> None:
        """Have Ctrl-C interrupt pytest again, on a terminal that is as it was: a killed debugger restores nothing."""
        if self._handles:
            for number, handler in self._before.items():
                signal.signal(number, handler)
        self._set(self._settings)
        if self._terminal >= 0:
            os.close(self._terminal)

    def _get(self) -> list[Any] | None:
        return termios.tcgetattr(self._terminal) if self._terminal >= 0 else None

    def _set(self, settings: list[Any] | None) -> None:
        if settings is not None:
            termios.tcsetattr(self._terminal, termios.TCSADRAIN, settings)
