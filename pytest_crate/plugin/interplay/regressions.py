"""Brings home the expected files that pytest-regressions writes beside a test's module."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from pytest_crate.plugin.interplay.adapter import Adapter, expect, from_bytes, to_bytes
from pytest_crate.plugin.interplay.inert import verify_inert

_SUFFIX = "_regression"
# What each fixture adds to a name (pytest-regressions 2.11); others, such as file_regression, add what the test says.
_EXTENSIONS = {
    "data_regression": ".yml",
    "dataframe_regression": ".csv",
    "image_regression": ".png",
    "ndarrays_regression": ".npz",
    "num_regression": ".csv",
}


def adapter(_config: pytest.Config) -> Adapter:
    return _ExpectedFiles()


class _ExpectedFiles(Adapter):
    def __init__(self) -> None:
        self._before: dict[str, tuple[int, int]] = {}

    def shares(self, item: pytest.Item) -> bool:
        return not _uses(item)

    def brings_much(self, item: pytest.Item) -> bool:
        return _uses(item)

    def child_starts(self, item: pytest.Item) -> None:
        if _uses(item):
            self._before = _listing(_directory(item))

    def take(self, item: pytest.Item) -> Any:
        if not _uses(item):
            return None
        directory = _directory(item)
        return {
            name: from_bytes((directory / name).read_bytes())
            for name, state in _listing(directory).items()
            if self._before.get(name) != state
        } or None

    def give(self, item: pytest.Item, data: Any) -> None:
        if not _uses(item):
            raise ValueError("the test has no fixture of the plugin's")
        # The directory is known here; what a test says is a name in it.
        directory = _directory(item)
        contents: dict[Path, bytes] = {}
        for name, text in expect(data, dict).items():
            parts = PurePosixPath(expect(name, str)).parts
            target = directory.joinpath(*parts)
            # No way out of it, by name or by a symlink that is there.
            inside = parts and "/" not in parts and ".." not in parts
            if not inside or os.path.realpath(target) != os.path.join(os.path.realpath(directory), *parts):
                raise ValueError(f"{name!r} is no name of a file in {directory}")
            contents[target] = to_bytes(expect(text, str))
            verify_inert(item, target, contents[target])
            if (extensions := _extensions(item)) and target.suffix not in extensions:
                raise ValueError(
                    f"{target} is none of the test's expected files, which end in {' or '.join(extensions)}"
                )
        for target, content in contents.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


def _uses(item: pytest.Item) -> bool:
    return bool(_fixtures(item))


def _fixtures(item: pytest.Item) -> list[str]:
    return [name for name in getattr(item, "fixturenames", ()) if name.endswith(_SUFFIX)]


def _extensions(item: pytest.Item) -> list[str]:
    """Return the extensions of what the item's fixtures write; none where any may be."""
    fixtures = _fixtures(item)
    if not _EXTENSIONS.keys() >= set(fixtures):
        return []
    return sorted({_EXTENSIONS[name] for name in fixtures})


def _directory(item: pytest.Item) -> Path:
    # pytest-datadir's fixture original_datadir.
    return item.path.with_suffix("")


def _listing(directory: Path) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for place, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(place, name)
            status = os.lstat(path)
            found[os.path.relpath(path, directory)] = (status.st_mtime_ns, status.st_size)
    return found
