"""A range of ids for an ordinary user's user namespaces: those that subuid(5) gives, mapped by newuidmap(1)."""

from __future__ import annotations

import dataclasses
import os
import pwd
from collections.abc import Iterable, Sequence

from pytest_crate.errors import HostError, SandboxError
from pytest_crate.kernel import libc

FEATURE = "id range"
"""The doctor's row."""

_STEP = "map a range of ids"
_PROGRAMS = ("newuidmap", "newgidmap")
# The launcher's own PATH says little, and a set-user-id program is not to be looked for just anywhere.
_PATH = "/usr/bin:/bin:/usr/local/bin:/usr/sbin:/sbin:/run/wrappers/bin"
_WHOLE = 65536
"""Ids that an image may use: those of 16 bits, ``nobody``'s 65534 among them."""
_FIRST = 100000
"""Where useradd(8) begins to give ranges (login.defs(5), SUB_UID_MIN)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class IdRange:
    """Ids outside of a user namespace that are, in this order, 0, 1, 2, … in it: a user's own, then what it was given.

    :ivar uids: extents of user ids, as the first and how many.
    :ivar gids: likewise of group ids.
    """

    uids: tuple[tuple[int, int], ...]
    gids: tuple[tuple[int, int], ...]

    @property
    def name(self) -> str:
        """Tells ranges apart in a path: files that were made under one have other owners under another."""
        users, groups = ("-".join(str(first) for first, _ in extents) for extents in (self.uids, self.gids))
        return f"root-from-{users}" if users == groups else f"root-from-{users}-gid-{groups}"

    def map_into(self, pid: int) -> None:
        """Map them into the new user namespace of a process of the same user's.

        :raises HostError: it is refused; with what newuidmap(1) says.
        """
        for program, extents in zip(_PROGRAMS, (self.uids, self.gids), strict=True):
            _run(program, pid, extents)


def find_id_range(*, etc: str = "/etc", path: str = _PATH) -> IdRange:
    """Return the calling user's own ids and all that ``/etc/subuid`` and ``/etc/subgid`` give to it.

    :param etc: the directory of these files.
    :param path: where newuidmap(1) and newgidmap(1) are looked for.
    :raises HostError: there are none, too few for an image, or no program that may map them; with the remedy.
    """
    uid, gid = os.geteuid(), os.getegid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)  # the files know users by number, too
    for program in _PROGRAMS:
        if _find(program, path) is None:
            raise HostError(
                f"{program} is not installed (of uidmap, in Fedora shadow-utils): without it an ordinary user can map "
                "no id but its own",
                feature=FEATURE,
                hint="sudo apt install uidmap",
            )
    found = []
    for file, own in (("subuid", uid), ("subgid", gid)):
        text = _read(f"{etc}/{file}")
        extents = _given_to((name, str(uid)), text)
        if sum(count for _, count in extents) < _WHOLE:
            first = max([_FIRST, *(start + count for _, start, count in _entries(text))])
            ids = f"{first}-{first + _WHOLE - 1}"
            raise HostError(
                f"/etc/{file} gives the user {name} {sum(count for _, count in extents)} ids; "
                f"{_WHOLE} are needed for an image's users",
                feature=FEATURE,
                hint=f"sudo usermod --add-{file}s {ids} {name}",
            )
        found.append(((own, 1), *extents))
    return IdRange(uids=found[0], gids=found[1])


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _entries(text: str) -> Iterable[tuple[str, int, int]]:
    """Yield the entries of a subuid(5) file; a line of another form is none, as for newuidmap(1)."""
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) == 3 and all(field.isascii() and field.isdecimal() for field in fields[1:]):
            yield fields[0], int(fields[1]), int(fields[2])


def _given_to(names: tuple[str, str], text: str) -> tuple[tuple[int, int], ...]:
    # The same line twice would be an overlapping map, which the kernel refuses (user_namespaces(7)).
    return tuple(dict.fromkeys((start, count) for name, start, count in _entries(text) if name in names and count))


def _run(program: str, pid: int, extents: Sequence[tuple[int, int]]) -> None:
    arguments: list[str] = []
    inside = 0
    for first, count in extents:
        arguments += [str(inside), str(first), str(count)]
        inside += count
    where = _find(program, _PATH)
    if where is None:
        raise SandboxError(_STEP, syscall="execve", path=program, detail="it is gone")
    said, status = _output_of([where, str(pid), *arguments])
    if status:
        said = said.strip() or f"it ended with {status}"
        raise HostError(f"{program} refuses to map {' '.join(arguments)}: {said}", feature=FEATURE, hint=_hint(said))


def _output_of(argv: Sequence[str]) -> tuple[str, int]:
    """Run a program; return what it says on standard error, and its exit status."""
    # Not by subprocess, whose import would cost the launcher's start more than the rest.
    reading, writing = os.pipe2(os.O_CLOEXEC)
    with os.fdopen(reading, "rb") as stream:
        with libc.os_step(_STEP, "posix_spawn", argv[0]):
            try:
                pid = os.posix_spawn(
                    argv[0],
                    list(argv),
                    {"LC_ALL": "C.UTF-8"},
                    file_actions=[
                        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                        (os.POSIX_SPAWN_DUP2, writing, 2),
                    ],
                )
            finally:
                os.close(writing)
        said = stream.read().decode(errors="replace")
    with libc.os_step(_STEP, "waitpid", argv[0]):
        return said, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _find(program: str, path: str) -> str | None:
    places = (os.path.join(directory, program) for directory in path.split(":"))
    return next((place for place in places if os.path.isfile(place) and os.access(place, os.X_OK)), None)


def _hint(said: str) -> str:
    """Return what mends a refusal of newuidmap(1), as far as that tells."""
    if "Operation not permitted" in said:
        # A nosuid mount, no_new_privs, or a package that lost the bit; with a filesystem's capability it is the same.
        return "sudo chmod u+s /usr/bin/newuidmap /usr/bin/newgidmap; not in a process with no_new_privs"
    return ""
