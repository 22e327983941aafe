"""A spec becomes an ordered list of mount operations."""

from __future__ import annotations

import dataclasses
import errno
import os
import stat
from pathlib import Path

import pytest

from pytest_crate.errors import SandboxError
from pytest_crate.sandbox import mounts
from pytest_crate.sandbox.rootfs import (
    HostView,
    MountPoint,
    entries,
    is_at_or_below,
    is_below,
    outermost,
    parse_mountinfo,
    plan_root,
)
from pytest_crate.sandbox.workshop import Workshop
from pytest_crate.spec import CrateSpec, Layer, build_spec

MOUNTINFO = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 27 0:5 / /mnt/with\040space rw shared:5 master:2 - xfs /dev/vdb rw
31 30 0:6 / /mnt/with\040space/hidden rw - xfs /dev/vdc rw
32 30 0:7 / /mnt/with\040space rw - ext4 /dev/vdd rw
33 32 0:8 / /mnt/with\040space/seen rw - ext4 /dev/vde rw
34 27 0:9 / /srv/hidden rw - ext4 /dev/vdf rw
35 27 0:10 / /srv rw - ext4 /dev/vdg rw
"""

HOST = HostView(
    mounts=(
        MountPoint(path="/", kind="ext4"),
        MountPoint(path="/proc", kind="proc"),
        MountPoint(path="/sys/fs/cgroup", kind="cgroup2"),
        MountPoint(path="/dev/shm", kind="tmpfs"),
        MountPoint(path="/tmp", kind="tmpfs"),
    ),
    rootless=False,
    homes=("/home/me",),
    project=("/home/me/project", "/home/me/.venv", "/opt/python"),
    writable=("/tmp/pytest-of-me/pytest-0",),
)


def plan(view: HostView = HOST, *, rootfs: str | None = None, **keys: object) -> list[mounts.Operation]:
    return list(plan_root(build_spec([Layer(origin="m", values=keys)]), view, rootfs=rootfs))


def position(operations: list[mounts.Operation], kind: type[mounts.Operation], target: str) -> int:
    (found,) = (
        index
        for index, operation in enumerate(operations)
        if isinstance(operation, kind) and operation.target == target  # type: ignore[attr-defined]
    )
    return found


def test_mountinfo_is_read_as_the_kernel_writes_it() -> None:
    """Octal escapes are undone, and what lies under another mount is left out, whatever the order of the lines."""
    assert {(mount.path, mount.kind) for mount in parse_mountinfo(MOUNTINFO)} == {
        ("/proc", "proc"),
        ("/", "ext4"),
        ("/mnt/with space", "ext4"),
        ("/mnt/with space/seen", "ext4"),
        ("/srv", "ext4"),
    }


@pytest.mark.parametrize(
    ("path", "directory", "below"),
    [("/a/b", "/a", True), ("/a", "/a", False), ("/ab", "/a", False), ("/a", "/", True), ("/", "/", False)],
)
def test_below(path: str, directory: str, below: bool) -> None:
    """Below is by whole names, and not the place itself."""
    assert is_below(path, directory) is below
    assert is_at_or_below(path, directory) is (below or path == directory)


def test_outermost_paths() -> None:
    """A path below another is left out, one that only begins like it is not."""
    assert outermost(["/a/b", "/a-b", "/a", "/c/d", "/a"]) == ["/a", "/a-b", "/c/d"]


def test_the_host_root_is_seen_copy_on_write_with_private_places() -> None:
    """/ is an overlay; /tmp, /var/tmp, /run and $HOME are private; project and interpreter are shown again."""
    operations = plan()
    assert operations[0] == mounts.Overlay(target="/", lower="/")
    private = {operation.target for operation in operations if isinstance(operation, mounts.Private)}
    assert private == {"/tmp", "/var/tmp", "/run", "/home/me"}
    shown = {operation.target for operation in operations if isinstance(operation, mounts.Reveal)}
    assert shown == {"/home/me/project", "/home/me/.venv"}


def test_what_is_shown_again_is_captured_before_it_is_covered() -> None:
    """Capture, cover, reveal: in this order, or the secret or the project would be lost."""
    operations = plan()
    captured = position(operations, mounts.Capture, "/home/me/project")
    covered = position(operations, mounts.Private, "/home/me")
    revealed = position(operations, mounts.Reveal, "/home/me/project")
    assert captured < covered < revealed


def test_the_host_shares_basetemp_alone() -> None:
    """The one place where a write reaches the host without being asked for is pytest's basetemp."""
    writable = [operation for operation in plan() if isinstance(operation, mounts.Bind) and operation.writable]
    assert [operation.target for operation in writable] == ["/tmp/pytest-of-me/pytest-0"]


def test_kernel_file_systems_of_the_host_are_not_shown() -> None:
    """No overlay of /proc, /sys, /dev or a cgroup file system: the crate has its own, or none."""
    targets = [operation.target for operation in plan() if isinstance(operation, mounts.Overlay)]
    assert targets == ["/"]


