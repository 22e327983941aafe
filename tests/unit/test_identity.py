"""Users found in a crate's own files, and the texts and order of id maps."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_crate.errors import SandboxError
from pytest_crate.kernel.identity import Identity, login_shell, parse_user, single_id_map, whole_id_map, write_id_maps

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1::/usr/sbin:/usr/sbin/nologin
www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin

# a comment
+::::::
broken:x:12
alice:x:1000:1000:Alice,,,:/home/alice:/bin/bash
nowhere:x:1001:1001:::
minus:x:-1:0::/:/bin/sh
nobody32:x:4294967295:0::/:/bin/sh
halfroot:x:1002:4294967295::/:/bin/sh
alice:x:0:0:the second one:/root:/bin/sh
"""
GROUP = """\
root:x:0:
daemon:x:1:
adm:x:4:syslog,alice
www-data:x:33:
docker:x:999:alice
users:x:100:alice2,bob
alice:x:1000:
short:x
minus:x:4294967295:alice
"""


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("root", Identity(uid=0, gid=0, groups=(0,), home="/root", name="root")),
        ("www-data", Identity(uid=33, gid=33, groups=(33,), home="/var/www", name="www-data")),
        ("alice", Identity(uid=1000, gid=1000, groups=(4, 999, 1000), home="/home/alice", name="alice")),
        ("1000", Identity(uid=1000, gid=1000, groups=(4, 999, 1000), home="/home/alice", name="alice")),
        ("nowhere", Identity(uid=1001, gid=1001, groups=(1001,), home="/", name="nowhere")),
        ("4711", Identity(uid=4711, gid=0, groups=(0,), home="/", name="4711")),
        ("0", Identity(uid=0, gid=0, groups=(0,), home="/root", name="root")),
        ("alice:docker", Identity(uid=1000, gid=999, groups=(999,), home="/home/alice", name="alice")),
        ("alice:50", Identity(uid=1000, gid=50, groups=(50,), home="/home/alice", name="alice")),
        ("4711:www-data", Identity(uid=4711, gid=33, groups=(33,), home="/", name="4711")),
        ("4711:4712", Identity(uid=4711, gid=4712, groups=(4712,), home="/", name="4711")),
        ("4294967294", Identity(uid=4294967294, gid=0, groups=(0,), home="/", name="4294967294")),
    ],
)
def test_parse_user(user: str, expected: Identity) -> None:
    """Names and numbers are resolved as Docker does: first entry wins, a given group is the only one."""
    assert parse_user(user, PASSWD, GROUP) == expected


def test_parse_user_in_an_image_without_files() -> None:
    """A number needs neither file, as in an image made from scratch."""
    assert parse_user("1000:1000", "", "") == Identity(uid=1000, gid=1000, groups=(1000,), home="/", name="1000")


@pytest.mark.parametrize(
    ("user", "path", "named"),
    [
        ("mallory", "/etc/passwd", "'mallory'"),
        ("alice:wheel", "/etc/group", "'wheel'"),
        ("broken", "/etc/passwd", "'broken'"),
        ("minus", "/etc/passwd", "'minus'"),
        ("root:short", "/etc/group", "'short'"),
        ("", "/etc/passwd", "''"),
    ],
)
def test_parse_user_that_is_missing(user: str, path: str, named: str) -> None:
    """A name without a usable entry is an error that names it and the file."""
    with pytest.raises(SandboxError, match=f"it has no .* {named}") as caught:
        parse_user(user, PASSWD, GROUP)
    assert caught.value.path == path


@pytest.mark.parametrize("user", ["4294967295", "4294967296", "99999999999", "nobody32", "halfroot", "root:4294967295"])
def test_parse_user_never_yields_minus_one(user: str) -> None:
    """The id that setresuid(2) takes for "no change" is refused: it would leave the payload as root."""
    with pytest.raises(SandboxError, match="it has no"):
        parse_user(user, PASSWD, GROUP)


