"""Extraction on a real system: as root the same as GNU tar's, as an ordinary user the user's own."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_crate.errors import ImageError
from pytest_crate.images.compression import LayerStream
from pytest_crate.images.rootfs import Contents, ExtractLimits, RootfsBuilder
from pytest_crate.images.tree import remove_tree
from pytest_crate.kernel import libc
from tests.conftest import temporary_prefix

pytestmark = pytest.mark.needs("root", "gnu tar")

NOBODY = 65534
# As setcap(8) writes it: version 2 with the effective bit, cap_net_raw permitted (linux/capability.h).
CAP_NET_RAW = bytes.fromhex("0100000200200000000000000000000000000000")


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory of nobody's in which nobody's processes may work; tmp_path is below one that only we may enter."""
    path = Path(tempfile.mkdtemp(prefix=temporary_prefix("images")))
    os.chown(path, NOBODY, NOBODY)
    yield path
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    remove_tree(descriptor, os.fsencode(path.name))
    os.close(descriptor)


def in_child(function: Callable[[], None]) -> None:
    """Run a function in a child, which fails if the function does."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException as error:  # noqa: BLE001 - reported, and nothing of pytest's may run on in the child
            os.write(2, f"{type(error).__name__}: {error}\n".encode(errors="backslashreplace"))
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def extract(archive: Path, root: Path, *, keep_owners: bool) -> Contents:
    root.mkdir()
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        builder = RootfsBuilder(
            descriptor, reference="img", where=str(root), limits=ExtractLimits(), keep_owners=keep_owners
        )
        with archive.open("rb") as raw:
            stream = LayerStream(raw, reference="img", limit_bytes=1 << 30)
            builder.add_layer(stream.read, origin=str(archive))
        return builder.finish()
    finally:
        os.close(descriptor)


def snapshot(root: Path) -> dict[bytes, tuple[object, ...]]:
    """Return all that can be told of a tree's files, by name."""
    found: dict[bytes, tuple[object, ...]] = {}
    top = os.fsencode(root)
    for above, directories, files in os.walk(top):
        for name in (b".", *directories, *files) if above == top else (*directories, *files):
            path = os.path.join(above, name)
            status = os.lstat(path)
            content: object = None
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    content = (status.st_size, status.st_nlink, hashlib.sha256(file.read()).hexdigest())
            xattrs = {
                key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)
            }
            found[os.path.relpath(path, top)] = (
                oct(status.st_mode),
                status.st_uid,
                status.st_gid,
                status.st_mtime_ns,
                content,
                tuple(sorted(xattrs.items())),
            )
    return found


