"""pytest's cache, to which bodies write, too: what they put in the place of its values is removed before it is met."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator

import pytest

_VALUES = "v"  # the directory of the values, in the cache's
# Of directories in one another. A body can make so many that who walks through them runs out of stack, or of
# descriptors; a value is as deep as its name has slashes, and none has that many.
_MOST_LEVELS = 64
# A file system's clock may stand still for as long (inode(7): timestamps are of the last tick).
_CLOCK_NSEC = 100_000_000
# Of a value. pytest takes it whole into its memory, and as objects several times over; the ids of half a million tests
# have room.
_MOST_BYTES = 64 << 20


class SharedCache:
    """The values in a cache: pytest opens them by their names, follows a link, waits for a pipe, reads it all."""

    def __init__(self, directory: str) -> None:
        self._values = os.path.join(directory, _VALUES)
        self._known: dict[str, int] = {}
        self._files: list[str] = []

    def clean(self) -> None:
        """Remove from the values what is no file or directory, or too large, where anything has changed since."""
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
            for path, directories, files, place in os.fwalk(self._values):
                for name in (*directories, *files):
                    with contextlib.suppress(FileNotFoundError):
                        status = os.stat(name, dir_fd=place, follow_symlinks=False)
                        if stat.S_ISDIR(status.st_mode):
                            continue
                        if stat.S_ISREG(status.st_mode) and status.st_size <= _MOST_BYTES:
                            self._files.append(os.path.join(path, name))
                        else:
                            os.unlink(name, dir_fd=place)
                if path.count(os.sep) - self._values.count(os.sep) >= _MOST_LEVELS:
                    directories.clear()
                when = os.fstat(place).st_ctime_ns
                # Of what has just changed, the next change may bear the same time.
                yield path, when if time.time_ns() - when > _CLOCK_NSEC else 0


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
    SharedCache(os.path.join(config.rootpath, directory)).clean()