def test_a_project_below_basetemp_stays_copy_on_write() -> None:
    """Where the shared basetemp holds the project, the project is laid over it again."""
    view = HostView(mounts=HOST.mounts, rootless=False, project=("/tmp/base/project",), writable=("/tmp/base",))
    operations = plan(view)
    assert position(operations, mounts.Bind, "/tmp/base") < position(operations, mounts.Reveal, "/tmp/base/project")


@pytest.mark.parametrize("rootless", [False, True])
def test_what_lies_behind_a_cover_is_shown_though_what_is_before_it_is(tmp_path: Path, rootless: bool) -> None:
    """A home, or basetemp, within something that is shown: the project, or its interpreter, in it is shown again."""
    kept = tmp_path / "kept"
    kept.mkdir()
    view = HostView(
        mounts=HOST.mounts,
        rootless=rootless,
        homes=(str(tmp_path), f"{kept}/home"),
        project=(f"{kept}/home/project", f"{kept}/home/project/.venv", f"{kept}/base/other"),
        kept=(str(kept),),
        writable=(f"{kept}/base",),
    )
    operations = plan(view)
    shown = [operation.target for operation in operations if isinstance(operation, mounts.Reveal)]
    assert sorted(shown) == [str(kept), f"{kept}/base/other", f"{kept}/home/project"]
    captured = position(operations, mounts.Capture, f"{kept}/home/project")
    before = position(operations, mounts.Reveal, str(kept))
    covered = position(operations, mounts.Private, f"{kept}/home")
    assert captured < before < covered < position(operations, mounts.Reveal, f"{kept}/home/project")
    shared = position(operations, mounts.Bind, f"{kept}/base")
    assert before < shared < position(operations, mounts.Reveal, f"{kept}/base/other")


def test_in_an_image_the_interpreter_in_a_home_within_the_project_is_shown() -> None:
    """The home is private there, and what Python needs of it is laid into it."""
    view = HostView(
        mounts=HOST.mounts,
        rootless=False,
        homes=("/srv/project/home",),
        project=("/srv/project", "/srv/project/home/.venv"),
    )
    operations = plan(view, rootfs="/store/rootfs")
    whole = position(operations, mounts.Bind, "/srv/project")
    covered = position(operations, mounts.Private, "/srv/project/home")
    assert whole < covered < position(operations, mounts.Bind, "/srv/project/home/.venv")


def test_mounts_come_last_and_are_read_only_unless_asked() -> None:
    """The user's mounts lie over everything, in the order of their depth."""
    operations = plan(mounts=["/data/deep:/x/y:rw", "/data:/x"])
    assert operations[-2:] == [
        mounts.Bind(target="/x", source="/data", writable=False, recursive=True, as_named=True),
        mounts.Bind(target="/x/y", source="/data/deep", writable=True, recursive=True, as_named=True),
    ]


def test_what_is_below_a_directory_lent_to_crates_has_to_be_in_it(tmp_path: Path) -> None:
    """The outermost such directory on the way to a source, under whatever name, and none that the source itself is."""
    lent, other = tmp_path / "lent", tmp_path / "other"
    (lent / "deep").mkdir(parents=True)
    other.mkdir()
    (tmp_path / "link").symlink_to(lent)
    view = dataclasses.replace(HOST, lent=(str(lent / "deep"), str(lent)))
    sources = [lent, lent / "in", lent / "deep" / "in", tmp_path / "link" / "in", other / "in"]
    planned = plan(view, mounts=[f"{source}:/{number}" for number, source in enumerate(sources)])
    within = [operation.within for operation in planned if isinstance(operation, mounts.Bind) and operation.as_named]
    assert within == ["", str(lent), str(lent), str(lent), ""]


def test_an_image_root_is_the_image_with_the_project_read_only() -> None:
    """The image's tree copy-on-write, project and interpreter read-only at their own paths, nothing of $HOME."""
    operations = plan(rootfs="/store/rootfs")
    assert operations[0] == mounts.Overlay(target="/", lower="/store/rootfs")
    binds = {operation.target: operation for operation in operations if isinstance(operation, mounts.Bind)}
    assert {target for target, bind in binds.items() if not bind.writable} == set(HOST.project)
    assert not any(isinstance(operation, mounts.Private) for operation in operations)


def test_rootless_there_is_an_overlay_for_each_directory_without_mounts(tmp_path: Path) -> None:
    """In a user namespace the kernel refuses an overlay of a directory with locked mounts below."""
    view = HostView(
        mounts=(MountPoint(path="/", kind="ext4"), MountPoint(path="/usr/share", kind="ext4")), rootless=True
    )
    operations = plan(view)
    assert operations[0] == mounts.EmptyRoot()
    lowers = {operation.lower for operation in operations if isinstance(operation, mounts.Overlay)}
    assert "/" not in lowers
    assert "/usr" not in lowers
    assert {"/usr/bin", "/usr/lib", "/usr/share"} <= lowers


