"""Foreign text made harmless to print, and measured and shortened in terminal columns."""

from __future__ import annotations

import re
import unicodedata

# Colours and the like ("select graphic rendition", ECMA-48 §8.3.117) carry no content: dropped, not shown.
_COLOUR = re.compile(r"\x1b\[[0-9;:]*m")
# Control and format characters (bidirectional overrides reorder what a reader sees, CVE-2021-42574),
# lone surrogates, and the two separators that some terminals take for a line's end.
_HARMFUL = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# Zero-width joiners belong to the spelling of many scripts and of emoji.
_JOINERS = frozenset("\u200c\u200d")
_ZERO_WIDTH = frozenset({"Mn", "Me", "Cf"})


def harmless(text: str) -> str:
    r"""Return one line of text that cannot drive a terminal: ``\x1b``, ``\r``, ``\u202e`` … are spelled out."""
    return "".join(
        char.encode("unicode_escape").decode("ascii")
        if unicodedata.category(char) in _HARMFUL and char not in _JOINERS
        else char
        for char in _COLOUR.sub("", text)
    )


def to_ascii(text: str) -> str:
    r"""Return text with all that is not ASCII spelled out, such as ``\xe9``."""
    return text.encode("ascii", "backslashreplace").decode("ascii")


def tail(data: bytes | str, *, most_lines: int, most_bytes: int) -> tuple[list[str], bool]:
    """Return the last lines of a program's output, harmless, and whether anything before them was left out.

    :param data: the output; bytes that are not UTF-8 are spelled out.
    """
    raw = data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data
    raw = raw.rstrip()
    kept = raw[-most_bytes:]
    cut = len(kept) < len(raw)
    if cut:
        # The cut may have gone through a character: continuation bytes have no meaning alone (RFC 3629).
        kept = kept.lstrip(bytes(range(0x80, 0xC0)))
    text = kept.decode("utf-8", "backslashreplace").replace("\r\n", "\n")
    lines = text.split("\n") if text else []
    if cut and lines and not raw[: len(raw) - len(kept)].endswith(b"\n"):
        lines[0] = f"...{lines[0]}"
    cut = cut or len(lines) > most_lines
    return [harmless(line.expandtabs()) for line in lines[-most_lines:]], cut


def _char_columns(char: str) -> int:
    if unicodedata.category(char) in _ZERO_WIDTH:
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def columns(text: str) -> int:
    """Return how many terminal columns a line takes; East Asian wide characters take two (Unicode annex 11)."""
    return sum(map(_char_columns, text))


def shorten_middle(text: str, width: int, ellipsis: str) -> str:
    """Return text that takes at most ``width`` columns, with an ellipsis in place of its middle if need be.

    Two thirds of the room go to the end, since a test's own name is there.
    """
    if columns(text) <= width:
        return text
    room = width - len(ellipsis)
    if room < 1:
        return ellipsis[: max(0, width)]
    start = _first(text, room // 3)
    end = _first(text[::-1], room - columns(start))[::-1]
    # A combining character whose base fell into the gap would settle on the ellipsis.
    while end and not _char_columns(end[0]):
        end = end[1:]
    return f"{start}{ellipsis}{end}"


def _first(text: str, width: int) -> str:
    used = 0
    for index, char in enumerate(text):
        used += _char_columns(char)
        if used > width:
            return text[:index]
    return text
