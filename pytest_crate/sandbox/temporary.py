"""The temporary directories: which are private in a crate, and what this run has put into them."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping

SHARED_MEMORY = "/dev/shm"
TEMPORARY: Mapping[str, int] = {"/tmp": 0o1777, "/var/tmp": 0o1777, "/run": 0o755, SHARED_MEMORY: 0o1777}
"""Directories that are private in a crate on the host's root, with their modes."""


def temporary_directories() -> dict[str, int]:
    """Return the directories by their real paths (``/tmp`` may be a symlink), with their modes."""
    return {os.path.realpath(path): mode for path, mode in TEMPORARY.items()}


_MAX_SOCKET_SEARCH = 2_000  # directory entries looked at below one entry kept


_Listing = dict[str, tuple[int, int]]


class TemporaryEntries:
    """Remembers what this run has put into the temporary directories, and nothing that other programs have.

    What appears while the run's own code is at work, such as a wider fixture's set-up, is the run's:
    :meth:`ignore` before, :meth:`keep` after it.
    """

    def __init__(self) -> None:
        self._before = _list_all()
        self._kept: dict[str, None] = {}

    def ignore(self) -> None:
        """Let what has appeared so far be others'."""
        self._before = _list_all()

    def keep(self) -> None:
        """Let what has appeared since the last call be this run's."""
        now = _list_all()
        for directory, entries in now.items():
            self._kept.update(dict.fromkeys(_appeared(self._before[directory], entries)))
        self._before = now

    def kept(self) -> tuple[str, ...]:
        """Return the paths of the run's own entries that still exist."""
        return tuple(path for path in self._kept if os.path.lexists(path))


def _list_all() -> dict[str, _Listing]:
    return {directory: dict(_entries(directory)) for directory in temporary_directories()}


def _appeared(before: _Listing, now: _Listing) -> Iterator[str]:
    for path, (inode, changed) in now.items():
        if path not in before or before[path][0] != inode:
            yield path
        elif before[path][1] != changed and not os.path.islink(path):
            # A directory that was there before, such as /tmp/.X11-unix, has got new entries.
            yield from (child for child, (_, made) in _entries(path) if made > before[path][1])


def _entries(directory: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield path, inode and time of the last change of each entry that the user owns."""
    user = os.geteuid()
    try:
        listing = os.scandir(directory)
    except OSError:  # not there, not a directory, or not the user's to read: nothing of this run's
        return
    with listing:
        for entry in listing:
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if user in (0, status.st_uid):
                yield entry.path, (status.st_ino, status.st_mtime_ns)


def unix_sockets(paths: Iterable[str]) -> tuple[str, ...]:
    """Return the unix sockets among and below the paths; only so many entries are looked at."""
    found: list[str] = []
    for path in paths:
        pending = [path]
        seen = 0
        while pending and seen < _MAX_SOCKET_SEARCH:
            place = pending.pop()
            seen += 1
            # Other programs' entries may go, or be closed to the user, at any moment.
            with contextlib.suppress(OSError):
                mode = os.lstat(place).st_mode
                if stat.S_ISSOCK(mode):
                    found.append(place)
                elif stat.S_ISDIR(mode):
                    with os.scandir(place) as entries:
                        pending += [entry.path for entry in entries if not entry.is_symlink() and not entry.is_file()]
    return tuple(found)
