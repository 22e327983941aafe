"""Looks at the extras in a test's reports, of which pytest-html makes files beside its own report."""

from __future__ import annotations

import base64
import binascii
import json
import re
from pathlib import Path
from typing import Any

import pytest

from pytest_crate.plugin.interplay.adapter import Adapter, expect
from pytest_crate.plugin.interplay.inert import verify_inert

# pytest-html puts it at the end of a name, of which it takes the last 255 characters: with slashes it is any path.
_EXTENSION = re.compile(r"\w{1,16}", re.ASCII)
_ENCODED = ("image", "video")


def adapter(config: pytest.Config) -> Adapter | None:
    target = config.getoption("htmlpath", None)
    return None if target is None else _Extras(Path(target), files=not config.getoption("self_contained_html"))


class _Extras(Adapter):
    def __init__(self, target: Path, *, files: bool) -> None:
        self._assets = target.absolute().parent / "assets"
        self._files = files

    def verify_report(self, item: pytest.Item, report: pytest.TestReport) -> None:
        # Given by another plugin, in pytest (pytest-rerunfailures).
        expect(getattr(report, "rerun", 0), int)
        for extra in expect(getattr(report, "extras", []), list):
            extension = expect(expect(extra, dict)["extension"], (str, type(None)))
            if extension is not None and not _EXTENSION.fullmatch(extension):
                raise ValueError(f"{extension!r} is no extension of a file's name")
            if missing := {"name", "mime_type", "content"} - extra.keys():
                raise ValueError(f"an extra without {', '.join(sorted(missing))}")
            if expect(extra["format_type"], str) in ("text", *_ENCODED):  # which pytest-html encodes; others it formats
                expect(extra["content"], str)
            if self._files:
                # The rest of its name is the test's, in a report that may be of another name.
                verify_inert(item, self._assets / f"test_extra.{extension}", _content(extra))


def _content(extra: dict[str, Any]) -> bytes:
    """Return what is written of an extra."""
    content = extra["content"] if isinstance(extra["content"], str) else json.dumps(extra["content"])
    try:
        return base64.b64decode(content, validate=True) if extra["format_type"] in _ENCODED else content.encode()
    except binascii.Error:  # the name of a file, or a link: nothing is written
        return b""
