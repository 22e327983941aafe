"""pytest's cache, to which bodies write, too: what they put in the place of its values is removed before it is met."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_crate.sandbox import wire

_VALUES = "v"  # the directory of the values, in the cache's
# Of directories in one another. A body can make so many that who walks through them runs out of stack, or of
# descriptors; a value is as deep as its name has slashes, and none has that many.
_MOST_LEVELS = 64
# A name with slashes makes some. A body makes tens of thousands in a second, which every walk would meet again.
_MOST_DIRECTORIES = 4096
# Every test's end looks at each.
_MOST_FILES = 1 << 14
_NAME_BYTES, _PATH_BYTES = 256, 2048  # of a file's name (limits.h), and of the part of a path that is in an id
# A file system's clock may stand still for as long (inode(7): timestamps are of the last tick).
_CLOCK_NSEC = 100_000_000
# Of a value. pytest takes it whole into its memory, and as objects several times over; the ids of half a million tests
# have room.
_MOST_BYTES = 64 << 20


class SharedCache:
    """The values in a cache: pytest opens them by their names, follows a link, waits for a pipe, reads it all."""

    def __init__(self, directory: str, root: Path | None = None) -> None:
        """
        :param root: the run's root directory, if pytest is yet to look there for what failed last.
        """
        self._values = os.path.join(directory, _VALUES)
        self._own = {os.path.join(self._values, *name.split("/")): is_it for name, is_it in _OWN.items()}
        if root is not None:
            failed = os.path.join(self._values, "cache", "lastfailed")
            self._own[failed] = lambda value: _are_failed(value) and _can_be_looked_for(value, root)
        self._known: dict[str, int] = {}
        self._files: list[str] = []

    def clean(self) -> None:
        """Where anything has changed since, remove from the values what pytest would stumble over.

        That is what is no file or directory, or too large, what is beyond a number of files or directories, and a value
        of pytest's own that isn't as pytest writes it: pytest takes those apart without looking.
        """
        if (
            not self._known
            or any(_changed(path) != when for path, when in self._known.items())
            or any(_size(path) > _MOST_BYTES for path in self._files)
        ):
            self._files = []
            self._known = dict(self._cleaned())

    def _cleaned(self) -> Iterator[tuple[str, int]]:
        # What is not there any more, another worker has removed, or a body.
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISDIR(os.lstat(self._values).st_mode):
                os.unlink(self._values)
            # Never by a path: a body of another worker may put a link there meanwhile.
            room, room_for_files = _MOST_DIRECTORIES, _MOST_FILES
            for path, directories, files, place in os.fwalk(self._values):
                _remove(directories[room:], place)
                del directories[room:]
                room -= len(directories)
                for name in files[room_for_files:]:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=place)
                del files[room_for_files:]
                room_for_files -= len(files)
                for name in (*directories, *files):
                    with contextlib.suppress(FileNotFoundError):
                        status = os.stat(name, dir_fd=place, follow_symlinks=False)
                        if stat.S_ISDIR(status.st_mode):
                            continue
                        file = os.path.join(path, name)
                        if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_BYTES:
                            os.unlink(name, dir_fd=place)
                            continue
                        self._files.append(file)
                        if file in self._own:
                            if not _is_value(place, name, self._own[file]):
                                os.unlink(name, dir_fd=place)
                            yield file, _settled(status.st_ctime_ns)
                if path.count(os.sep) - self._values.count(os.sep) >= _MOST_LEVELS:
                    directories.clear()
                yield path, _settled(os.fstat(place).st_ctime_ns)


def _remove(names: list[str], place: int) -> None:
    if names:
        from pytest_crate.images.tree import remove_tree  # rarely: every run imports this module

        for name in names:
            remove_tree(place, os.fsencode(name))


def _settled(when_nsec: int) -> int:
    """Return a time of change; 0 if the next change may bear the same one."""
    return when_nsec if time.time_ns() - when_nsec > _CLOCK_NSEC else 0


def _is_value(place: int, name: str, is_it: Callable[[Any], bool]) -> bool:
    """Whether a file in a directory holds such a value, in JSON."""
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=place)
    try:
        with open(descriptor, "rb") as file:
            data = file.read(min(os.fstat(descriptor).st_size, _MOST_BYTES))
        # One character beyond the first plane makes a text four times as large (PEP 393).
        cost = wire.cost_bytes(data) * (1 if data.isascii() else 4)
        return cost <= _MOST_BYTES and is_it(json.loads(data.decode()))
    except (ValueError, RecursionError):
        return False


def _are_failed(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(failed, bool) for failed in value.values()) and _are_ids([*value])


def _can_be_looked_for(ids: Iterable[str], root: Path) -> bool:
    """Whether pytest can look for the files of ids, as it does with --last-failed.

    It is not ready for one in a directory that is shut.
    """
    try:
        for path in {name.partition("::")[0] for name in ids}:
            (root / path).exists()
    except OSError:
        return False
    return True


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and _is_id(name) for name in value)


def _is_id(name: str) -> bool:
    path = name.encode().partition(b"::")[0]
    # With --last-failed pytest looks for the file, which must not fail by its name.
    return len(path) < _NAME_BYTES or (len(path) < _PATH_BYTES and max(map(len, path.split(b"/"))) < _NAME_BYTES)


def _is_step(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    failed, when = value.get("last_failed"), value.get("last_cache_date_str")
    return (
        (failed is None or _are_ids([failed]))
        # pytest takes it from a time without a zone.
        and (isinstance(when, str) and dt.datetime.fromisoformat(when).tzinfo is None)
    )


# pytest's own values, of which it writes (8.4 to 9.2): {id: True}, [id], and where --stepwise stopped.
_OWN: dict[str, Callable[[Any], bool]] = {
    "cache/lastfailed": _are_failed,
    "cache/nodeids": _are_ids,
    "cache/stepwise": _is_step,
}


def _changed(path: str) -> int:
    try:
        return os.lstat(path).st_ctime_ns
    except OSError:  # it is gone, or its name is too long for anybody to open it
        return 0


def _size(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0


def clean_at_start(config: pytest.Config) -> None:
    """Remove what a run before may have left, as one does that was killed, before pytest reads it."""
    try:
        directory = str(config.getini("cache_dir"))
    except ValueError:  # -p no:cacheprovider
        return
    # As pytest's documentation has it of cache_dir.
    directory = os.path.expanduser(os.path.expandvars(directory))
    SharedCache(os.path.join(config.rootpath, directory), config.rootpath).clean()
