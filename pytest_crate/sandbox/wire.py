"""Messages between processes: JSON of builtins, length-prefixed, with descriptors beside them."""

from __future__ import annotations

import json
import os
import re
import select
import socket
import struct
from collections.abc import Iterable, Mapping
from typing import Any

_LENGTH = struct.Struct(">I")
_DESCRIPTOR = struct.Struct("=i")
MAX_FRAME_BYTES = 256 << 20
"""The longest frame that is accepted; a longer one is a broken or a forged one."""

_MAX_DESCRIPTORS = 16

# What an object, an array, and an element of one take in CPython 3.11, about, beyond what they hold.
_WEIGHTS = ((b"{", 100), (b"[", 60), (b",", 30))
_LIGHT_BYTES = 1 << 20
# The one character that JSON holds as it is, and XML doesn't: pytest writes each as a text of its own (junitxml.py,
# bin_xml_escape), which takes as much while they are put together.
_DELETE, _DELETE_WEIGHT = b"\x7f", 64
# A name of an object that no frame before had: its text, and its places in two tables, that of the object and that of
# the names that are kept once.
_NAME_WEIGHT = 150
_MOST_NAMES = 1 << 12
# Of bytes that nobody has verified: a string that has no end is taken whole, so that none is begun inside it once more.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_STRING_OR_NAME = re.compile(b"(%b)([ \\t\\r\\n]*+:)?" % _STRING.pattern, re.DOTALL)
_AS_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
MAX_DEPTH = 200
"""How deep objects and arrays may nest in a frame that is verified: whoever takes it apart goes down into it, and
execnet, on the way to pytest-xdist's controller, needs three of Python's thousand calls for each level."""

Message = dict[str, Any]

# Looked up once, for a test may have replaced json.dumps when its report is sent.
_to_json = json.JSONEncoder(separators=(",", ":")).encode


class WireError(Exception):
    """What came over the wire is not a message."""


class DescriptorsLost(WireError):
    """A message came, and not all of the descriptors beside it: whoever receives it has too many open."""


def encode(message: Mapping[str, object]) -> bytes:
    """Return the frame of a message."""
    body = _to_json(message).encode()
    return _LENGTH.pack(len(body)) + body


