"""The keyboard while a test is in its crate: Ctrl-C is the test's, and a debugger there has the terminal."""

from __future__ import annotations

import contextlib
import os
import signal
import termios
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from pytest_crate.kernel import monotonic


class Interrupts:
    """Ctrl-C, from a child's fork to its test's end: passed on to the child, wherever pytest is meanwhile.

    Raised in pytest it would break off whatever that is at: another plugin's hook, a message that is half read. It
    would name a line of those, not of the test; and a test that handles it could not. A second one is raised, though.
    """

    def __init__(self, pass_on: Callable[[], None]) -> None:
        self._pass_on: Callable[[], None] | None = pass_on
        self._came_nsec: int | None = None
        # A handler of somebody else's is kept.
        self._handles = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if self._handles:
            signal.signal(signal.SIGINT, self._comes)

    def _comes(self, number: int, frame: FrameType | None) -> None:
        if self._came_nsec is not None or self._pass_on is None:
            signal.default_int_handler(number, frame)
            return
        self._pass_on()
        self._came_nsec = monotonic.nanoseconds()

    def came_after(self, nsec: int) -> bool:
        """Whether one was passed on later than a time of the monotonic clock."""
        return self._came_nsec is not None and self._came_nsec >= nsec

    def take_back(self) -> None:
        """Have Ctrl-C interrupt pytest again; idempotent."""
        if self._handles and signal.getsignal(signal.SIGINT) == self._comes:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        # Its owner's: with it the two would hold each other, and be there until the next collection.
        self._pass_on = None


class Lent:
    """The terminal, lent to the process behind a pidfd until it is taken back.

    That process is in a session of its own, and so not among those that the terminal sends its signals to.
    """

    def __init__(self, pidfd: int) -> None:
        self._pidfd = pidfd
        self._terminal = _open_terminal()
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
        # First of all: Ctrl-C, which by then raises, would leave it as the debugger had it.
        self._settle()
        if self._handles:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def restore(self) -> None:
        """When its process has ended, let the terminal be as it was once more.

        After it was taken back pdb opens its prompt at Ctrl-C, too, and tells nobody.
        """
        self._terminal = _open_terminal()
        with contextlib.suppress(termios.error):  # it has hung up
            self._settle()

    def _settle(self) -> None:
        """Let the terminal be as it was, and close it."""
        try:
            self._set(self._settings)
        finally:
            if self._terminal >= 0:
                os.close(self._terminal)
                self._terminal = -1

    def _get(self) -> list[Any] | None:
        return termios.tcgetattr(self._terminal) if self._terminal >= 0 else None

    def _set(self, settings: list[Any] | None) -> None:
        if settings is not None and self._terminal >= 0:
            termios.tcsetattr(self._terminal, termios.TCSADRAIN, settings)


def _open_terminal() -> int:
    """Return a descriptor of pytest's terminal; -1 if it has none."""
    # Not descriptor 0: while pytest captures, that is /dev/null.
    try:
        return os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:  # ENXIO: there is no terminal (tty(4))
        return -1
