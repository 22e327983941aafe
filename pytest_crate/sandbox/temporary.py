"""The temporary directories: which are private in a crate, and what this run has put into them."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping

TEMPORARY: Mapping[str, int] = {"/tmp": 0o1777, "/var/tmp": 0o1777, "/run": 0o755}
"""Directories that are private in a crate on the host's root, with their modes."""

_MAX_SOCKET_SEARCH = 2_000  # directory entries looked at below one entry kept


class TemporaryEntries:
    """Remembers what the temporary directories held, to tell later what this run has put there."""

    def __init__(self) -> None:
        self._before = {directory: dict(_entries(directory)) for directory in TEMPORARY}

    def new(self) -> tuple[str, ...]:
        """Return the paths of the user's own entries that have appeared since."""
        found: list[str] = []
        for directory, before in self._before.items():
            for path, (inode, changed) in _entries(directory):
                if path not in before or before[path][0] != inode:
                    found.append(path)
                elif before[path][1] != changed and not os.path.islink(path):
                    # A directory that was there before, such as /tmp/.X11-unix, has got new entries.
                    found += (child for child, (_, made) in _entries(path) if made > before[path][1])
        return tuple(found)


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
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:
            continue
        if stat.S_ISSOCK(mode):
            found.append(path)
        elif stat.S_ISDIR(mode):
            seen = 0
            for directory, directories, files in os.walk(path):
                seen += len(directories) + len(files)
                if seen > _MAX_SOCKET_SEARCH:
                    break
                for name in files:
                    place = os.path.join(directory, name)
                    with contextlib.suppress(FileNotFoundError):
                        if stat.S_ISSOCK(os.lstat(place).st_mode):
                            found.append(place)
    return tuple(found)