def test_rootless_a_project_in_a_temporary_directory_with_mounts_below(tmp_path: Path) -> None:
    """It is shown in parts, as what is elsewhere is."""
    for name in ("src", "data", "data/mounted"):
        (tmp_path / name).mkdir()
    point = MountPoint(path=f"{tmp_path}/data/mounted", kind="ext4")
    view = HostView(mounts=(MountPoint(path="/", kind="ext4"), point), rootless=True, project=(str(tmp_path),))
    lowers = {operation.lower for operation in plan(view) if isinstance(operation, mounts.Overlay)}
    assert {lower for lower in lowers if lower.startswith(str(tmp_path))} == {
        f"{tmp_path}/{name}" for name in ("src", "data/mounted")
    }


def test_rootless_with_the_hosts_network_sys_is_the_hosts() -> None:
    """A fresh sysfs belongs to the owner of the network namespace: with the host's, it is bound read-only."""
    view = HostView(mounts=HOST.mounts, rootless=True)
    assert mounts.Bind(target="/sys", source="/sys", recursive=True) in plan(view, network="host")
    assert mounts.Sys() in plan(view, network="none")


def test_symlinks_in_temporary_directories_are_made_again(tmp_path: Path) -> None:
    """A symlink that a fixture made is a symlink in the crate, not what it points at; one that is gone is left out."""
    link = tmp_path / "link"
    link.symlink_to("elsewhere")
    view = HostView(mounts=HOST.mounts, rootless=False, kept=(str(link), str(tmp_path / "gone")))
    for rootfs in (None, "/store"):
        found = [operation for operation in plan(view, rootfs=rootfs) if isinstance(operation, mounts.Symlink)]
        assert found == [mounts.Symlink(target=str(link), to="elsewhere")]


def test_operations_survive_json() -> None:
    """The plan crosses to the launcher as builtins."""
    for rootfs in (None, "/store"):
        operations = plan(rootfs=rootfs, mounts=["/data:/x:rw"])
        assert mounts.from_json(mounts.to_json(operations)) == operations


def test_an_operation_prints_itself() -> None:
    """--crate-debug shows each in one line: what, where, how."""
    assert mounts.Overlay(target="/", lower="/").describe() == "overlay  / lower=/"
    assert mounts.Private(target="/tmp", mode=0o1777).describe() == "private  /tmp mode=0o1777"
    assert mounts.Bind(target="/d", source="/s", writable=True).describe() == "bind     /d source=/s writable"


def test_the_default_spec_needs_no_image() -> None:
    """A spec without an image is on the host's root."""
    assert CrateSpec().image is None


def test_what_kept_entries_are(tmp_path: Path) -> None:
    """A plan may be used again while each entry kept is what it was: the same symlink, or a file of the same type."""
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("directory")
    names = ("directory", "link", "gone")
    view = dataclasses.replace(HOST, kept=tuple(str(tmp_path / name) for name in names))
    before = entries(view)
    assert before == (stat.S_IFDIR, "directory", 0)
    (tmp_path / "gone").touch()
    assert entries(view) == (stat.S_IFDIR, "directory", stat.S_IFREG)
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("elsewhere")
    (tmp_path / "directory").rmdir()
    assert entries(view) == (0, "elsewhere", stat.S_IFREG)


OPTIONAL = [
    mounts.Overlay(target="/place", lower="/place", if_present=True),
    mounts.Bind(target="/place", source="/place", if_present=True),
]


@pytest.mark.parametrize("operation", OPTIONAL, ids=lambda operation: str(operation.kind))
@pytest.mark.parametrize("error", [errno.ENOENT, errno.ENOTDIR, errno.EACCES])
def test_what_has_gone_meanwhile_is_not_shown(
    operation: mounts.Operation, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is shown only if it is there, and isn't, or can't be seen by the user, is left out."""
    monkeypatch.setattr(os, "stat", Refusing(error))
    operation.perform(Workshop(rootless=True, one_user=True))


@pytest.mark.parametrize("operation", OPTIONAL, ids=lambda operation: str(operation.kind))
@pytest.mark.parametrize("error", [errno.ENOMEM, errno.EPERM, errno.EIO])
def test_a_root_lacks_nothing_because_of_an_error(
    operation: mounts.Operation, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the kernel can't tell whether it is there, the crate is not made."""
    monkeypatch.setattr(os, "stat", Refusing(error))
    with pytest.raises(SandboxError, match=rf"show /place .*at /place: stat\(/place\): {os.strerror(error)}"):
        operation.perform(Workshop(rootless=True, one_user=True))


class Refusing:
    """Stands for a function of the kernel's that always fails."""

    def __init__(self, error: int) -> None:
        self._error = error

    def __call__(self, path: str, **_: object) -> None:
        raise OSError(self._error, os.strerror(self._error), path)
