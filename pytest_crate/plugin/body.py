"""The process that was forked into a crate, as pytest sees it: its messages, its time, its end.

It is the *payload* that walks a test through pytest's protocol (:mod:`pytest_crate.plugin.rider`). pytest reads what it
sends, passes on Ctrl-C, lends it the terminal, kills it in time, and knows how it ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import re
import select
import signal
import struct
import termios
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import psutil
import pytest

from pytest_crate.kernel import libc, monotonic, processes, status_flags, terminal_settings
from pytest_crate.plugin import keyboard, measured, private, threads, transfer
from pytest_crate.plugin.failed import CrateFailed
from pytest_crate.plugin.output import ChildOutput, flush
from pytest_crate.plugin.report_pipe import (
    ATTENDED,
    EXIT_CLOSED,
    LEAVE,
    MAX_BROUGHT_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_MESSAGES_BYTES,
    NEXT_TEST,
    NextTest,
)
from pytest_crate.report.limits import failure_message
from pytest_crate.result import CrateResult, Exit, Limit, Shared
from pytest_crate.sandbox import wire
from pytest_crate.sandbox.sandbox import NOTHING_YET, Watched
from pytest_crate.spec import CrateSpec
from pytest_crate.usage import Usage

if TYPE_CHECKING:
    from pytest_crate.plugin.interplay import Interplay
    from pytest_crate.plugin.sharing import Sharing
    from pytest_crate.sandbox.sandbox import Sandbox

BODY = "body"
"""The name, in reports, of the crate that a test's body rides in."""

# A real-time signal, so that it is in nobody's way, and so that two of it are two (signal(7)).
STACKS_SIGNAL = signal.SIGRTMAX - 2
_STACKS_WAIT_SECONDS = 2.0
_STACKS_MAX_BYTES = 1 << 20
_WATCH_SECONDS = 0.5
# The child waits for one word at a time; another may be on its way.
_MOST_WORDS = 8
# What an interrupted test has for its tear-down. A CI job that is cancelled has little more until it is killed.
_INTERRUPT_SECONDS = 5.0


