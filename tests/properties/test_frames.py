"""Whatever a crate sends: messages, or an error of a known kind; nothing else gets into pytest."""

from __future__ import annotations

import json
import math
import string
import struct
import warnings
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_crate.plugin import raised, transfer, warned
from pytest_crate.sandbox import wire

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
REPORT = {
    "$report_type": "TestReport", "nodeid": "a.py::test", "location": ["a.py", 1, "test"], "keywords": {"a": 1},
    "outcome": "failed", "longrepr": "text", "when": "call", "user_properties": [], "sections": [["a", "b"]],
    "duration": 0.5, "start": 1, "stop": 2,
}  # fmt: skip
EXCEPTION = {"classes": ["builtins:ValueError"], "text": "t", "arguments": ["t"], "suppress": False}


@settings(deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=4))
def test_any_bytes_are_messages_or_an_error_of_the_wire(pieces: list[bytes]) -> None:
    """A stream of bytes gives objects of JSON, or a WireError."""
    reader = wire.FrameReader(max_frame_bytes=1000, max_total_bytes=2000)
    try:
        messages = [message for piece in pieces for message in reader.feed(piece)]
    except wire.WireError:
        return
    assert all(isinstance(message, dict) for message in messages)


@settings(deadline=None)
@given(st.binary(max_size=300) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_frame_is_a_message_or_an_error_of_the_wire(body: bytes) -> None:
    """The same of the body of a frame."""
    try:
        (message,) = wire.FrameReader(max_total_bytes=1 << 20).feed(struct.pack(">I", len(body)) + body)
    except wire.WireError:
        return
    assert json.dumps(json.loads(body)) == json.dumps(message)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4), st.integers(0, 9), st.integers(2000, 1 << 16))
def test_a_message_is_cut_until_it_fits(message: dict[str, Any], lines: int, most: int) -> None:
    """With long texts, and lists of them, it takes no more than it may, and has the same keys."""
    long = message | {"text": "\N{GRINNING FACE}" * 100_000, "lines": ["x" * 1000] * (lines * 1000)}
    fitting = transfer.fitted(long, most)
    assert fitting.keys() == long.keys()
    assert wire.cost_bytes(wire.encode(fitting)) <= max(most, 128 << 10)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from([*REPORT, "crate_drawn", "wasxfail", "toterminal", "x"]), JSON, max_size=3))
def test_a_report_with_any_part_exchanged_can_be_shown_or_is_refused(
    pytestconfig: pytest.Config, parts: dict[str, Any]
) -> None:
    """What is taken for a report has an outcome, a place and a text, as pytest's reporters need them."""
    try:
        report = transfer.unpack_report(pytestconfig, REPORT | parts)
    except transfer.REFUSED:
        return
    assert report.outcome in ("passed", "failed", "skipped")
    assert isinstance(report.longreprtext + report.caplog + report.capstdout + report.nodeid, str)
    assert math.isfinite(report.duration)
    assert pytestconfig.hook.pytest_report_to_serializable(config=pytestconfig, report=report)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([*EXCEPTION, "cause", "context", "group", "message"]), JSON, max_size=3))
def test_an_exception_with_any_part_exchanged_is_one_or_is_refused(parts: dict[str, Any]) -> None:
    """No class of this process is called, nor anything but an exception made."""
    try:
        error = raised.unpack_exception(EXCEPTION | parts)
    except transfer.REFUSED:
        return
    assert isinstance(error, BaseException)


@settings(deadline=None)
@given(st.fixed_dictionaries(dict.fromkeys(("text", "classes", "filename", "lineno", "line"), JSON)), st.booleans())
def test_a_warning_of_any_parts_is_shown_or_refused(data: dict[str, Any], abroad: bool) -> None:
    """The same of a warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            warned.show_warning(data, abroad=abroad)
        except transfer.REFUSED:
            return
    assert all(issubclass(each.category, Warning) for each in caught)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["passed", "failed", "skipped"]),
    st.lists(st.tuples(st.text(max_size=10), st.text(max_size=50)), max_size=3),
    # A name that XML has no characters for comes home as it is written there.
    st.lists(st.tuples(st.text(string.printable[:95], max_size=10), st.integers() | st.text(max_size=10)), max_size=3),
    st.text(max_size=100) | st.tuples(st.text(max_size=10), st.integers(0, 1 << 20), st.text(max_size=10)),
)
def test_a_report_comes_home_as_it_was(
    pytestconfig: pytest.Config, outcome: Any, sections: Any, properties: Any, reason: Any
) -> None:
    """Packed, sent and unpacked, a report is the same."""
    if outcome == "skipped" and isinstance(reason, str):
        reason = ("a.py", 1, reason)  # pytest's own reporters take it apart
    report = pytest.TestReport("a.py::t", ("a.py", None, "t"), {"k": 1}, outcome, reason, "call", sections)
    report.user_properties = properties
    (message,) = wire.FrameReader().feed(wire.encode(transfer.pack_report(pytestconfig, report)))
    again = transfer.unpack_report(pytestconfig, message)
    # pytest itself leaves the name of the kind in it.
    assert vars(again) == vars(report) | {"$report_type": "TestReport"}
