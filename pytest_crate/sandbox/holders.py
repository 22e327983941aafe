"""What this process, and those that it has started, hold in the temporary directories."""

from __future__ import annotations

import collections
import contextlib
import os
from collections.abc import Collection, Iterator

import psutil


def held(paths: Collection[str]) -> frozenset[str]:
    """Return those of the paths that this process or a descendant holds: they, or what is directly below them, are
    open, mapped, a working directory, or a unix socket that it has bound.

    :param paths: real ones.
    """
    found: set[str] = set()
    for process in _processes():
        for place in (*_open_files(process, paths), *_mapped_files(process, paths)):
            found.update(_holders(place, paths))
    for place in bound_sockets():
        found.update(_holders(place, paths))
    return frozenset(found)


def bound_sockets() -> frozenset[str]:
    """Return the real paths of the unix sockets that this process and its descendants have bound (proc_net(5))."""
    names: dict[str, str] = {}
    with contextlib.suppress(FileNotFoundError), open("/proc/self/net/unix", "rb") as table:
        # A name is written as it is: after a line break in one, be it a stranger's, may stand anything. Where a socket
        # has got another name by that, which of the two is its own is not known.
        lines = [line.split(maxsplit=7) for line in table.read().split(b"\n")[1:]]
        counts = collections.Counter(fields[6] for fields in lines if len(fields) > 6)
        for fields in lines:
            if len(fields) > 7 and counts[fields[6]] == 1 and not fields[7].startswith(b"@"):
                names[os.fsdecode(b"socket:[%b]" % fields[6])] = os.fsdecode(fields[7])
    found: set[str] = set()
    for process in _processes() if names else ():
        with contextlib.suppress(OSError):
            directory = os.readlink(f"{process}/cwd")
            for _, target in _links(process):
                if target in names:
                    # A socket's name is as it was bound: often relative, for it is short.
                    parent, base = os.path.split(os.path.join(directory, names[target]))
                    found.add(os.path.join(os.path.realpath(parent), base))
    return frozenset(found)


def _processes() -> Iterator[str]:
    """Yield the /proc directories of this process and its descendants, but for those with mounts of their own.

    What these have open bears names of their own root, and crates' processes are among them.
    """
    own = os.stat("/proc/self/ns/mnt")
    for pid in (os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))):
        # It may have ended, or be closed to the user.
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(f"/proc/{pid}/ns/mnt"), own):
                yield f"/proc/{pid}"


def _links(process: str) -> Iterator[tuple[str, str]]:
    """Yield the links to what a process has open and to its working directory, with where they lead."""
    names = [f"{process}/cwd"]
    with contextlib.suppress(OSError):
        names += [f"{process}/fd/{number}" for number in os.listdir(f"{process}/fd")]
    for name in names:
        with contextlib.suppress(OSError):
            yield name, os.readlink(name)


def _open_files(process: str, paths: Collection[str]) -> Iterator[str]:
    for link, target in _links(process):
        if any(_holders(target, paths)):
            # What has been removed, and made again by somebody else, has the same name.
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(link), os.lstat(target)):
                    yield target


def _mapped_files(process: str, paths: Collection[str]) -> Iterator[str]:
    with (
        contextlib.suppress(OSError),
        open(f"{process}/maps", encoding="utf-8", errors="surrogateescape", newline="\n") as maps,
    ):
        for line in maps:
            fields = line.rstrip("\n").split(maxsplit=5)
            if len(fields) > 5 and any(_holders(fields[5], paths)):
                with contextlib.suppress(OSError):
                    if os.lstat(fields[5]).st_ino == int(fields[4]):
                        yield fields[5]


def _holders(place: str, paths: Collection[str]) -> Iterator[str]:
    """Yield those of the paths that a place is, or is directly below of."""
    yield from (path for path in (place, os.path.dirname(place)) if path in paths)