class Body:
    """A crate and the process in it, from before its fork to the crate's removal."""

    def __init__(
        self,
        item: pytest.Item,
        spec: CrateSpec,
        sandbox: Sandbox,
        output: ChildOutput | None,
        interplay: Interplay,
        others: Iterable[threads.OtherThread],
        sharing: Sharing | None = None,
    ) -> None:
        """
        :param others: the threads of pytest that it is forked without.
        :param sharing: which tests may ride in it, one after the other; None for this one alone.
        :raises OSError: there is no pipe to be had.
        """
        self.item = item
        self.spec = spec
        self.sandbox = sandbox
        self.sharing = sharing
        self.alive = True
        self.result: CrateResult | None = None
        self.stacks = ""
        self.messages: deque[wire.Message] = deque()
        self.exceeded: list[Limit] = []
        self.entered = False
        self.leaves = False
        self.reported = False
        self.over = False
        self.interrupted = False
        """Whether it has been asked to end, by Ctrl-C or because pytest's protocol was broken off."""
        self.stop: Mapping[str, Any] | None = None
        """What the child says after its last report of the end of the run."""
        self.steps: Mapping[str, int] = {}
        """What the child's steps in the crate took, in microseconds."""
        self.imports: Mapping[str, int] = {}
        """What its imports took, likewise."""
        with contextlib.ExitStack() as undo:
            self.channel, self.sending = _pipe(undo)
            # Both ends are kept, so that writing is no error when the child has gone.
            self.awaited, self.step = _pipe(undo)
            self.stacks_fd, self.stacks_sending = _pipe(undo)
            # Whoever has one end of a pipe can open the other, by /proc/self/fd: what could be read, or written, a
            # moment ago need not be so now, and pytest must not wait for it.
            for ours in (self.channel, self.step, self.stacks_fd):
                os.set_blocking(ours, False)
            undo.pop_all()
        self._output = output
        self._flags = status_flags.StatusFlags(private.terminal_descriptors(item.config))
        self._settings = terminal_settings.TerminalSettings(private.terminal_output(item.config))
        self._interplay = interplay
        self._threads = tuple(others)
        self._pid = 0
        self._pidfd = -1
        self._started = False
        self._mirrored = False
        self._tests = 1
        self._began = 0
        self._before: Usage | None = None
        self._stacks = bytearray()
        self._frames = wire.FrameReader(max_frame_bytes=MAX_MESSAGE_BYTES, max_total_bytes=MAX_MESSAGES_BYTES)
        self._seen = NOTHING_YET
        self._forks_refused = False
        self._interrupts: keyboard.Interrupts | None = None
        self._deaf_nsec: int | None = None
        self._deadline: float | None = None
        self._paused: float | None = None
        self._lent: keyboard.Lent | None = None
        self._first_lent: keyboard.Lent | None = None
        self._exit = Exit()

    def in_child(self) -> None:
        """In the child: close the ends that are pytest's."""
        for descriptor in (self.channel, self.stacks_fd, self.step):
            os.close(descriptor)

    def in_mirror(self) -> None:
        """In pytest: close the ends that are the child's."""
        for descriptor in (self.sending, self.stacks_sending):
            os.close(descriptor)

    def starts(self, pid: int) -> None:
        """In pytest: note the child, whose time begins."""
        self._pid, self._started = pid, True
        with libc.os_step("watch the test's process", "pidfd_open"):
            self._pidfd = os.pidfd_open(pid)
        self._wind_up()

    def _wind_up(self) -> None:
        timeout_usec = self.spec.timeout_usec
        self._deadline = None if timeout_usec is None else monotonic.seconds() + timeout_usec / 1e6
        self._paused = None
        self._deaf_nsec = None
        self._interrupts = keyboard.Interrupts(self.interrupt)
        self._interplay.mirror_starts(self.item)
        self._mirrored = True
        if self._interplay.brings_much(self.item):
            most = MAX_BROUGHT_BYTES
            self._frames = wire.FrameReader(max_frame_bytes=most, max_total_bytes=most + MAX_MESSAGES_BYTES)

    def goes_on(self, item: pytest.Item, number: int, following: int) -> None:
        """In pytest: have the child go on with another test.

        :param number: the item's place among all items.
        :param following: the place of the one after it; -1 if there is none.
        """
        self.item = item
        self._tests += 1
        self._began = monotonic.nanoseconds()
        self.interrupted = self._forks_refused = self.over = False
        self.steps, self.imports = {}, {}
        # A process of the test before may have crashed.
        self._stacks_left()
        self._stacks.clear()
        # What one test may send, the next may send again.
        self._frames = wire.FrameReader(max_frame_bytes=MAX_MESSAGE_BYTES, max_total_bytes=MAX_MESSAGES_BYTES)
        self._wind_up()
        self._settings.note()  # a wider fixture may have changed them
        captured = ("", "")
        flush(item.config)
        if self._output is not None:
            captured = private.take_captured(item.config)
        self.tell(NEXT_TEST + NextTest(number=number, following=following, captured=captured).encode())

    def test_ends(self) -> CrateResult:
        """Return what a test has used that has ended while the crate goes on."""
        self._deadline = None
        self._mirror_ends()
        self._flags.restore()
        self._settings.restore()
        result = self._result(self.sandbox.account(), Exit())
        self._take_interrupts_back()
        return result

    def retire(self) -> list[Limit]:
        """End a crate that waits for another test; return the limits it has exceeded meanwhile."""
        if self.alive:
            self.ends_soon()
            self.tell(LEAVE)
            with contextlib.suppress(CrateFailed):  # its tests have ended
                self.take_rest()
            self.wait_for_exit()
            self.end()
        return self.exceeded

    def ends_soon(self) -> None:
        """Let the child have the time for its tear-down, and no more."""
        self._deadline = monotonic.seconds() + _INTERRUPT_SECONDS

    def tell(self, word: bytes) -> None:
        """Give the child a word that it waits for.

        One that doesn't take it until its time is over, or its end, is left to :meth:`read`.
        """
        poll = select.poll()
        poll.register(self.step, select.POLLOUT)
        poll.register(self._pidfd, select.POLLIN)
        view = memoryview(word)
        while view:
            left = self.left()
            if poll.poll(None if left is None else min(1e9, left * 1e3)) != [(self.step, select.POLLOUT)]:
                return
            # So much there is room for, without waiting (pipe(7)).
            with contextlib.suppress(BlockingIOError):
                view = view[os.write(self.step, view[: select.PIPE_BUF]) :]

    @property
    def left_behind(self) -> str:
        """The threads that a crate which hung may have missed, where none is known to hold a lock."""
        hung = "timeout" in self.exceeded and not threads.hold_locks(self._threads)
        return ", ".join(map(str, self._threads)) if hung else ""

    def attend_to(self, message: wire.Message) -> None:
        """Do what the child waits for, or what can't wait.

        :raises CrateFailed: it is not what the child sends.
        """
        self.over = self.over or "over" in message
        try:
            if "deaf" in message:
                self._deaf_nsec = int(message["deaf"])
            self.steps = self.steps or measured.checked_steps(message.get("steps", {}))
            self.imports = self.imports or measured.checked_imports(message.get("imports", {}))
        except transfer.REFUSED as error:
            raise CrateFailed(transfer.refusal(error)) from None
        if "debugger" in message:
            self._stop_clock(message["debugger"] is True)
            self._take_terminal_back()
            if message["debugger"] is True:
                self._lent = keyboard.Lent(self._pidfd)
                self._first_lent = self._first_lent or self._lent
        if "debugger" in message or "interacts" in message:
            self.let_go_on(ATTENDED)

    def let_go_on(self, word: bytes) -> None:
        """Give the child the one word that it waits for.

        :raises CrateFailed: it doesn't wait: it has not taken those before.
        """
        refused = "the test wrote to its report's descriptor: it asks, and waits for no answer"
        if _waiting_bytes(self.awaited) > _MOST_WORDS:
            raise CrateFailed(refused)
        # What has been printed here comes first: it may still be in a buffer.
        flush(self.item.config)
        try:
            os.write(self.step, word)
        except BlockingIOError:
            raise CrateFailed(refused) from None

    def _take_terminal_back(self) -> None:
        lent, self._lent = self._lent, None
        if lent is not None:
            lent.take_back()

    def _take_interrupts_back(self) -> None:
        if self._interrupts is not None:
            self._interrupts.take_back()

    def interrupt(self) -> None:
        """Pass Ctrl-C on to the child, which is in a session of its own: its fixtures are torn down, as in a plain run.

        A second one, or the end of the child's patience, ends the crate at once.
        """
        self.interrupted = True
        end = monotonic.seconds() + _INTERRUPT_SECONDS
        self._deadline = end if self._deadline is None else min(end, self._deadline)
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGINT)

    @property
    def unheard(self) -> bool:
        """Whether Ctrl-C came when the child had ended its test, so that only pytest can heed it."""
        return self._interrupts is not None and self._interrupts.came_after(self._deaf_nsec or 0)

    def raise_interrupt(self) -> NoReturn:
        """Raise KeyboardInterrupt as if at the test's own first line."""
        path, line, _ = self.item.reportinfo()
        raise_interrupt(os.fspath(path), (line or 0) + 1)

    def read(self, hears: Callable[[bytes], None]) -> list[wire.Message]:
        """Wait for messages.

        :param hears: is given the body of each one's frame before it is taken apart.
        :raises CrateFailed: the child ended, or its time is over, and no message is left.
        """
        poll = select.poll()
        for descriptor in (self.channel, self.stacks_fd, self._pidfd):
            if descriptor >= 0:
                poll.register(descriptor, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll(1e3 * self._at_most())}
            if not ready and self.left() != 0:
                self._stop_fork_bomb()
            if self.stacks_fd in ready and not self._read_stacks():
                poll.unregister(self.stacks_fd)
                _close(self.stacks_fd)
                self.stacks_fd = -1
            data = _read_now(self.channel, 1 << 20) if self.channel in ready else None
            if data:
                # pytest may tell of what it hears. The terminal's settings are the test's until it has ended.
                self._flags.restore()
                self._settings.let_flow()
                messages = []
                try:
                    for frame in self._frames.cut(data):
                        hears(frame)
                        messages.append(self._decoded(frame))
                except wire.WireError as error:
                    raise CrateFailed(f"the test wrote to its report's descriptor: {error}") from None
                if not messages and self.left() == 0:  # a message that comes byte by byte
                    self.time_out()
                return messages
            if data is not None:
                poll.unregister(self.channel)
                _close(self.channel)
                self.channel = -1
            # A grandchild may hold the channel open for ever, or take from it; what the child wrote is in it already.
            if self._pidfd in ready and (self.channel < 0 or self.channel in ready or not _readable(self.channel, 0)):
                self._ended_early()
            # Not only if nothing came: the stacks' pipe may be flooded.
            if self.left() == 0:
                self.time_out()

    def _decoded(self, frame: bytes) -> wire.Message:
        message = wire.decode(frame)
        if hasattr(self.item.config, "workerinput"):
            # What execnet does not carry to xdist's controller would end the worker, and with it the test be lost.
            message = transfer.carried(message)
        return message

    def take_rest(self, *, waits: bool = False, reported: bool = False) -> None:
        """Take what the child sends after a test's last report, until it leaves or its time is over.

        :param waits: only until it waits for another test.
        :param reported: the last report has come: there is no other, or one of them was not the test's.
        :raises CrateFailed: it is not what the child sends.
        """
        for message in self.messages:
            self.attend_to(message)
            if reported and "phase" in message:
                raise CrateFailed("the test wrote to its report's descriptor: a report after its last one")
        while self.channel >= 0 and not (waits and self.over):
            poll = select.poll()
            poll.register(self.channel, select.POLLIN)
            poll.register(self._pidfd, select.POLLIN)
            ready = {descriptor for descriptor, _ in poll.poll(1e3 * self._at_most())}
            if not ready and self.left() != 0:
                continue
            # poll(2) looks at one after the other: between the two the child may have written its last word, and ended.
            written = self.channel in ready or _readable(self.channel, 0)
            data = _read_now(self.channel, 1 << 20) if written else b""
            if data is None and self._pidfd not in ready and self.left() != 0:
                continue
            if not data:
                break
            try:
                received = [self._decoded(frame) for frame in self._frames.cut(data)]
            except wire.WireError as error:
                raise CrateFailed(f"the test wrote to its report's descriptor: {error}") from None
            for message in received:
                self.attend_to(message)
                if reported and "phase" in message:
                    raise CrateFailed("the test wrote to its report's descriptor: a report after its last one")
            # Nothing else matters now, and a body that floods the pipe must not fill pytest's memory.
            self.messages.extend(
                message for message in received if any(word in message for word in ("brought", "leaves", "stop"))
            )
            if self.left() == 0:
                # It may go on to send: who waits for its end sees to it. What it has left behind may go on, too.
                if self._pidfd in ready and _read_now(self.channel, 1):
                    self.exceeded.append("timeout")
                    raise CrateFailed(self.limit_message(["timeout"]))
                break
        for message in self.messages:
            self.leaves = self.leaves or "leaves" in message
            self.stop = self.stop or message.get("stop")
            if "brought" in message:
                try:
                    self._interplay.give(self.item, message["brought"])
                except transfer.REFUSED as error:
                    raise CrateFailed(str(error)) from None
        self.messages.clear()

    def _read_stacks(self) -> bool:
        """Return whether there may be more."""
        data = _read_now(self.stacks_fd, 1 << 16)
        if data and len(self._stacks) < _STACKS_MAX_BYTES:
            self._stacks += data
        return data != b""

    def _ended_early(self) -> NoReturn:
        exit_ = self.wait_for_exit()
        self.stacks = self._stacks_left()
        self.sandbox.verify_alive()
        exceeded = self.exceeded_since()
        self.end()
        if exceeded:
            message = self.limit_message(exceeded)
            if exit_.signal:
                message += f"\nThe test's process was {exit_}."
        elif exit_.code == EXIT_CLOSED:
            message = (
                "the test closed the descriptor that its report travels on (with os.closerange, perhaps), "
                f"so its outcome is not known; its process ended with {exit_}"
            )
        elif exit_.signal is not None:
            message = f"the test's process was {exit_} before it could report"
        else:
            message = f"the test's process ended with {exit_} before it could report"
        raise CrateFailed(message)

    def _stop_fork_bomb(self) -> None:
        """Kill a body that goes on although forks were refused: one that swallows the errors does so for ever.

        It fails in any case; it gets the time between two looks to fail by itself, and say where.
        """
        if "pids" not in self.sandbox.watch().limits_since(self._seen):
            return
        if not self._forks_refused:
            self._forks_refused = True
            return
        exceeded = self.exceeded_since()
        self.kill()
        raise CrateFailed(self.limit_message(exceeded))

    def kill(self) -> None:
        """Kill the crate, having asked its process where it is."""
        self.stacks = self._ask_for_stacks()
        self.sandbox.kill()
        self.wait_for_exit()
        self.end()

    def time_out(self) -> NoReturn:
        if self.interrupted:
            self.kill()
            self.raise_interrupt()
        self.exceeded.append("timeout")
        self.kill()
        message = self.limit_message(["timeout"])
        if not self.stacks:
            message += (
                "\nIts process did not say where it was: it blocks signals, or is stopped."
                if self.entered
                else "\nIts process was still on its way into the crate."
            )
        if threads.hold_locks(self._threads):
            message += f"\n{threads.left_behind(self._threads)}"
        raise CrateFailed(message)

    def _ask_for_stacks(self) -> str:
        """Have the child write the stacks of its threads, and return them.

        It is asked twice, and one signal is handled after the other: a second copy begins when the first is whole.
        """
        if not self.entered:
            return ""  # the signal would kill a process that has no handler for it yet
        with contextlib.suppress(psutil.NoSuchProcess):  # a test suite may reap any child, in pytest's own process
            if psutil.Process(self._pid).status() == psutil.STATUS_STOPPED:
                return ""  # it would handle nothing before it is killed
        before = len(self._stacks)
        for _ in range(2):
            signal.pidfd_send_signal(self._pidfd, STACKS_SIGNAL)
        end = monotonic.seconds() + _STACKS_WAIT_SECONDS
        while self.stacks_fd >= 0 and (left := end - monotonic.seconds()) > 0:
            if not _readable(self.stacks_fd, left) or not self._read_stacks():
                break
            text = bytes(self._stacks[before:]).decode(errors="replace")
            # Which thread is the "current" one may differ between the two copies; the threads don't.
            threads = list(re.finditer(r"^(?:Current t|T)hread (0x[0-9a-f]+)", text, re.MULTILINE))
            again = [thread for thread in threads[1:] if thread[1] == threads[0][1]]
            if again:
                return text[: again[0].start()].rstrip()
        return bytes(self._stacks[before:]).decode(errors="replace").rstrip()

    def _stacks_left(self) -> str:
        """Return what the child's fault handler wrote before it ended."""
        while self.stacks_fd >= 0 and len(self._stacks) < _STACKS_MAX_BYTES and _readable(self.stacks_fd, 0):
            if not self._read_stacks():
                break
        return bytes(self._stacks).decode(errors="replace").rstrip()

    def wait_for_exit(self) -> Exit:
        """Wait for the child's end; the timeout holds here, too."""
        if self.result is not None:
            return self.result.exit
        if self._pid:
            try:
                self._exit = self._await_end()
            except ChildProcessError:  # a test suite that waits for any child, in pytest's own process
                self._exit = Exit()
            self._pid = 0
        return self._exit

    def _await_end(self) -> Exit:
        """Wait until the process has ended, and reap it.

        :raises ChildProcessError: somebody else has.
        """
        status = None
        # Without a pidfd, it has just been killed.
        while status is None and self._pidfd >= 0 and not _readable(self._pidfd, self._at_most()):
            if self.left() == 0:
                self.exceeded.append("timeout")
                self._deadline = None
                break
            status = processes.collect(self._pid)  # its end is told late where it has us trace a thread of it
        if status is None:
            status = processes.collect(self._pid)
        if status is None:
            # One that traces it comes first, and need not care (ptrace(2)). If that is in the crate, it ends with it.
            self.sandbox.kill()
            status = processes.wait_for(self._pid, processes.KILL_SECONDS)
        # If the kernel can't end it, nor can the crate be, which says so.
        return Exit() if status is None else Exit.from_wait_status(status)

    def _stop_clock(self, stop: bool) -> None:
        if stop and self._deadline is not None:
            self._paused, self._deadline = self.left(), None
        elif not stop and self._paused is not None:
            self._deadline, self._paused = monotonic.seconds() + self._paused, None

    def left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - monotonic.seconds())

    def _at_most(self) -> float:
        """Return for how many seconds to wait before looking again: Ctrl-C may have made the time shorter."""
        left = self.left()
        return _WATCH_SECONDS if left is None else min(left, _WATCH_SECONDS)

    def exceeded_since(self) -> list[Limit]:
        """Return the limits that the crate has gone over since the last call."""
        watched = self.sandbox.watch()
        found = list(watched.limits_since(self._seen))
        self._seen = watched
        self.exceeded += [limit for limit in found if limit not in self.exceeded]
        return found

    def limit_message(self, exceeded: list[Limit]) -> str:
        usage = self.result.usage if self.result is not None else Usage()
        return "\n".join(failure_message(limit, self.spec, usage) for limit in exceeded)

    def end(self) -> None:
        """Remove the crate and keep what it used; idempotent."""
        if not self.alive:
            return
        self.alive = False
        sandbox = self.sandbox
        try:
            if self._pid:
                sandbox.kill()
                self._deadline = None
                self.wait_for_exit()
            usage = sandbox.close()
            last = Watched(oom_kills=usage.memory_oom_kills, pids_max=usage.pids_max_events, timed_out=False)
            self.exceeded += [limit for limit in last.limits_since(self._seen) if limit not in self.exceeded]
            self.result = self._result(usage, self._exit)
        finally:
            self._take_terminal_back()
            if self._first_lent is not None:
                self._first_lent.restore()
            self._flags.restore()
            self._settings.restore()
            if self._output is not None:
                self._output.take_back(reported=self.reported)
            for descriptor in (self.channel, self.step, self.awaited, self.stacks_fd, self._pidfd):
                _close(descriptor)
            self.channel = self.step = self.awaited = self.stacks_fd = self._pidfd = -1
            self._take_interrupts_back()
        self._mirror_ends()

    def _result(self, usage: Usage, exit_: Exit) -> CrateResult:
        used, shared = usage, None
        if self.sharing is not None:
            if self._before is not None:
                wall_usec = (monotonic.nanoseconds() - self._began) // 1_000
                used = dataclasses.replace(usage.since(self._before), wall_usec=wall_usec)
            self._before = usage
            name, number = self.sharing.home.nodeid, self.sharing.number
            shared = Shared(name=name, number=number, tests=self._tests, usage=usage)
        order: tuple[Limit, ...] = ("memory", "pids", "timeout")
        exceeded = tuple(limit for limit in order if limit in self.exceeded)
        return CrateResult(name=BODY, usage=used, exceeded=exceeded, exit=exit_, shared=shared)

    def _mirror_ends(self) -> None:
        if self._mirrored:
            self._mirrored = False
            self._interplay.mirror_ends(self.item)


