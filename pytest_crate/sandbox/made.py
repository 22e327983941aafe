"""What this process itself puts into the temporary directories, from the audit events of its own calls."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

Identity = tuple[int, int]
"""A file's device and inode."""

_MOST = 4_096  # paths noted at a time

# The event, and where its arguments have the path that is about to be there, and the directory that this is relative
# to (https://docs.python.org/3/library/audit_events.html). tempfile and shutil make what they make by these.
_PATHS: dict[str, tuple[int, int | None]] = {
    "open": (0, None),
    "os.link": (1, 3),
    "os.mkdir": (0, 2),
    "os.rename": (1, 3),
    "os.symlink": (1, 2),
    "socket.bind": (1, None),
    "sqlite3.connect": (0, None),
}
_GIVEN = "os.chown"

# Of the process: an audit hook is the process's, and can't be taken out again (sys.addaudithook). So there is one for
# all, which looks at no event while nobody listens.
_listeners: list[Made] = []
_events: set[str] = set()
_hooks: list[object] = []


def identity(status: os.stat_result) -> Identity:
    """Return what tells a file from every other that is there at the time."""
    return status.st_dev, status.st_ino


def deafen() -> None:
    """Listen to nothing more in this process, as in a fork that makes nothing for others."""
    _listeners.clear()
    _events.clear()


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _events:
        # What a hook raises is raised by the call that it is told of; that call is the user's.
        with contextlib.suppress(Exception):
            for made in _listeners:
                made.note(event, arguments)


class Made:
    """Notes which entries of some directories, and of directories in them, this process makes."""

    def __init__(self, directories: Iterable[str]) -> None:
        """
        :param directories: by their real paths; those that aren't there are left out.
        """
        self._places: dict[Identity, str] = {}
        for directory in directories:
            with contextlib.suppress(OSError):
                self._places[identity(os.stat(directory))] = directory
        self._user = os.geteuid()
        # What was there under the name before: only a rename replaces something.
        self._noted: dict[str, Identity | None] = {}
        self._given: dict[Identity, int] = {}

    def listen(self) -> None:
        """Begin to note; it goes on until :meth:`close`."""
        if not _hooks:
            _hooks.append(_hook)
            sys.addaudithook(_hook)
        _listeners.append(self)
        _events.update(_PATHS, {_GIVEN})

    def close(self) -> None:
        """Note nothing more."""
        if self in _listeners:
            _listeners.remove(self)
        if not _listeners:
            _events.clear()

    def forget(self) -> None:
        """Let what has been made so far be none of these entries."""
        self._noted.clear()

    def found(self) -> Iterator[str]:
        """Yield the entries that this process has made since, and that are there."""
        yield from (path for path in list(self._noted) if self.has_made(path))

    def has_made(self, path: str) -> bool:
        """Return whether this process has made what is at a path now."""
        if path not in self._noted:
            return False
        try:
            status = os.lstat(path)
        except OSError:  # the call failed, or somebody has removed it
            return False
        return self.is_own(status) and identity(status) != self._noted[path]

    def is_own(self, status: os.stat_result) -> bool:
        """Return whether a file is the user's, or this process has given it to who owns it now."""
        return status.st_uid in (self._user, self._given.get(identity(status), self._user))

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note what an audit event tells; it comes before its call, which may still fail."""
        if event == _GIVEN:
            path, user = arguments[:2]
            if len(self._given) < _MOST and user not in (-1, self._user):
                relative_to = None if isinstance(path, int) or arguments[3] < 0 else arguments[3]
                self._given[identity(os.stat(path, dir_fd=relative_to))] = user
            return
        if event == "open" and not _creates(*arguments[1:3]):
            return
        at, relative_to = _PATHS[event]
        path = arguments[at]
        if isinstance(path, os.PathLike):
            path = os.fspath(path)
        # An open file has its number, and a socket of the internet a tuple.
        if isinstance(path, str | bytes):
            directory = -1 if relative_to is None else arguments[relative_to]
            self._note_path(os.fsdecode(path), directory, replaces=event == "os.rename")

    def _note_path(self, path: str, directory: int, *, replaces: bool) -> None:
        if directory >= 0:
            path = os.path.join(f"/proc/self/fd/{directory}", path)
        parent, name = os.path.split(path.rstrip("/"))
        parent = parent or "."
        if name in ("", ".", "..") or len(self._noted) >= _MOST:
            return
        # By what directories are, and not by their names: two calls, and no way leads around them.
        place = self._places.get(identity(os.stat(parent)))
        if place is None:
            if identity(os.stat(f"{parent}/..")) not in self._places:
                return
            place = os.path.realpath(parent)
            if self.has_made(place):  # and is shown with all that is in it, however much that is
                return
        path = f"{place}/{name}"
        try:
            before = identity(os.lstat(path))
        except FileNotFoundError:
            before = None
        if before is None or replaces:
            self._noted.setdefault(path, before)


def _creates(mode: str | None, flags: int) -> bool:
    return bool(flags & os.O_CREAT or (mode and mode[0] in "wax"))
