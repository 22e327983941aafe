"""The child's end of the way to the mirror, for which it needs nothing that a test may have replaced."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import struct
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, NoReturn

from pytest_crate.kernel import monotonic
from pytest_crate.plugin import transfer
from pytest_crate.sandbox import wire

EXIT_CLOSED = 71
"""Status of a child that found its pipe closed (EX_OSERR, sysexits.h)."""

PHASE_BEGINS = b'{"phase":'
"""How the frame of a phase's report begins."""

NEXT_PHASE = b"n"
"""The mirror's word that the child may begin the next phase."""

ATTENDED = b"a"
"""The mirror's word that it has done what the child asked for."""

NEXT_TEST = b"t"
"""The mirror's word that the child is to go on with another test (:class:`NextTest`)."""

LEAVE = b"l"
"""The mirror's word that no test follows in this crate."""

_NUMBERS = struct.Struct("=iiI")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NextTest:
    """What the child has to know of the test that it goes on with.

    :ivar number: the item's place among all items.
    :ivar following: the place of the one after it; -1 if there is none.
    :ivar captured: what was captured of its standard output and error so far, in pytest.
    """

    number: int
    following: int
    captured: tuple[str, str]

    def encode(self) -> bytes:
        """Return it as it follows the word."""
        text = json.dumps(self.captured).encode()
        return _NUMBERS.pack(self.number, self.following, len(text)) + text

    @classmethod
    def decode(cls, read: Callable[[int], bytes]) -> NextTest:
        """Rebuild it from what can be read."""
        number, following, length = _NUMBERS.unpack(read(_NUMBERS.size))
        out, err = _from_json(read(length).decode())
        return cls(number=number, following=following, captured=(out, err))


# Looked up once, for a test may have replaced json.loads.
_from_json = json.JSONDecoder().decode

MAX_MESSAGE_BYTES = 8 << 20
"""What a message may take in pytest's memory (:func:`wire.cost_bytes`); of a longer one, texts are cut."""

MAX_MESSAGES_BYTES = 28 << 20
"""What all messages of one test may take: pytest keeps them, or most of them. It is enough for 15,000 subtests."""

MAX_BROUGHT_BYTES = 128 << 20
"""What a message may take where a plugin brings much home: coverage of a million branches, attachments."""

_SHORT_BYTES = 1 << 18


class ReportPipe:
    """Where a child's reports go out, and the mirror's steps come in.

    A report is made while the test's own mocks are at work: of ``os.write``, of a whole file system. So the calls are
    looked up before the test, and kept where nothing that replaces a module's functions looks for them.
    """

    def __init__(self, sending: int, awaited: int) -> None:
        self._sending = sending
        self._awaited = awaited
        self._getpid, self._fstat, self._read, self._write = os.getpid, os.fstat, os.read, os.write
        self._exit, self._encode = os._exit, wire.encode
        self._signal, self._raise_signal = signal.signal, signal.raise_signal
        self._pid = os.getpid()
        self._identity = self._identify()
        self._heard: list[bytes] = []
        self._on_interrupt: Any = signal.SIG_DFL
        self._interrupted = False

    def _identify(self) -> tuple[int, int]:
        status = self._fstat(self._sending)
        return status.st_dev, status.st_ino

    def send(self, message: Mapping[str, object]) -> None:
        """Send a message to the mirror; end the process if that can't be done."""
        if self._getpid() != self._pid:
            # A fork of the test's that came back into pytest: one test has one report.
            self._exit(1)
        try:
            if self._identify() != self._identity:
                self._exit(EXIT_CLOSED)
            frame = self._encode(message)
            if len(frame) > _SHORT_BYTES and "brought" not in message:
                frame = self._encode(transfer.fitted(message, MAX_MESSAGE_BYTES))
            view = memoryview(frame)
            while view:
                view = view[self._write(self._sending, view) :]
        except OSError:
            self._exit(EXIT_CLOSED)

    def await_mirror(self, word: bytes) -> None:
        """Wait for a word of the mirror's: :data:`NEXT_PHASE` or :data:`ATTENDED`.

        One may come while the other is waited for: a child that has reported a phase may ask for attention before it
        begins the next.
        """
        while word not in self._heard:
            self._heard.append(self._hear(1))
        self._heard.remove(word)

    def grow_deaf(self) -> int:
        """Hear no Ctrl-C any more, for the test is over; return since when, of the monotonic clock.

        :raises KeyboardInterrupt: one that came just before.
        """
        since = monotonic.nanoseconds()
        # Not a mask: the signal would go to a thread that the test has left.
        self._on_interrupt = self._signal(signal.SIGINT, self._note_interrupt)
        return since

    def _note_interrupt(self, number: int, frame: FrameType | None) -> None:
        self._interrupted = True

    def hear_again(self) -> None:
        """Hear Ctrl-C again, at the next test in the crate, and one that was that test's already."""
        self._signal(signal.SIGINT, self._on_interrupt)
        if self._interrupted:
            self._interrupted = False
            self._raise_signal(signal.SIGINT)

    def await_test(self) -> NextTest | None:
        """Wait for the next test in this crate; None if none follows."""
        while (word := self._hear(1)) != NEXT_TEST:
            if word == LEAVE:
                return None
        return NextTest.decode(self._hear)

    def _hear(self, count: int) -> bytes:
        heard = b""
        while len(heard) < count:
            try:
                more = self._read(self._awaited, count - len(heard))
            except OSError:
                self._exit(EXIT_CLOSED)
            if not more:  # pytest is gone
                self._exit(EXIT_CLOSED)
            heard += more
        return heard

    def leave(self, status: int) -> NoReturn:
        """End the process."""
        self._exit(status)