def decode(body: bytes) -> Message:
    """Return the message of a frame's body.

    :raises WireError: it is not the JSON of an object.
    """
    try:
        # As it is encoded: other characters, and other encodings, would take several times the room.
        message = json.loads(body.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise WireError(f"a frame of {len(body)} bytes is not JSON: {error}") from error
    if not isinstance(message, dict):
        raise WireError("a frame is not a JSON object")
    return message


def cost_bytes(body: bytes) -> int:
    """Return about how much memory the message of a frame's body takes: several times its length, at worst.

    Strings count as long as they are, times four where one of their characters is beyond the first plane (PEP 393);
    every object, array and element counts on top.
    """
    length = len(body) * (4 if b"\\ud" in body or b"\\uD" in body else 2 if b"\\u" in body else 1)
    length += _DELETE_WEIGHT * body.count(_DELETE)
    if (weight := _weight(body)) <= _LIGHT_BYTES:
        return length + weight
    return length + _weight(_without_texts(body))  # commas in a long text are no elements


def _weight(body: bytes | bytearray) -> int:
    return sum(each * body.count(mark) for mark, each in _WEIGHTS)


def _without_texts(body: bytes) -> bytearray:
    # Not re.sub(), whose pieces, before they are joined, take a hundred times as much as a short one has.
    kept, end = bytearray(), 0
    for found in _STRING.finditer(body):
        kept += body[end : found.start()]
        end = found.end()
    return kept + body[end:]


def _nests_too_deep(body: bytes) -> bool:
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return False
    brackets = _without_texts(body).translate(_AS_BRACKETS, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"")  # the innermost ones, one level at a time
    return bool(brackets)


class FrameReader:
    """Cuts a byte stream into frames; fed with what was read, in whatever pieces.

    :param max_frame_bytes: the most that a frame may cost (:func:`cost_bytes`).
    :param max_total_bytes: the most that all together may; None for no limit.
    """

    def __init__(self, *, max_frame_bytes: int = MAX_FRAME_BYTES, max_total_bytes: int | None = None) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._max_total_bytes = max_total_bytes or 0
        self._left_bytes = max_total_bytes
        self._names: set[bytes] = set()
        self._buffer = bytearray()

    def cut(self, data: bytes) -> list[bytes]:
        """Take bytes and return the bodies of the frames that are now whole, for :func:`decode`.

        :raises WireError: a frame is too long.
        """
        self._buffer += data
        bodies: list[bytes] = []
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > self._max_frame_bytes:
                raise WireError(f"a frame claims {length} bytes")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                break
            with memoryview(self._buffer) as view:
                body = bytes(view[_LENGTH.size : end])
            del self._buffer[:end]
            if self._left_bytes is not None:
                self._verify(body)
            bodies.append(body)
        return bodies

    def feed(self, data: bytes) -> list[Message]:
        """Take bytes and return the messages that are now whole.

        :raises WireError: a frame is too long, or not a message.
        """
        return [decode(body) for body in self.cut(data)]

    def _verify(self, body: bytes) -> None:
        # Before it is decoded: that is when it becomes large.
        cost = cost_bytes(body) + _NAME_WEIGHT * self._count_new_names(body)
        if cost > self._max_frame_bytes:
            raise WireError(f"a frame of {len(body)} bytes would take {cost} bytes of memory")
        if _nests_too_deep(body):
            raise WireError(f"a frame of {len(body)} bytes nests more than {MAX_DEPTH} deep, or is not JSON")
        assert self._left_bytes is not None
        self._left_bytes -= cost
        if self._left_bytes < 0:
            raise WireError(f"all in all it took more than {self._max_total_bytes >> 20} MiB")

    def _count_new_names(self, body: bytes) -> int:
        if body.count(b":") > _MOST_NAMES and (count := _without_texts(body).count(b":")) > _MOST_NAMES:
            return count
        new = {found[1] for found in _STRING_OR_NAME.finditer(body) if found[2]} - self._names
        if len(self._names) < _MOST_NAMES:
            self._names |= new
        return len(new)


def write_frame(descriptor: int, message: Mapping[str, object]) -> None:
    """Write a message whole to a pipe or socket, blocking.

    :raises OSError: the other end is gone.
    """
    view = memoryview(encode(message))
    while view:
        view = view[os.write(descriptor, view) :]


def send(channel: socket.socket, message: Mapping[str, object], descriptors: Iterable[int] = ()) -> None:
    """Send a message, and descriptors beside it, over a stream socket (unix(7), SCM_RIGHTS).

    :raises WireError: it is longer than what is accepted; nothing has been sent.
    """
    send_frame(channel, encode(message), descriptors)


def send_frame(channel: socket.socket, frame: bytes, descriptors: Iterable[int] = ()) -> None:
    """Send what :func:`encode` has made of a message, as :func:`send` does."""
    if len(frame) - _LENGTH.size > MAX_FRAME_BYTES:
        raise WireError(f"a message of {len(frame)} bytes is too long")
    fds = list(descriptors)
    if fds:
        # The descriptors ride on the length; the rest follows as plain data.
        socket.send_fds(channel, [frame[: _LENGTH.size]], fds)
        frame = frame[_LENGTH.size :]
    channel.sendall(frame)


def receive(channel: socket.socket, *, sender: int | None = None) -> tuple[Message, list[int]] | None:
    """Receive a message and the descriptors beside it (close-on-exec); None at the end of the stream.

    :param sender: the pidfd of who sends: where that one ends inside a message, so does the stream, though a fork of it
        may keep it open. None for whoever it is.
    :raises DescriptorsLost: there is no room for them; the stream is in order.
    :raises WireError: the stream ends inside a message, or holds none.
    """
    # Not socket.recv_fds(), which drops its flags: the descriptors would be inherited by any exec.
    room = socket.CMSG_SPACE(_MAX_DESCRIPTORS * _DESCRIPTOR.size)
    head, ancillary, flags, _ = channel.recvmsg(_LENGTH.size, room, socket.MSG_CMSG_CLOEXEC)
    fds = [
        descriptor
        for level, kind, data in ancillary
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        for (descriptor,) in _DESCRIPTOR.iter_unpack(data[: len(data) - len(data) % _DESCRIPTOR.size])
    ]
    if not head:
        return None
    while len(head) < _LENGTH.size:
        head += _some(channel, _LENGTH.size - len(head), sender)
    (length,) = _LENGTH.unpack(head)
    if length > MAX_FRAME_BYTES:
        raise WireError(f"a frame claims {length} bytes")
    body = bytearray()
    while len(body) < length:
        body += _some(channel, min(length - len(body), 1 << 20), sender)
    if flags & socket.MSG_CTRUNC:
        for descriptor in fds:
            os.close(descriptor)
        raise DescriptorsLost("descriptors were lost on the way: this process has too many open (ulimit -n)")
    return decode(bytes(body)), fds


def _some(channel: socket.socket, count: int, sender: int | None) -> bytes:
    if sender is not None:
        poll = select.poll()
        for descriptor in (channel.fileno(), sender):
            poll.register(descriptor, select.POLLIN)
        if channel.fileno() not in dict(poll.poll()):
            raise WireError("its sender ended inside a message")
    data = channel.recv(count)
    if not data:
        raise WireError("the stream ended inside a message")
    return data