def test_parse_user_ignores_the_hosts_users() -> None:
    """A user of the host is unknown in a crate whose files don't list it."""
    with pytest.raises(SandboxError, match="no user 'root'"):
        parse_user("root", "", "")


@given(passwd=st.text(alphabet="root:x01-9\n²é ", max_size=60), group=st.text(alphabet="rot:x0,\n", max_size=40))
def test_parse_user_of_any_file(passwd: str, group: str) -> None:
    """Whatever an image's files say, the outcome is an identity with ids in range, or our error."""
    try:
        identity = parse_user("root", passwd, group)
    except SandboxError as error:
        assert error.path == "/etc/passwd"  # noqa: PT017  (both outcomes are right)
    else:
        assert all(0 <= number < 2**32 - 1 for number in (identity.uid, identity.gid, *identity.groups))


def test_single_id_map() -> None:
    """One outside user is shown as root, or as the id that is asked for."""
    assert single_id_map(1000, 100) == ("0 1000 1\n", "0 100 1\n")
    assert single_id_map(1000, 100, 1000, 100) == ("1000 1000 1\n", "100 100 1\n")


def test_whole_id_map() -> None:
    """All ids are themselves; in a user namespace, all that it has."""
    assert whole_id_map() == ("0 0 4294967295\n", "0 0 4294967295\n")
    own = "         0       1000          1\n         1     100000      65536\n"
    assert whole_id_map(own, "5 0 10\n") == ("0 0 1\n1 1 65536\n", "5 5 10\n")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A directory that stands for /proc, with the three files of process 42."""
    for name in ("setgroups", "uid_map", "gid_map"):
        path = tmp_path / "42" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


@pytest.mark.parametrize(("deny", "setgroups"), [(True, "deny"), (False, "")])
def test_write_id_maps(proc: Path, deny: bool, setgroups: str) -> None:
    """Both maps are written, and setgroups only if it shall be denied."""
    write_id_maps(42, "0 1000 1\n", "0 100 1\n", deny_setgroups=deny, proc=str(proc))
    assert (proc / "42/setgroups").read_text(encoding="ascii") == setgroups
    assert (proc / "42/uid_map").read_text(encoding="ascii") == "0 1000 1\n"
    assert (proc / "42/gid_map").read_text(encoding="ascii") == "0 100 1\n"


def test_write_id_maps_denies_setgroups_first(proc: Path) -> None:
    """When setgroups can't be denied, no map is written: a writable gid_map with it would be CVE-2014-8989."""
    os.unlink(proc / "42/setgroups")
    with pytest.raises(SandboxError, match="value 'deny'") as caught:
        write_id_maps(42, "0 1000 1\n", "0 100 1\n", deny_setgroups=True, proc=str(proc))
    assert (caught.value.errno, caught.value.path) == (errno.ENOENT, f"{proc}/42/setgroups")
    assert (proc / "42/uid_map").read_text(encoding="ascii") == ""
    assert (proc / "42/gid_map").read_text(encoding="ascii") == ""


@pytest.mark.parametrize(
    ("user", "shell"),
    [("root", "/bin/ash"), ("0:daemon", "/bin/ash"), ("www", "/bin/sh"), ("old", "/bin/sh"), ("4711", "/bin/sh")],
)
def test_login_shell(user: str, shell: str) -> None:
    """A user's shell is the user database's; /bin/sh for one that has none, may not log in, or isn't there."""
    passwd = "root:x:0:0:root:/root:/bin/ash\nwww:x:33:33::/var/www:/usr/sbin/nologin\nold:x:5:5::/:\n"
    assert login_shell(user, passwd) == shell


def test_a_line_with_a_null_character_is_no_entry() -> None:
    """Neither a variable nor a program's path can have one: an image's user has its number, and the usual shell."""
    text = "root:x:0:0::/root\0:/bin/ash\nbin:x:1:1::/bin:/bin/s\0h\n"
    assert parse_user("0", text, "") == Identity(uid=0, gid=0, groups=(0,), home="/", name="0")
    assert login_shell("1", text) == "/bin/sh"
