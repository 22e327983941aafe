"""Messages between processes."""

from __future__ import annotations

import os
import socket
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_crate.sandbox import wire

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.lists(st.dictionaries(st.text(max_size=5), JSON, max_size=3), max_size=5), st.integers(min_value=1, max_value=64)
)
def test_messages_arrive_whole_in_whatever_pieces(messages: list[wire.Message], size: int) -> None:
    """A stream cut anywhere gives the same messages, in order."""
    stream = b"".join(wire.encode(message) for message in messages)
    reader = wire.FrameReader()
    found = []
    for start in range(0, len(stream), size):
        found += reader.feed(stream[start : start + size])
    assert found == messages


@pytest.mark.parametrize("body", [b"", b"[]", b"1", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_message_is_refused(body: bytes) -> None:
    """Anything but a JSON object is an error, also when it nests without end."""
    with pytest.raises(wire.WireError):
        wire.FrameReader().feed(struct.pack(">I", len(body)) + body)


def test_a_frame_that_claims_too_much_is_refused_at_once() -> None:
    """Garbage read as a length does not make the reader wait for gigabytes."""
    with pytest.raises(wire.WireError, match="claims"):
        wire.FrameReader().feed(b"\xff\xff\xff\xff")


@pytest.mark.parametrize("text", [b'\\"', b"\\\\", b'""', b'"\\"'])
@pytest.mark.parametrize("end", [b"", b"\\", b'"', b'"}'])
def test_what_a_forged_frame_would_take_is_soon_known(text: bytes, end: bytes) -> None:
    """Quotes and backslashes without number, and a text without an end, are weighed in linear time."""
    body = b"{" + b"," * 40_000 + b'"' + text * ((4 << 20) // len(text)) + end
    began = time.process_time()
    assert wire.cost_bytes(body) > len(body) + 40_000 * 30
    assert time.process_time() - began < 2


def test_descriptors_ride_with_their_message() -> None:
    """A descriptor sent beside a message works at the other end, and is close-on-exec."""
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    with ours, theirs:
        wire.send(ours, {"a": "x" * 100_000}, [writing])
        os.close(writing)
        received = wire.receive(theirs)
        assert received is not None
        message, (descriptor,) = received
        assert message == {"a": "x" * 100_000}
        assert not os.get_inheritable(descriptor)
        os.write(descriptor, b"hello")
        os.close(descriptor)
        assert os.read(reading, 10) == b"hello"
        os.close(reading)


def test_the_end_of_a_stream_is_no_message() -> None:
    """A closed peer is the end; a peer that closes inside a message is an error."""
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        assert wire.receive(theirs) is None
    ours, theirs = socket.socketpair()
    with theirs:
        ours.sendall(wire.encode({"a": 1})[:-1])
        ours.close()
        with pytest.raises(wire.WireError, match="ended inside"):
            wire.receive(theirs)
