"""Messages between processes."""

from __future__ import annotations

import os
import socket
import struct
import time
import tracemalloc

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


def test_commas_of_a_text_that_does_not_end_are_no_elements() -> None:
    """A frame's cost is reckoned before anybody knows that it is JSON: a text may lack its end."""
    for text in (b'"' + b"," * 50_000, b'"' + b'\\"' * 50_000 + b"," * 50_000, b'"' + b"," * 50_000 + b"\\"):
        assert wire.cost_bytes(b"{" + text) <= len(text) + 1000


def test_the_cost_is_reckoned_in_a_time_that_grows_with_the_frame_alone() -> None:
    """Four times as many escaped quotation marks, in a text that does not end, take about four times as long."""

    def seconds(marks: int) -> float:
        body = b"{" + b"," * 40_000 + b'"' + b'\\"' * marks
        spent = []
        for _ in range(3):
            start = time.process_time()
            wire.cost_bytes(body)
            spent.append(time.process_time() - start)
        return min(spent)

    assert seconds(32_000) < 8 * seconds(8_000)


@pytest.mark.parametrize("character", ["\\ud83d\\ude00", "\\uD83D\\uDE00", "\\uD800"])
def test_an_escape_counts_in_either_case(character: str) -> None:
    """A text with a character beyond the first plane takes four bytes for each of its characters, however it is
    written."""
    body = b'{"a":"' + b"x" * 1000 + character.encode() + b'"}'
    assert wire.cost_bytes(body) >= 4000


@pytest.mark.parametrize("names", [5, 1000, 100_000])
def test_names_count(names: int) -> None:
    """Each name takes a text and a place in an object's table, and is paid for; one that came before is kept once."""
    frames = [
        (b'{"a":{' + b",".join(b'"%x" : 1' % (first + number) for number in range(names)) + b"}}")
        for first in range(0, 400_000, names)
    ]

    def kept(frames: list[bytes]) -> list[wire.Message]:
        reader, found = wire.FrameReader(max_total_bytes=8 << 20), []
        try:
            for body in frames:
                found += reader.feed(struct.pack(">I", len(body)) + body)
        except wire.WireError:
            return found
        pytest.fail("the frames take no end")

    tracemalloc.start()
    different = kept(frames)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < 9 << 20
    if names < 100_000:
        assert len(kept([frames[0]] * len(frames))) > 2 * len(different)


@pytest.mark.parametrize(("opening", "closing", "levels"), [(b"[", b"]", 1), (b'{"":', b"}", 1), (b'[{"":', b"}]", 2)])
def test_what_nests_too_deep_is_refused_unless_it_is_a_text(opening: bytes, closing: bytes, levels: int) -> None:
    """Whoever takes a message apart goes down into it; brackets in texts, or side by side, are no depth."""

    def feed(body: bytes) -> list[wire.Message]:
        return wire.FrameReader(max_total_bytes=1 << 20).feed(struct.pack(">I", len(body)) + body)

    def nested(depth: int) -> bytes:
        return b'{"a":' + opening * depth + b"0" + closing * depth + b"}"

    assert feed(nested((wire.MAX_DEPTH - 1) // levels))
    with pytest.raises(wire.WireError, match="nests more than"):
        feed(nested(wire.MAX_DEPTH // levels))
    assert feed(b'{"a":"' + b"[{" * 1000 + b'"}')
    assert feed(b'{"a":[' + b",".join([opening + b"0" + closing] * 1000) + b"]}")
