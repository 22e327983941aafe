"""Who a payload is: id maps of its user namespace, and the user it becomes."""

from __future__ import annotations

import dataclasses
import errno
import struct
from collections.abc import Iterator

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import libc

# (uid_t)-1 means "no change" to setresuid(2), so that it is nobody's id.
_MAX_ID = (1 << 32) - 2
_ALL_IDS = f"0 0 {_MAX_ID + 1}\n"

_STEP_MAPS = "map the ids of the user namespace"
_STEP_FIND = "find the crate's user"
_STEP_BECOME = "become the crate's user"
_NOT_MAPPED = (
    "its user namespace has no such id: an ordinary user's crate has that user's own only, or, of an image with "
    "crate_id_map = range (--id-map range), those that subuid(5) gives"
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A user inside a crate.

    :ivar groups: the groups for setgroups(2), the primary one among them.
    :ivar home: the home directory; ``/`` for a user without an entry, as in Docker.
    :ivar name: the login name; the number in digits for a user without an entry.
    """

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    name: str


def single_id_map(uid: int, gid: int, inside_uid: int = 0, inside_gid: int = 0) -> tuple[str, str]:
    """Return the texts of uid_map and gid_map that show one outside user as one inside, by default as root.

    It is all that an unprivileged process may write, and only with setgroups denied (user_namespaces(7)).
    """
    return f"{inside_uid} {uid} 1\n", f"{inside_gid} {gid} 1\n"


def whole_id_map(own_uid_map: str = _ALL_IDS, own_gid_map: str = _ALL_IDS) -> tuple[str, str]:
    """Return the texts of uid_map and gid_map that map every id to itself.

    Files stay reachable that way, while power over the host is gone. Writing them takes CAP_SETUID and
    CAP_SETGID, and for id 0 CAP_SETFCAP (kernel 5.12), in the parent user namespace.

    :param own_uid_map: ``/proc/self/uid_map`` of the process that writes. Where it is a user namespace
        itself, as in a rootless container, ids that it does not know can't be mapped.
    :param own_gid_map: likewise ``/proc/self/gid_map``.
    """
    return _identity(own_uid_map), _identity(own_gid_map)


def _identity(own_map: str) -> str:
    extents = (line.split() for line in own_map.splitlines())
    return "".join(f"{inside} {inside} {count}\n" for inside, _outside, count in extents)


def write_id_maps(pid: int | str, uid_map: str, gid_map: str, *, deny_setgroups: bool, proc: str = "/proc") -> None:
    """Write the id maps of a process's new user namespace. It can be done once.

    :param pid: the process, or ``"self"``.
    :param deny_setgroups: give up setgroups(2) in the namespace; a gid_map needs that first unless the
        writer has CAP_SETGID in the parent namespace (user_namespaces(7), CVE-2014-8989).
    :raises SandboxError: it names the file and the value that the kernel refused.
    """
    if deny_setgroups:
        libc.write_file(_STEP_MAPS, f"{proc}/{pid}/setgroups", "deny")
    libc.write_file(_STEP_MAPS, f"{proc}/{pid}/uid_map", uid_map)
    libc.write_file(_STEP_MAPS, f"{proc}/{pid}/gid_map", gid_map)


def _number(text: str) -> int | None:
    """Return an id written in decimal digits; None for anything else, and for what is no id."""
    if not (text.isascii() and text.isdecimal()) or len(text) > 10:
        return None
    number = int(text)
    return number if number <= _MAX_ID else None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _User:
    name: str
    uid: int
    gid: int
    home: str
    shell: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    name: str
    gid: int
    members: tuple[str, ...]


def _users(passwd_text: str) -> Iterator[_User]:
    """Yield the entries of a passwd(5) file; a line of another form is no entry, as in the C library."""
    for line in passwd_text.split("\n"):
        fields = line.split(":")
        if len(fields) != 7 or "\0" in line:  # of which neither a variable nor a program's path can be made
            continue
        uid, gid = _number(fields[2]), _number(fields[3])
        if uid is not None and gid is not None:
            yield _User(name=fields[0], uid=uid, gid=gid, home=fields[5] or "/", shell=fields[6])


def _groups(group_text: str) -> Iterator[_Group]:
    """Yield the entries of a group(5) file."""
    for line in group_text.split("\n"):
        fields = line.split(":")
        if len(fields) != 4:
            continue
        gid = _number(fields[2])
        if gid is not None:
            yield _Group(name=fields[0], gid=gid, members=tuple(fields[3].split(",")))


def _missing(kind: str, name: str, path: str) -> SandboxError:
    return SandboxError(_STEP_FIND, path=path, detail=f"it has no {kind} {name!r}; a number needs no entry")


def _find_user(wanted: str, passwd_text: str) -> _User:
    number = _number(wanted)
    for user in _users(passwd_text):
        if user.name == wanted if number is None else user.uid == number:
            return user
    if number is None:
        raise _missing("user", wanted, "/etc/passwd")
    # Docker's choice for an unknown number: group 0, home "/".
    return _User(name=wanted, uid=number, gid=0, home="/", shell="")


def _find_gid(wanted: str, group_text: str) -> int:
    number = _number(wanted)
    if number is not None:
        return number
    for group in _groups(group_text):
        if group.name == wanted:
            return group.gid
    raise _missing("group", wanted, "/etc/group")


def parse_user(spec_user: str, passwd_text: str, group_text: str) -> Identity:
    """Return who ``user`` or ``user:group`` is, by the crate's own files; each part a name or a number.

    With a group given, it is the only one, as in Docker; else groups are those that list the user.

    :param passwd_text: the crate's ``/etc/passwd``: never the host's name service, whose users the crate
        does not know; empty if it has none.
    :param group_text: the crate's ``/etc/group``.
    :raises SandboxError: a name that isn't there, or a number that is no id; it names them.
    """
    user_part, colon, group_part = spec_user.partition(":")
    user = _find_user(user_part, passwd_text)
    if colon:
        gid = _find_gid(group_part, group_text)
        groups = {gid}
    else:
        gid = user.gid
        groups = {gid} | {group.gid for group in _groups(group_text) if user.name in group.members}
    return Identity(uid=user.uid, gid=gid, groups=tuple(sorted(groups)), home=user.home, name=user.name)


def login_shell(spec_user: str, passwd_text: str) -> str:
    """Return the path of a user's shell; ``/bin/sh`` for one that has none, or may not log in.

    :param spec_user: as in :func:`parse_user`.
    :raises SandboxError: there is no user of that name.
    """
    shell = _find_user(spec_user.partition(":")[0], passwd_text).shell
    # A user of a service: who opens a shell as that user by hand wants one all the same (nologin(8)).
    return "/bin/sh" if shell.rpartition("/")[2] in ("", "nologin", "false") else shell


def become(identity: Identity, *, keep_groups: bool = False, call: libc.Caller = libc.syscall) -> None:
    """Make the calling thread, the only one of its process, this user for good; groups first, user last.

    Leaving user id 0 clears the permitted and effective capabilities, the parent-death signal and the
    dumpable flag (capabilities(7), prctl(2)): set the latter two again if they are wanted.
    System calls are made directly: the C library's wrappers take a lock that a fork may have left held.

    :param keep_groups: leave the supplementary groups as they are, for a user namespace that denies setgroups.
    :raises SandboxError: the kernel refuses, or an id is none: it would mean "no change" there.
    """
    ids = (identity.uid, identity.gid, *identity.groups)
    if max(ids) > _MAX_ID:
        raise SandboxError(_STEP_BECOME, detail=f"{max(ids)} is no id")
    array = struct.pack(f"={len(identity.groups)}I", *identity.groups)
    for name, arguments, path in (
        *((("setgroups", (len(identity.groups), array), str(identity.groups)),) if not keep_groups else ()),
        ("setresgid", (identity.gid,) * 3, str(identity.gid)),
        ("setresuid", (identity.uid,) * 3, str(identity.uid)),
    ):
        # user_namespaces(7): what is not mapped can't be had.
        call(_STEP_BECOME, name, *arguments, path=path, details={errno.EINVAL: _NOT_MAPPED})
