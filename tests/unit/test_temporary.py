"""What a run has put into the temporary directories."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from pytest_crate.sandbox import temporary


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that stands for /tmp."""
    monkeypatch.setattr(temporary, "TEMPORARY", {str(tmp_path): 0o1777, str(tmp_path / "missing"): 0o755})
    return tmp_path


def test_only_what_appears_between_ignore_and_keep_is_the_runs(directory: Path) -> None:
    """Entries of other programs, before, between and after, are not the run's."""
    (directory / "before").mkdir()
    entries = temporary.TemporaryEntries()
    (directory / "other").mkdir()
    entries.ignore()
    (directory / "ours").mkdir()
    entries.keep()
    (directory / "after").mkdir()
    assert entries.kept() == (str(directory / "ours"),)


def test_an_entry_that_is_gone_is_not_kept(directory: Path) -> None:
    """A fixture may have removed what it made."""
    entries = temporary.TemporaryEntries()
    (directory / "ours").mkdir()
    entries.keep()
    (directory / "ours").rmdir()
    assert entries.kept() == ()


def test_new_entries_of_a_directory_that_was_there_are_found(directory: Path) -> None:
    """As an X server's socket in /tmp/.X11-unix, which the system had made."""
    shared = directory / ".X11-unix"
    shared.mkdir()
    (shared / "X0").touch()
    os.utime(shared / "X0", (1, 1))
    os.utime(shared, (1, 1))
    entries = temporary.TemporaryEntries()
    (shared / "X99").touch()
    entries.keep()
    assert entries.kept() == (str(shared / "X99"),)


def test_an_entry_made_again_is_new(directory: Path) -> None:
    """The same name with another inode is another thing."""
    (directory / "name").mkdir()
    entries = temporary.TemporaryEntries()
    (directory / "name").rename(directory / "aside")
    (directory / "name").mkdir()
    entries.keep()
    assert str(directory / "name") in entries.kept()


def test_sockets_are_found_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among the entries and below them, however deep; other files, and what is gone, aren't."""
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "file").touch()
    (tmp_path / "d" / "loop").symlink_to(tmp_path)
    with socket.socket(socket.AF_UNIX) as deep, socket.socket(socket.AF_UNIX) as flat:
        deep.bind("d/e/s")
        flat.bind("s")
        found = temporary.unix_sockets([str(tmp_path / "d"), str(tmp_path / "s"), str(tmp_path / "gone")])
    assert sorted(found) == [str(tmp_path / "d/e/s"), str(tmp_path / "s")]


def test_a_deep_tree_is_no_trouble(tmp_path: Path) -> None:
    """A tree deeper than Python's stack is searched as far as the bound on entries."""
    place = tmp_path
    descriptor = os.open(place, os.O_RDONLY)
    made = 0
    try:
        for _ in range(1_200):
            os.mkdir("d", dir_fd=descriptor)
            made += 1
            deeper = os.open("d", os.O_RDONLY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = deeper
        assert temporary.unix_sockets([str(tmp_path)]) == ()
    finally:
        # From the bottom up: pytest's own removal would recurse.
        for _ in range(made):
            above = os.open("..", os.O_RDONLY, dir_fd=descriptor)
            os.rmdir("d", dir_fd=above)
            os.close(descriptor)
            descriptor = above
        os.close(descriptor)
