"""What audit events tell of what this process makes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_crate.sandbox import made
from pytest_crate.sandbox.made import Made


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory that stands for /tmp."""
    directory = tmp_path / "tmp"
    directory.mkdir()
    return directory


def _found(place: Path, event: str, *arguments: Any, then: Callable[[], object]) -> list[str]:
    """Return the names that are found when an event has been told and then its call does something."""
    noted = Made([str(place), str(place / "missing")])
    noted.note(event, arguments)
    then()
    return [os.path.relpath(path, place) for path in noted.found()]


def test_events_that_make_something(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path is where each event has it: text, bytes, an object; relative to the working directory or to another."""
    name = str(place / "it")
    descriptor = os.open(place, os.O_RDONLY)
    monkeypatch.chdir(place.parent)
    events: dict[str, tuple[Any, ...]] = {
        "mode": ("open", name, "wb", 0),
        "flags": ("open", os.fsencode(name), None, os.O_CREAT | os.O_WRONLY),
        "mkdir": ("os.mkdir", name + "/", 0o777, -1),
        "relative": ("os.mkdir", "tmp/it", 0o777, -1),
        "directory": ("os.mkdir", "it", 0o777, descriptor),
        "rename": ("os.rename", "elsewhere", "it", -1, descriptor),
        "link": ("os.link", "elsewhere", name, -1, -1),
        "symlink": ("os.symlink", "elsewhere", name, -1),
        "bind": ("socket.bind", None, name),
        "sqlite": ("sqlite3.connect", Path(name)),
    }
    found = {}
    for key, event in events.items():
        found[key] = _found(place, *event, then=(place / "it").touch)
        (place / "it").unlink()
    os.close(descriptor)
    assert found == {key: ["it"] for key in events}


def test_events_that_make_nothing(place: Path) -> None:
    """Reading; an open file's number; an address of the internet; a place elsewhere, or that is no name."""
    name = str(place / "it")
    events: list[tuple[Any, ...]] = [
        ("open", name, "rb", os.O_RDONLY),
        ("open", 3, "wb", os.O_CREAT),
        ("socket.bind", None, ("127.0.0.1", 1)),
        ("os.mkdir", str(place.parent / "it"), 0o777, -1),
        ("os.mkdir", str(place) + "/..", 0o777, -1),
        ("os.mkdir", "/", 0o777, -1),
    ]
    for event in events:
        assert _found(place, *event, then=(place / "it").touch) == [], event
        (place / "it").unlink()


def test_a_call_that_fails_has_made_nothing(place: Path) -> None:
    """The event comes before the call."""
    assert _found(place, "os.mkdir", str(place / "it"), 0o777, -1, then=lambda: None) == []
    (place / "it").touch()
    assert _found(place, "os.rename", "elsewhere", str(place / "it"), -1, -1, then=lambda: None) == []


def test_what_is_noted_is_bounded(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too much is not shown."""
    monkeypatch.setattr(made, "_MOST", 3)
    noted = Made([str(place)])
    for number in range(5):
        noted.note("os.mkdir", (str(place / str(number)), 0o777, -1))
        (place / str(number)).mkdir()
    assert len(list(noted.found())) == 3


def test_what_is_in_a_directory_made_is_not_noted(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is shown with its directory; and however much it is, what is made after it is shown, too."""
    monkeypatch.setattr(made, "_MOST", 3)
    noted = Made([str(place)])
    noted.listen()
    try:
        for name in ("full", "later"):
            (place / name).mkdir()
            for number in range(5):
                (place / name / str(number)).touch()
    finally:
        noted.close()
    assert list(noted.found()) == [str(place / "full"), str(place / "later")]


def test_the_hook_never_fails(place: Path) -> None:
    """Whatever a call is given: its own error is its caller's, and none of the hook's."""
    noted = Made([str(place)])
    noted.listen()
    try:
        with pytest.raises(ValueError, match="null"):
            os.mkdir("a\0b")
        with pytest.raises(FileNotFoundError):
            os.mkdir(place / "missing" / "it")
        sys.audit("os.mkdir")
        sys.audit("os.mkdir", object(), 0, object())
        (place / "it").mkdir()
    finally:
        noted.close()
    (place / "late").mkdir()
    assert list(noted.found()) == [str(place / "it")]


def test_each_listens_for_itself(place: Path) -> None:
    """As where a test runs pytest in its own process; one that is closed hears no more, and the other does."""
    outer, inner = Made([str(place)]), Made([str(place)])
    outer.listen()
    (place / "one").mkdir()
    inner.listen()
    (place / "two").mkdir()
    inner.close()
    inner.close()
    (place / "three").mkdir()
    outer.close()
    assert [Path(path).name for path in outer.found()] == ["one", "two", "three"]
    assert [Path(path).name for path in inner.found()] == ["two"]
