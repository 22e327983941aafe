"""The user's terminal as keyboard and screen of a crate's."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import termios
import tty
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

from pytest_crate.sandbox.terminal import Terminal

_KEYBOARD, _SCREEN = 0, 1
_CHUNK_BYTES = 4096
# A pseudo-terminal buffers at most 64 KiB (drivers/tty/tty_buffer.c), and its line discipline 4 KiB more.
_BUFFERED_BYTES = 128 << 10


class _Flow:
    """Bytes on their way from one descriptor to another; it reads no more until what it has is written."""

    def __init__(self, source: int, sink: int) -> None:
        self._source = source
        self._sink = sink
        self._pending = b""
        self.ended = False

    def awaited(self) -> tuple[int, int]:
        """Return the descriptor to wait for, and the events of poll(2)."""
        return (self._sink, select.POLLOUT) if self._pending else (self._source, select.POLLIN)

    def move(self, ready: Mapping[int, int]) -> None:
        """Move on what can be moved; ended is set when an end of it is gone."""
        if self.awaited()[0] not in ready:
            return
        try:
            if self._pending:
                self._pending = self._pending[os.write(self._sink, self._pending) :]
            else:
                self._pending = os.read(self._source, _CHUNK_BYTES)
                self.ended = not self._pending
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.EIO:  # a terminal that has been hung up (tty_ioctl(4))
                raise
            self.ended = True

    def drain(self, wait: Callable[[int], bool]) -> None:
        """Move all that is left, waiting for the sink but not for the source.

        :param wait: waits until a descriptor can be written to; False if it is not worth it any more.
        """
        for _ in range(_BUFFERED_BYTES // _CHUNK_BYTES):
            while self._pending and not self.ended:
                if not wait(self._sink):
                    return
                self.move({self._sink: select.POLLOUT})
            self.move({self._source: select.POLLIN})
            if self.ended or not self._pending:
                return


class Relay:
    """Standard input and output, a terminal in raw mode, joined to the master of a crate's terminal.

    Raw, so that each key, Ctrl-C and Ctrl-D among them, means what the program's own terminal makes of it.
    """

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._settings = termios.tcgetattr(_KEYBOARD)
        # The master is ours alone: unlike the user's terminal, whose mode other processes would share.
        os.set_blocking(terminal.master, False)
        self._screen = _open_again(_SCREEN)
        self._keys = _Flow(_KEYBOARD, terminal.master)
        self._output = _Flow(terminal.master, _SCREEN if self._screen is None else self._screen)
        termios.tcsetattr(terminal.slave, termios.TCSANOW, self._settings)
        self.resize()

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Hold the user's terminal in raw mode; whatever happens, it gets its settings back."""
        try:
            self.make_raw()
            yield
        finally:
            self._restore()
            if self._screen is not None:
                os.close(self._screen)

    def lend_back(self) -> None:
        """Give the user's terminal its settings back for a stop, if it is ours now: not all shells do that."""
        with contextlib.suppress(OSError):  # hung up
            if os.tcgetpgrp(_KEYBOARD) == os.getpgrp():
                self._restore()

    def _restore(self) -> None:
        _set(lambda: termios.tcsetattr(_KEYBOARD, termios.TCSADRAIN, self._settings))

    def make_raw(self) -> None:
        """Put the user's terminal into raw mode, again after a stop."""
        _set(lambda: tty.setraw(_KEYBOARD, termios.TCSADRAIN))

    def resize(self) -> None:
        """Give the crate's terminal the size of the user's; the kernel sends SIGWINCH there if it is another."""
        with contextlib.suppress(termios.error):  # hung up
            termios.tcsetwinsize(self._terminal.master, termios.tcgetwinsize(_KEYBOARD))

    @property
    def hung_up(self) -> bool:
        """Whether the user's terminal is gone."""
        return self._keys.ended or self._output.ended

    def awaited(self) -> Mapping[int, int]:
        """Return what to wait for: events of poll(2) by descriptor; nothing once it has hung up."""
        found: defaultdict[int, int] = defaultdict(int)
        if not self.hung_up:
            for flow in (self._keys, self._output):
                descriptor, events = flow.awaited()
                found[descriptor] |= events
        return found

    def move(self, ready: Mapping[int, int]) -> None:
        """Move on what can be moved."""
        for flow in (self._keys, self._output):
            if not flow.ended:
                flow.move(ready)

    def drain(self, wait: Callable[[int], bool]) -> None:
        """Show what the program, which has ended, had written.

        :param wait: as of a flow's.
        """
        if not self._output.ended:
            self._output.drain(wait)


def _set(change: Callable[[], object]) -> None:
    """Change the user's terminal's settings, whatever comes meanwhile; nothing happens to one that has hung up.

    Who does so in the background is stopped first (SIGTTOU), and the signal by which it goes on interrupts the call.
    """
    while True:
        try:
            change()
        except termios.error as error:
            if error.args[0] == errno.EINTR:
                continue
        return


def _open_again(screen: int) -> int | None:
    """Open a terminal once more, not to wait in a write: a flag of the one that we were given would be others', too.

    :returns: None where that is not to be had, such as one of another user's, after su(1).
    """
    try:
        return os.open(f"/proc/self/fd/{screen}", os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
