"""The temporary directories: which are private in a crate, and what this run has put into them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from pytest_crate.sandbox.made import Identity, Made, identity

SHARED_MEMORY = "/dev/shm"
TEMPORARY: Mapping[str, int] = {"/tmp": 0o1777, "/var/tmp": 0o1777, "/run": 0o755, SHARED_MEMORY: 0o1777}
"""Directories that are private in a crate on the host's root, with their modes."""


def temporary_directories() -> dict[str, int]:
    """Return the directories by their real paths (``/tmp`` may be a symlink), with their modes."""
    return {os.path.realpath(path): mode for path, mode in TEMPORARY.items()}


_MAX_SOCKET_SEARCH = 2_000  # directory entries looked at below one entry kept


_Listing = dict[str, os.stat_result]


class TemporaryEntries:
    """Remembers what this run has put into the temporary directories, and nothing that other programs have.

    That is what this process makes, or a process that it has started holds, while the run's own code is at work, such
    as a wider fixture's set-up: :meth:`ignore` before, :meth:`keep` after it.
    """

    def __init__(self) -> None:
        self._made = Made(temporary_directories())
        self._made.listen()
        self._before = _list_all()
        self._kept: dict[str, _Kept] = {}
        self._sockets: dict[tuple[str, Identity], bool] = {}

    def ignore(self) -> None:
        """Let what has appeared so far be others'."""
        self._made.forget()
        self._before = _list_all()

    def keep(self, held: Callable[[Collection[str]], Collection[str]]) -> None:
        """Let what has appeared since the last call be this run's, as far as that is proved.

        :param held: which of some paths this process, or one that it has started, holds; asked if something of the
            user's has appeared that this process hasn't made.
        """
        made = list(self._made.found())
        self._keep(made, made=True)
        now = _list_all()
        others = [path for path in self._appeared(now) if path not in made and os.path.dirname(path) not in made]
        if others:
            self._keep(held(others), made=False)
        self._made.forget()
        self._before = now

    def kept(self) -> tuple[str, ...]:
        """Return the paths of the run's own entries that are still there."""
        return tuple(path for path in list(self._kept) if self._is_kept(path))

    def sockets(self, kept: Iterable[str], bound: Callable[[], Collection[str]]) -> tuple[str, ...]:
        """Return the unix sockets among and below entries kept.

        In what this process has made, those of any server: it has been told the place. In the rest, those that this
        process, or one that it has started, has bound.

        :param bound: which they have; asked for sockets that haven't been seen before.
        """
        found: list[str] = []
        for entry in kept:
            sockets = unix_sockets([entry])
            if not self._kept[entry].made:
                sockets = self._bound_among(sockets, bound)
            found += sockets
        return tuple(dict.fromkeys(found))

    def close(self) -> None:
        """Look at nothing more."""
        self._made.close()

    def _keep(self, paths: Iterable[str], *, made: bool) -> None:
        for path in paths:
            with contextlib.suppress(FileNotFoundError):  # it has gone already
                self._kept[path] = _Kept(identity=identity(os.lstat(path)), made=made)

    def _is_kept(self, path: str) -> bool:
        try:
            status = os.lstat(path)
        except OSError:
            return False
        if self._made.has_made(path):  # anew
            self._kept[path] = _Kept(identity=identity(status), made=True)
        return identity(status) == self._kept[path].identity and self._made.is_own(status)

    def _bound_among(self, sockets: Iterable[str], bound: Callable[[], Collection[str]]) -> tuple[str, ...]:
        seen: dict[str, tuple[str, Identity]] = {}
        for path in sockets:
            with contextlib.suppress(OSError):
                seen[path] = path, identity(os.lstat(path))
        if not self._sockets.keys() >= set(seen.values()):
            ours = bound()
            self._sockets.update((key, path in ours) for path, key in seen.items() if key not in self._sockets)
        return tuple(path for path, key in seen.items() if self._sockets[key])

    def _appeared(self, now: Mapping[str, _Listing]) -> Iterator[str]:
        """Yield the paths of the user's own entries that weren't there before."""
        user = os.geteuid()
        for directory, entries in now.items():
            for path, status in _new_entries(self._before[directory], entries):
                if status.st_uid == user:
                    yield path


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    identity: Identity
    made: bool


def _list_all() -> dict[str, _Listing]:
    return {directory: dict(_entries(directory)) for directory in temporary_directories()}


def _new_entries(before: _Listing, now: _Listing) -> Iterator[tuple[str, os.stat_result]]:
    for path, status in now.items():
        if path not in before or before[path].st_ino != status.st_ino:
            yield path, status
        elif before[path].st_mtime_ns != status.st_mtime_ns and stat.S_ISDIR(status.st_mode):
            # A directory that was there before, such as /tmp/.X11-unix, has got new entries.
            for child, made in _entries(path):
                if made.st_mtime_ns > before[path].st_mtime_ns:
                    yield child, made


def _entries(directory: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the path and status of each entry."""
    try:
        listing = os.scandir(directory)
    except OSError:  # not there, not a directory, or not the user's to read: nothing of this run's
        return
    with listing:
        for entry in listing:
            # It has gone already, or others may list its directory and not look at what is in there, or it is a mount
            # of FUSE, which is its user's alone (mount.fuse(8), allow_other) or whose server has died.
            with contextlib.suppress(OSError):
                yield entry.path, entry.stat(follow_symlinks=False)


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