def make_tree(tree: Path) -> None:
    """Make a tree with one of everything that an archive can hold."""
    for name in (
        "usr/bin",
        "usr/lib",
        "etc",
        "tmp",
        "run",
        "home/ada",
        "shut/inner",
        "deep/" + "d" * 120 + "/" + "e" * 120,
    ):
        (tree / name).mkdir(parents=True)
    (tree / "usr/bin/su").write_bytes(b"su" * 1000)
    (tree / "usr/bin/ping").write_bytes(b"ping")
    os.link(tree / "usr/bin/su", tree / "usr/bin/su-too")
    (tree / "usr/lib/empty").write_bytes(b"")
    (tree / "usr/lib/large").write_bytes(os.urandom(3 << 20))
    (tree / "etc/shadow").write_bytes(b"root:*:")
    (tree / "home/ada/notes").write_bytes(b"n")
    (tree / ("deep/" + "d" * 120 + "/" + "e" * 120) / ("f" * 200)).write_bytes(b"long")
    with (tree / "usr/lib/sparse").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"middle")
        file.truncate(1 << 21)
    os.symlink("usr/bin", tree / "bin")
    os.symlink("/" + "t" * 300, tree / "long-link")
    os.mkfifo(tree / "run/pipe")
    os.mknod(tree / "run/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    Path(os.fsdecode(os.fsencode(tree) + b"/caf\xe9\n")).write_bytes(b"odd")
    os.setxattr(tree / "usr/bin/ping", "security.capability", CAP_NET_RAW)
    for number, (above, directories, files) in enumerate(os.walk(tree)):
        for name in (*directories, *files):
            os.chown(os.path.join(above, name), 1000 + number, 70_000 + number, follow_symlinks=False)
            os.utime(os.path.join(above, name), ns=(0, 1_600_000_000_123_456_000 + number), follow_symlinks=False)
    os.setxattr(tree / "usr/bin/ping", "security.capability", CAP_NET_RAW)  # chown(2) cleared it
    modes = {"usr/bin/su": 0o6755, "etc/shadow": 0, "tmp": 0o1777, "home/ada": 0o500, "etc": 0o2711, "shut": 0}
    for name, mode in modes.items():
        (tree / name).chmod(mode)


def gnu_tar(*arguments: str) -> None:
    subprocess.run(["tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", *arguments], check=True)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A small archive with one of everything."""
    (tmp_path / "tree").mkdir()
    make_tree(tmp_path / "tree")
    gnu_tar("--sparse", "--format=posix", "-C", str(tmp_path / "tree"), "-czf", str(tmp_path / "all.tar.gz"), ".")
    return tmp_path / "all.tar.gz"


def test_as_root_everything_is_as_gnu_tar_extracts_it(archive: Path, tmp_path: Path) -> None:
    """Owners, modes, times, links, holes, capabilities and odd names are the archive's; only the device is missing."""
    (tmp_path / "expected").mkdir()
    gnu_tar("-C", str(tmp_path / "expected"), "-xpzf", str(archive))
    os.unlink(tmp_path / "expected/run/null")
    os.utime(tmp_path / "expected/run", ns=(0, (tmp_path / "tree/run").stat().st_mtime_ns))
    contents = extract(archive, tmp_path / "root", keep_owners=True)
    found = snapshot(tmp_path / "root")
    assert found == snapshot(tmp_path / "expected")
    assert contents.devices_skipped == 1
    assert len(found) > 20
    assert found[b"usr/bin/su"][:2] == (oct(stat.S_IFREG | 0o6755), (tmp_path / "tree/usr/bin/su").stat().st_uid)
    assert found[b"usr/bin/ping"][-1] == (("security.capability", CAP_NET_RAW),)
    assert (tmp_path / "root/usr/lib/sparse").stat().st_blocks * 512 < 1 << 20


def test_as_a_user_everything_is_the_users_and_otherwise_the_same(archive: Path, directory: Path) -> None:
    """Without root's powers, modes (setuid and 000 too), times and contents are the archive's, owners the user's."""
    copy = directory / "all.tar.gz"
    shutil.copy(archive, copy)
    copy.chmod(0o644)

    def extract_as_nobody() -> None:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        extract(copy, directory / "removed", keep_owners=False)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        remove_tree(descriptor, b"removed")
        assert not (directory / "removed").exists()
        contents = extract(copy, directory / "root", keep_owners=False)
        assert (contents.devices_skipped, contents.xattrs_skipped) == (1, 1)

    in_child(extract_as_nobody)
    found = snapshot(directory / "root")
    tree = snapshot(archive.with_name("tree"))
    del tree[b"run/null"]
    assert found.keys() == tree.keys()
    assert {entry[1:3] for entry in found.values()} == {(NOBODY, NOBODY)}
    # Mode, time, content; a capability is root's to give.
    assert {name: (entry[0], *entry[3:5]) for name, entry in found.items() if name not in (b".", b"run")} == {
        name: (entry[0], *entry[3:5]) for name, entry in tree.items() if name not in (b".", b"run")
    }
    assert {entry[5] for entry in found.values()} == {()}


@pytest.mark.parametrize("keep_owners", [True, False])
def test_alpine_is_as_gnu_tar_extracts_it(keep_owners: bool, alpine_image: Path, tmp_path: Path) -> None:
    """A real image's 521 entries are the same, but for owners where these are not kept."""
    (tmp_path / "expected").mkdir()
    gnu_tar("-C", str(tmp_path / "expected"), "-xpzf", str(alpine_image))
    contents = extract(alpine_image, tmp_path / "root", keep_owners=keep_owners)
    found, expected = snapshot(tmp_path / "root"), snapshot(tmp_path / "expected")
    with gzip.open(alpine_image) as plain:
        assert contents.data_bytes < len(plain.read())
    if not keep_owners:
        found, expected = ({name: (e[0], *e[3:]) for name, e in tree.items()} for tree in (found, expected))
    assert found == expected
    assert os.readlink(tmp_path / "root/bin/sh") == "/bin/busybox"


def test_no_limit_of_the_umask_reaches_the_image(archive: Path, tmp_path: Path) -> None:
    """A strict umask changes no mode."""
    former = os.umask(0o077)
    try:
        extract(archive, tmp_path / "root", keep_owners=True)
    finally:
        os.umask(former)
    found, tree = snapshot(tmp_path / "root"), snapshot(tmp_path / "tree")
    del tree[b"run/null"]
    assert {name: entry[0] for name, entry in found.items()} == {name: entry[0] for name, entry in tree.items()}


def test_an_owner_that_the_user_namespace_has_not_is_an_error(archive: Path, tmp_path: Path) -> None:
    """Owners that can't be kept are not dropped in silence: the entry is named."""

    def extract_in_user_namespace() -> None:
        libc.unshare("be root in a user namespace", libc.CLONE_NEWUSER)
        Path("/proc/self/uid_map").write_text("0 0 1")
        with pytest.raises(ImageError, match=r"cannot extract .*: Invalid argument \(errno 22\)"):
            extract(archive, tmp_path / "files", keep_owners=True)
        with tarfile.open(tmp_path / "dirs.tar", "w") as tar:
            entry = tarfile.TarInfo("etc")
            entry.type, entry.uid = tarfile.DIRTYPE, 5
            tar.addfile(entry)
        with pytest.raises(ImageError, match=r"cannot complete 'etc' in .*: Invalid argument \(errno 22\)"):
            extract(tmp_path / "dirs.tar", tmp_path / "dirs", keep_owners=True)

    in_child(extract_in_user_namespace)
