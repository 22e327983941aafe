from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_crate.report import terminal_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 漢", "plain é 漢"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x1b[2J", r"\x1b[2J"),
        ("a\rb\tc\nd", r"a\rb\tc\nd"),
        ("\x9b2J", r"\x9b2J"),
        ("\u202eevil", r"\u202eevil"),
        ("bad\udcff", r"bad\udcff"),
        ("👩\u200d💻", "👩\u200d💻"),
    ],
)
def test_control_characters_are_spelled_out(text: str, shown: str) -> None:
    """Colours are dropped; whatever else could drive a terminal, or reorder its text, is spelled out."""
    assert terminal_text.harmless(text) == shown


@given(st.text())
def test_no_control_character_survives(text: str) -> None:
    """Whatever the text, what is left has no control character."""
    assert not [char for char in terminal_text.harmless(text) if unicodedata.category(char) == "Cc"]


@pytest.mark.parametrize(
    ("text", "width"),
    [("abc", 3), ("漢字", 4), ("e\u0301", 1), ("\N{FULLWIDTH LATIN CAPITAL LETTER A}", 2), ("ｱ", 1), ("", 0)],
)
def test_columns_count_what_the_terminal_shows(text: str, width: int) -> None:
    """Wide characters take two columns, combining ones none, half-width katakana one."""
    assert terminal_text.columns(text) == width


@pytest.mark.parametrize(
    ("text", "width", "shortened"),
    [
        ("short", 5, "short"),
        ("tests/test_a.py::test_name", 13, "test…est_name"),
        ("漢字漢字漢字", 7, "漢…漢字"),
        ("漢字漢字漢字", 8, "漢…漢字"),
        ("abcdefe\u0301gh", 4, "a…gh"),
        ("abc", 1, "…"),
        ("abc", 0, ""),
    ],
)
def test_the_middle_goes_and_the_end_keeps_most(text: str, width: int, shortened: str) -> None:
    """The end, with the test's name, gets two thirds; no wide character or accent is cut in two."""
    assert terminal_text.shorten_middle(text, width, "…") == shortened


@given(st.text(max_size=60), st.integers(0, 70), st.sampled_from(["…", "..."]))
def test_a_shortened_text_always_fits(text: str, width: int, ellipsis: str) -> None:
    """No text, however wide its characters, takes more columns than it was given."""
    assert terminal_text.columns(terminal_text.shorten_middle(text, width, ellipsis)) <= width


def test_the_tail_has_the_last_lines() -> None:
    """Of many lines the last are kept, and it is told that others were left out."""
    output = "".join(f"line {number}\n" for number in range(100))
    assert terminal_text.tail(output, most_lines=2, most_bytes=1000) == (["line 98", "line 99"], True)
    assert terminal_text.tail("one\r\ntwo\n\n", most_lines=2, most_bytes=1000) == (["one", "two"], False)


def test_the_tail_is_bounded_in_bytes_and_keeps_characters_whole() -> None:
    """A cut through a character drops the character's rest, and marks the line as cut."""
    assert terminal_text.tail("éé€".encode(), most_lines=9, most_bytes=4) == (["...€"], True)
    assert terminal_text.tail(b"first\nsecond", most_lines=9, most_bytes=6) == (["second"], True)


def test_the_tail_shows_bytes_that_are_not_text() -> None:
    """Invalid UTF-8, lone surrogates and control characters are spelled out; tabs become spaces."""
    assert terminal_text.tail(b"\xff\ta\x00", most_lines=9, most_bytes=99) == ([r"\xff    a\x00"], False)
    assert terminal_text.tail("\udcff", most_lines=9, most_bytes=99) == ([r"\udcff"], False)
    assert terminal_text.tail(b"", most_lines=9, most_bytes=99) == ([], False)


def test_to_ascii_spells_out_the_rest() -> None:
    """What ASCII lacks is spelled out, not lost."""
    assert terminal_text.to_ascii("é漢") == r"\xe9\u6f22"
