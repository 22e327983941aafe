"""What is handed over from a child is checked before any plugin's adapter sees it."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest

from pytest_crate.plugin.interplay import Interplay
from pytest_crate.plugin.interplay.adapter import expect, from_bytes, to_bytes


@pytest.mark.parametrize(
    ("taken", "said"),
    [
        ({"unknown": {"data": []}}, "nothing is expected from 'unknown'"),
        ({"hypothesis": []}, "nothing is expected from 'hypothesis'"),
        ({"hypothesis": {}}, "could not be used: KeyError: 'data'"),
        ({"hypothesis": {"data": 5}}, "could not be used: TypeError: int where list is expected"),
        ({"hypothesis": {"lost": "why"}}, "what hypothesis kept in the crate could not be brought home: why"),
    ],
)
def test_forged(request: pytest.FixtureRequest, taken: dict[str, Any], said: str) -> None:
    """An unknown plugin, another form, and what the child could not take are errors that name the plugin."""
    assert hypothesis.__version__  # its adapter is there where it is imported
    with pytest.raises(ValueError, match=r"hypothesis|unknown") as caught:
        Interplay(request.config).give(request.node, taken)
    assert said in str(caught.value)


def test_nothing_taken(request: pytest.FixtureRequest) -> None:
    """Where no plugin has kept anything, nothing is sent."""
    interplay = Interplay(request.config)
    taken = interplay.take(request.node, leaves=True)
    assert {name for name in taken if name != "coverage"} == set()


def test_bytes() -> None:
    """Bytes cross as text, and only such text is bytes."""
    assert to_bytes(from_bytes(b"\x00\xff")) == b"\x00\xff"
    with pytest.raises(ValueError, match=r"(?i)base64|non-"):
        to_bytes("%%")


def test_expected_kinds() -> None:
    """A truth value is no number."""
    assert expect(1, int) == 1
    assert expect(True, bool) is True
    assert expect(None, (str, type(None))) is None
    with pytest.raises(TypeError, match="bool where int or float is expected"):
        expect(True, (int, float))
