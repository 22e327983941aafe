"""What a run has put into the temporary directories."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Self

import pytest

from pytest_crate.sandbox import temporary


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that stands for /tmp."""
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr(temporary, "TEMPORARY", {str(place): 0o1777, str(place / "missing"): 0o755})
    return place


@pytest.fixture
def entries(directory: Path) -> Iterator[temporary.TemporaryEntries]:
    """What listens from here on."""
    entries = temporary.TemporaryEntries()
    yield entries
    entries.close()


def nothing(paths: Collection[str]) -> Collection[str]:
    """As if no process of the run's held anything."""
    return ()


def everything(paths: Collection[str]) -> Collection[str]:
    """As if processes of the run's held all that has appeared."""
    return tuple(paths)


def other(*command: str | Path) -> None:
    """Have another program do something."""
    subprocess.run(command, check=True)


def test_only_what_is_made_between_ignore_and_keep_is_the_runs(
    directory: Path, entries: temporary.TemporaryEntries
) -> None:
    """What this process makes before and after is not the run's; nor is what other programs make in between."""
    (directory / "early").mkdir()
    entries.ignore()
    (directory / "ours").mkdir()
    other("mkdir", directory / "others")
    entries.keep(nothing)
    (directory / "after").mkdir()
    assert entries.kept() == (str(directory / "ours"),)


def test_an_entry_that_is_gone_is_not_kept(directory: Path, entries: temporary.TemporaryEntries) -> None:
    """A fixture may have removed what it made; what another program makes there then is that one's."""
    (directory / "ours").mkdir()
    entries.keep(nothing)
    assert entries.kept() == (str(directory / "ours"),)
    (directory / "ours").rename(directory.parent / "aside")
    assert entries.kept() == ()
    other("mkdir", directory / "ours")
    assert entries.kept() == ()


def test_an_entry_made_again_is_the_runs_again(directory: Path, entries: temporary.TemporaryEntries) -> None:
    """A file that this process replaces, as one does that is written as a whole."""
    (directory / "state").write_text("one")
    entries.keep(nothing)
    (directory / "new").write_text("two")
    (directory / "new").replace(directory / "state")
    assert entries.kept() == (str(directory / "state"),)
    entries.ignore()
    assert entries.kept() == (str(directory / "state"),)


def test_what_was_there_before_is_not_made(directory: Path) -> None:
    """Opened to be made if it isn't there, as a lock is; made in vain; given away: it is still another program's."""
    other("touch", directory / "lock")
    other("mkdir", directory / "place")
    entries = temporary.TemporaryEntries()
    os.utime(directory / "lock", (1, 1))
    (directory / "lock").open("w").close()
    (directory / "place").mkdir(exist_ok=True)
    with pytest.raises(IsADirectoryError):
        (directory / "lock").replace(directory / "place")
    entries.keep(everything)
    entries.close()
    assert entries.kept() == ()


def test_only_what_is_held_of_the_rest(directory: Path, entries: temporary.TemporaryEntries) -> None:
    """What this process hasn't made is the run's if a process of the run's holds it; only of such it is asked."""
    asked: list[str] = []

    def held(paths: Collection[str]) -> Collection[str]:
        asked.extend(paths)
        return [path for path in paths if path.endswith("held")]

    (directory / "made").mkdir()
    entries.keep(held)
    assert not asked
    other("mkdir", directory / "held", directory / "not")
    entries.keep(held)
    assert sorted(asked) == [str(directory / "held"), str(directory / "not")]
    assert entries.kept() == (str(directory / "made"), str(directory / "held"))


@pytest.mark.needs("root")
def test_another_users_are_never_the_runs(directory: Path, entries: temporary.TemporaryEntries) -> None:
    """Not even if they are held, or were made here and a program has given them away; what this process gives away
    itself is."""
    for name in ("theirs", "taken", "given"):
        (directory / name).mkdir()
    other("chown", "4321", directory / "taken")
    os.chown(directory / "given", 4321, 4321)
    other("mkdir", directory / "held")
    other("chown", "4321", directory / "held")
    (directory / "theirs").rmdir()
    other("mkdir", directory / "theirs")
    other("chown", "4321", directory / "theirs")
    entries.keep(everything)
    assert entries.kept() == (str(directory / "given"),)


def test_new_entries_of_a_directory_that_was_there_are_found(directory: Path) -> None:
    """As an X server's socket in /tmp/.X11-unix, which the system had made."""
    shared = directory / ".X11-unix"
    shared.mkdir()
    for name in ("X0", "X1"):
        (shared / name).touch()
        os.utime(shared / name, (1, 1))
    os.utime(shared, (1, 1))
    entries = temporary.TemporaryEntries()
    (shared / "X99").touch()
    other("touch", shared / "X100")
    entries.keep(nothing)
    assert entries.kept() == (str(shared / "X99"),)
    other("touch", shared / "X101")
    entries.keep(everything)
    entries.close()
    assert entries.kept() == (str(shared / "X99"), str(shared / "X101"))


def test_what_may_not_be_looked_at_is_in_nobodys_way(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As what is in a directory that others may list only, or a mount of FUSE of another user's, or a dead one."""

    class Closed:
        """What os.scandir() finds."""

        def __init__(self, name: str, number: int) -> None:
            self.path = str(directory / name)
            self.number = number

        def stat(self, *, follow_symlinks: bool) -> os.stat_result:
            """Refuse."""
            raise OSError(self.number, os.strerror(self.number), self.path)

    class Listing(list[Closed | os.DirEntry[str]]):
        """What os.scandir() returns."""

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    scandir = os.scandir
    closed = [Closed("closed", errno.EACCES), Closed("dead", errno.ENOTCONN), Closed("gone", errno.ENOENT)]
    monkeypatch.setattr(os, "scandir", lambda path: Listing([*closed, *scandir(path)]))
    entries = temporary.TemporaryEntries()
    (directory / "own").mkdir()
    other("touch", directory / "others")
    entries.keep(everything)
    entries.close()
    assert entries.kept() == (str(directory / "own"), str(directory / "others"))


def test_deeper_entries_are_not_the_runs(directory: Path) -> None:
    """What is made further below a directory that was there is no more shown than that is."""
    (directory / "a" / "b").mkdir(parents=True)
    entries = temporary.TemporaryEntries()
    (directory / "a" / "b" / "c").mkdir()
    entries.keep(nothing)
    entries.close()
    assert entries.kept() == ()


def test_sockets_of_entries(
    directory: Path, entries: temporary.TemporaryEntries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what this process has made, all; of what is held, those that the run's processes have bound: these are
    asked for once."""
    monkeypatch.chdir(directory)
    bind = "import os, socket, sys; os.mkdir(sys.argv[1]); [socket.socket(1).bind(each) for each in sys.argv[2:]]"
    (directory / "made").mkdir()
    other(sys.executable, "-c", bind, "held", "held/ours", "held/others", "made/any")
    entries.keep(everything)
    asked = []

    def bound() -> Collection[str]:
        asked.append(True)
        return [str(directory / "held" / "ours")]

    for _ in range(2):
        found = entries.sockets(entries.kept(), bound)
        assert found == (str(directory / "made" / "any"), str(directory / "held" / "ours"))
    assert len(asked) == 1


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
