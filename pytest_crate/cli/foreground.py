"""A program in a crate as the shell's foreground job: its terminal, its signals, its end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

from pytest_crate.cli.terminal import Relay
from pytest_crate.result import Exit
from pytest_crate.sandbox.crate_sandbox import CrateSandbox
from pytest_crate.sandbox.program import CratePopen
from pytest_crate.sandbox.sandbox import Sandbox
from pytest_crate.sandbox.terminal import open_terminal

GRACE_SEC = 2.0
"""How long a program has to end after SIGTERM or SIGHUP, until its crate is killed; and a terminal to show the rest."""

# A terminal sends these to a whole process group: the program's children are to get them as well.
_FROM_KEYS = (signal.SIGINT, signal.SIGQUIT)
_ENDING = (signal.SIGTERM, signal.SIGHUP)
_FORWARDED = (*_FROM_KEYS, *_ENDING, signal.SIGUSR1, signal.SIGUSR2)


class _Signals:
    """Signals become bytes in a pipe, to be waited for beside everything else."""

    def __init__(self, numbers: Sequence[signal.Signals]) -> None:
        self._numbers = numbers
        self._stack = contextlib.ExitStack()
        self.descriptor = -1

    def __enter__(self) -> Self:
        self.descriptor, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._stack.callback(os.close, self.descriptor)
        self._stack.callback(os.close, writing)
        self._stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(writing, warn_on_full_buffer=False))
        for number in self._numbers:
            # What we were started with ignored, as by nohup(1), stays so.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._stack.callback(signal.signal, number, signal.signal(number, lambda *_: None))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def read(self) -> bytes:
        """Return the numbers of the signals that have come."""
        try:
            return os.read(self.descriptor, 4096)
        except BlockingIOError:
            return b""


def run_in_foreground(crate: CrateSandbox, sandbox: Sandbox, argv: Sequence[str]) -> Exit:
    """Run a program in a crate to its end and return how it ended.

    Between two terminals it gets one of the crate's own. Else it gets our own standard input and output: what they
    are, pipes or files or a terminal on one side, is then its own affair, as in a shell's pipeline.

    :raises SandboxError: it can't be started.
    """
    on_terminal = os.isatty(0) and os.isatty(1)
    signals = (*_FORWARDED, signal.SIGCONT, signal.SIGTSTP, *((signal.SIGWINCH,) if on_terminal else ()))
    with contextlib.ExitStack() as stack:
        caught = stack.enter_context(_Signals(signals))
        relay = None
        if on_terminal:
            program, relay = _start_on_terminal(crate, sandbox, argv, stack)
        else:
            program = crate.popen(argv, text=False)
        _Watch(sandbox, program, caught, relay).until_the_end()
        return program.exit


def _start_on_terminal(
    crate: CrateSandbox, sandbox: Sandbox, argv: Sequence[str], stack: contextlib.ExitStack
) -> tuple[CratePopen, Relay]:
    terminal = open_terminal(sandbox.root)
    stack.callback(os.close, terminal.master)
    # Kept open as long as the program lives: without a slave the master would read as hung up.
    stack.callback(os.close, terminal.slave)
    relay = Relay(terminal)
    errors = terminal.slave if os.isatty(2) else None
    program = crate.popen(argv, stdin=terminal.slave, stdout=terminal.slave, stderr=errors, text=False, terminal=True)
    stack.enter_context(relay.joined())
    return program, relay


class _Watch:
    """Forwards what comes, until the program has ended."""

    def __init__(self, sandbox: Sandbox, program: CratePopen, signals: _Signals, relay: Relay | None) -> None:
        self._sandbox = sandbox
        self._program = program
        self._signals = signals
        self._relay = relay
        self._deadline: float | None = None
        self._hung_up = False
        self._told_to_end = False
        self._shown_by: float | None = None

    def until_the_end(self) -> None:
        """Return when the program has ended and what it wrote to its terminal is shown."""
        while self._program.returncode is None:
            ready = dict(self._poll())
            if self._program.fileno() in ready:
                self._program.poll()
            for number in self._signals.read():
                self._react(signal.Signals(number))
            if self._deadline is not None and time.monotonic() >= self._deadline:
                self._deadline = None
                self._sandbox.kill()
            if self._relay is not None:
                self._relay.move(ready)
                if self._relay.hung_up and not self._hung_up:
                    self._hung_up = True
                    self._react(signal.SIGHUP)
        if self._relay is not None:
            self._relay.drain(self._wait_to_show)

    def _wait_to_show(self, screen: int) -> bool:
        """Wait until a terminal takes more; False when it has not taken all for too long after we were told to end."""
        poll = select.poll()
        poll.register(self._signals.descriptor, select.POLLIN)
        poll.register(screen, select.POLLOUT)
        while True:
            self._told_to_end |= any(number in (*_ENDING, *_FROM_KEYS) for number in self._signals.read())
            if self._told_to_end and self._shown_by is None:
                self._shown_by = time.monotonic() + GRACE_SEC
            left = None if self._shown_by is None else max(0.0, self._shown_by - time.monotonic()) * 1e3
            ready = dict(poll.poll(left))
            if not ready:
                return False
            if screen in ready:
                return True

    def _poll(self) -> Iterator[tuple[int, int]]:
        poll = select.poll()
        poll.register(self._program.fileno(), select.POLLIN)
        poll.register(self._signals.descriptor, select.POLLIN)
        awaited: Mapping[int, int] = self._relay.awaited() if self._relay is not None else {}
        for descriptor, events in awaited.items():
            poll.register(descriptor, events)
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic()) * 1e3
        yield from poll.poll(left)

    def _react(self, number: signal.Signals) -> None:
        if number == signal.SIGWINCH and self._relay is not None:
            self._relay.resize()
        elif number == signal.SIGCONT and self._relay is not None:
            self._relay.make_raw()
            self._relay.resize()
        elif number == signal.SIGTSTP:
            if self._relay is not None:
                self._relay.lend_back()
            else:
                # The program has a session, and so an orphaned process group, of its own, which SIGTSTP does not stop.
                self._sandbox.signal(self._program.pid, signal.SIGSTOP, group=True)
            os.kill(os.getpid(), signal.SIGSTOP)
        else:
            group = number in (*_FROM_KEYS, signal.SIGCONT)
            self._sandbox.signal(self._program.pid, number, group=group)
            self._told_to_end |= number in _ENDING
            if number in _ENDING and self._deadline is None:
                self._deadline = time.monotonic() + GRACE_SEC
