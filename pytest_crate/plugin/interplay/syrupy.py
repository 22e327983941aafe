"""Brings home what syrupy has compared with snapshots, and what it wants to write into them at the session's end."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_crate.plugin import classes
from pytest_crate.plugin.interplay.adapter import Adapter, expect, from_bytes, to_bytes
from pytest_crate.plugin.interplay.inert import verify_inert

_MOST_ASSERTIONS = 1 << 16  # each of which takes a kilobyte, however short it is to say


def adapter(config: pytest.Config) -> Adapter | None:
    session = getattr(config, "_syrupy", None)
    return None if session is None else _Snapshots(session)


class _Snapshots(Adapter):
    def __init__(self, session: Any) -> None:
        self._session = session
        self._before = 0
        self._written: list[dict[str, Any]] = []

    def shares(self, item: pytest.Item) -> bool:
        return "snapshot" not in getattr(item, "fixturenames", ())

    def brings_much(self, item: pytest.Item) -> bool:
        return True

    def child_starts(self, item: pytest.Item) -> None:
        self._before = len(self._session._assertions)  # noqa: SLF001
        queue = self._session.queue_snapshot_write

        def queue_and_note(extension: Any, test_location: Any, data: Any, index: Any) -> None:
            self._written.append({"extension": classes.name_of(type(extension)), "data": _packed(data), "index": index})
            queue(extension=extension, test_location=test_location, data=data, index=index)

        self._session.queue_snapshot_write = queue_and_note

    def take(self, item: pytest.Item) -> Any:
        assertions = [
            {
                "extension": [classes.name_of(kind) for kind in assertion.extension_class.__mro__],
                "results": [
                    {
                        "location": result.snapshot_location,
                        "name": result.snapshot_name,
                        "created": result.created,
                        "updated": result.updated,
                        "success": result.success,
                    }
                    for result in assertion.executions.values()
                ],
            }
            for assertion in self._session._assertions[self._before :]  # noqa: SLF001
        ]
        return {"assertions": assertions, "written": self._written} if assertions else None

    def give(self, item: pytest.Item, data: Any) -> None:
        syrupy: Any = sys.modules["syrupy"]
        place = sys.modules["syrupy.location"].PyTestLocation(item)
        if len(expect(data["assertions"], list)) > _MOST_ASSERTIONS:
            raise ValueError(f"more than {_MOST_ASSERTIONS} assertions")
        for assertion in data["assertions"]:
            made = syrupy.SnapshotAssertion(
                session=self._session,
                # A class that only the test itself knows stands for the nearest that is known here.
                extension_class=next(kind for kind in map(_extension, assertion["extension"]) if kind is not None),
                test_location=place,
                update_snapshots=self._session.update_snapshots,
            )
            for number, result in enumerate(expect(assertion["results"], list)):
                made.executions[number] = sys.modules["syrupy.assertion"].AssertionResult(
                    snapshot_location=expect(result["location"], str),
                    snapshot_name=expect(result["name"], str),
                    created=expect(result["created"], bool),
                    updated=expect(result["updated"], bool),
                    success=expect(result["success"], bool),
                    asserted_data=None,
                    recalled_data=None,
                    exception=None,
                    test_location=place,
                )
        for write in expect(data["written"], list):
            self._write(item, place, write)

    def _write(self, item: pytest.Item, place: Any, write: Any) -> None:
        kind = _extension(expect(write["extension"], str))
        if kind is None:
            raise ValueError(
                f"the class {write['extension']} isn't known outside the test: define it in a module to write with it"
            )
        extension = kind()
        index = write["index"] if isinstance(write["index"], int) else _text(write["index"])
        single = getattr(sys.modules.get("syrupy.extensions.single_file"), "SingleFileSnapshotExtension", ())
        if isinstance(index, str) and not {"\n", "\r"}.isdisjoint(index) and not issubclass(kind, single):
            # It is a line of a file of many: after its end could be a snapshot of any other test's.
            raise ValueError(f"{index!r} is no name of a snapshot: it has more than one line")
        # syrupy's own reckoning of where a snapshot is, whatever the test says.
        target = os.path.realpath(extension.get_location(test_location=place, index=index))
        if not target.startswith(os.path.realpath(item.config.rootpath) + os.sep):
            raise ValueError(f"{target} is not below the root directory")
        written = _unpacked(write["data"])
        verify_inert(item, Path(target), written if isinstance(written, bytes) else written.encode())
        self._session.queue_snapshot_write(extension=extension, test_location=place, data=written, index=index)


def _extension(name: str) -> Any:
    """Return the extension of a name, if its module is loaded here."""
    return classes.find(expect(name, str), sys.modules["syrupy.extensions.base"].AbstractSyrupyExtension)


def _packed(data: Any) -> dict[str, str]:
    return {"bytes": from_bytes(data)} if isinstance(data, bytes) else {"text": data}


def _unpacked(data: Any) -> str | bytes:
    return to_bytes(data["bytes"]) if "bytes" in data else _text(data["text"])


def _text(value: Any) -> str:
    text = str(expect(value, str))
    text.encode()  # syrupy would raise at the session's end, with a file of many tests' half written
    return text