def raise_interrupt(path: str, line: int) -> NoReturn:
    """Raise KeyboardInterrupt as if at a line of a file: pytest names the place of the innermost frame."""
    exec(compile("raise KeyboardInterrupt", path, "exec").replace(co_firstlineno=max(1, line)), {})
    raise AssertionError


def _waiting_bytes(descriptor: int) -> int:
    """Return how much can be read from a pipe (pipe(7), FIONREAD)."""
    (count,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))
    return int(count)


def _read_now(descriptor: int, count: int) -> bytes | None:
    """Read what is in a pipe; empty at its end, None if nothing is in it."""
    try:
        return os.read(descriptor, count)
    except BlockingIOError:
        return None


def _readable(descriptor: int, seconds: float | None) -> bool:
    # Not select(2): a test suite may have more descriptors open than it can name.
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    # poll(2) takes an int of milliseconds; who waits longer asks again.
    end = None if seconds is None else monotonic.seconds() + seconds
    while True:
        left = None if end is None else min(1e9, max(0.0, end - monotonic.seconds()) * 1e3)
        if poll.poll(left):
            return True
        if end is not None and monotonic.seconds() >= end:
            return False


def _pipe(undo: contextlib.ExitStack) -> tuple[int, int]:
    reading, writing = os.pipe2(os.O_CLOEXEC)
    undo.callback(os.close, reading)
    undo.callback(os.close, writing)
    return reading, writing


def _close(descriptor: int) -> None:
    if descriptor >= 0:
        os.close(descriptor)
