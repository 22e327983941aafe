"""Extraction of layers: faithful to the archive, and confined to its directory."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_crate.errors import ImageError
from pytest_crate.images.rootfs import Contents, ExtractLimits, RootfsBuilder
from pytest_crate.images.tree import remove_tree

Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, data: bytes = b"", *, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.size = kind, link, mode, len(data)
    info.mtime = 1_600_000_000
    return info, data


def directory(name: str, mode: int = 0o755) -> Member:
    return member(name, kind=tarfile.DIRTYPE, mode=mode)


def symlink(name: str, target: str) -> Member:
    return member(name, kind=tarfile.SYMTYPE, link=target)


def hardlink(name: str, target: str) -> Member:
    return member(name, kind=tarfile.LNKTYPE, link=target)


def archive(*members: Member) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape"
    ) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def extract(root: Path, *layers: bytes, limits: ExtractLimits | None = None) -> Contents:
    root.mkdir(exist_ok=True)
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        builder = RootfsBuilder(
            descriptor, reference="img", where="the store", limits=limits or ExtractLimits(), keep_owners=False
        )
        for layer in layers:
            builder.add_layer(io.BytesIO(layer).read, origin="img.tar")
        return builder.finish()
    finally:
        os.close(descriptor)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "outer" / "rootfs"


@pytest.fixture(autouse=True)
def outside(tmp_path: Path) -> Iterator[Path]:
    """A directory beside the root with a file that no archive may change, add to, or link to."""
    outside = tmp_path / "outer"
    outside.mkdir()
    victim = outside / "victim"
    victim.write_text("untouched")
    victim.chmod(0o600)
    os.utime(victim, (1, 1))
    yield outside
    # Some of the trees made here are too deep, or too shut, for pytest to remove.
    descriptor = os.open(outside, os.O_RDONLY | os.O_DIRECTORY)
    remove_tree(descriptor, b"rootfs")
    os.close(descriptor)
    assert os.listdir(outside) == ["victim"]
    status = victim.lstat()
    assert (victim.read_text(), stat.S_IMODE(status.st_mode), status.st_nlink, status.st_mtime) == (
        "untouched",
        0o600,
        1,
        1,
    )


def test_kinds_modes_times_and_contents_are_the_archives(root: Path) -> None:
    """Files, directories, links and FIFOs come out with mode, mtime and data, setuid and mode 0 included."""
    contents = extract(
        root,
        archive(
            directory(".", 0o755),
            directory("usr/bin", 0o1777),
            member("usr/bin/su", b"elf", mode=0o4755),
            member("usr/bin/secret", b"s" * 3_000_000, mode=0),
            symlink("bin", "usr/bin"),
            hardlink("usr/bin/su2", "usr/bin/su"),
            member("run/pipe", kind=tarfile.FIFOTYPE, mode=0o622),
        ),
    )
    su = (root / "usr/bin/su").stat()
    assert (stat.S_IMODE(su.st_mode), su.st_mtime, su.st_nlink) == (0o4755, 1_600_000_000, 2)
    assert (root / "usr/bin/su2").stat().st_ino == su.st_ino
    assert stat.S_IMODE((root / "usr/bin").stat().st_mode) == 0o1777
    assert (root / "usr/bin").stat().st_mtime == 1_600_000_000
    assert root.stat().st_mtime == 1_600_000_000
    assert os.readlink(root / "bin") == "usr/bin"
    assert (root / "bin").lstat().st_mtime == 1_600_000_000
    secret = (root / "usr/bin/secret").stat()
    assert (stat.S_IMODE(secret.st_mode), secret.st_size) == (0, 3_000_000)
    pipe = (root / "run/pipe").stat()
    assert (stat.S_ISFIFO(pipe.st_mode), stat.S_IMODE(pipe.st_mode)) == (True, 0o622)
    assert stat.S_IMODE((root / "run").stat().st_mode) == 0o755
    # Seven, and usr and run, which the archive has no entries for.
    assert contents == Contents(entries=9, data_bytes=3_000_003)


def test_symlinks_lead_where_they_will_lead_inside(root: Path) -> None:
    """Entries below a symlink land in its target within the root, be it relative, absolute or with '..'."""
    extract(
        root,
        archive(
            directory("usr/lib"),
            directory("run"),
            symlink("lib", "usr/lib"),
            symlink("var", "/run"),
            directory("opt"),
            symlink("opt/up", "../../../../usr"),
            member("lib/libc.so", b"1"),
            member("var/lock", b"2"),
            member("opt/up/lib/libm.so", b"3"),
        ),
    )
    assert os.path.islink(root / "lib")
    assert (root / "usr/lib/libc.so").read_bytes() == b"1"
    assert (root / "run/lock").read_bytes() == b"2"
    assert (root / "usr/lib/libm.so").read_bytes() == b"3"


def test_absolute_names_are_relative_to_the_root(root: Path) -> None:
    """A leading slash means the image's root, as for tar(1)."""
    extract(root, archive(member("/etc/passwd", b"x"), hardlink("/etc/copy", "//etc/passwd")))
    assert (root / "etc/passwd").read_bytes() == b"x"
    assert (root / "etc/copy").read_bytes() == b"x"


def test_names_with_odd_bytes_are_kept(root: Path) -> None:
    """Bytes that are no UTF-8, newlines and a component of the longest length stay as they are."""
    names = ["caf\udce9", "new\nline", "n" * 255]
    extract(root, archive(*[member(name, b"x") for name in names]))
    assert sorted(os.listdir(root)) == sorted(names)


def test_a_directory_without_write_permission_can_have_children(root: Path) -> None:
    """Modes of directories are set at the end, children's before parents', so that a user can extract 0500 and 0."""
    extract(
        root,
        archive(
            directory("a", 0),
            directory("a/b", 0o500),
            member("a/b/file", b"x"),
            directory("a/b/c", 0),
            member("a/b/c/d/e", b"y"),
        ),
    )
    assert stat.S_IMODE((root / "a").stat().st_mode) == 0
    (root / "a").chmod(0o700)
    assert stat.S_IMODE((root / "a/b").stat().st_mode) == 0o500
    assert (root / "a/b/file").read_bytes() == b"x"
    assert stat.S_IMODE((root / "a/b/c").stat().st_mode) == 0
    (root / "a/b/c").chmod(0o700)
    assert (root / "a/b/c/d/e").read_bytes() == b"y"


def test_a_later_entry_replaces_an_earlier_one(root: Path) -> None:
    """Whatever two entries of one name are, the later wins; two directories merge."""
    extract(
        root,
        archive(
            member("file-file", b"old", mode=0o600),
            hardlink("alias", "file-file"),
            member("file-file", b"new"),
            directory("dir-file/full"),
            member("dir-file/full/x", b"x"),
            member("dir-file", b"now a file"),
            symlink("link-dir", ".."),
            directory("link-dir", 0o711),
            member("link-dir/x", b"inside"),
            directory("dir-link"),
            member("dir-link/x", b"x"),
            symlink("dir-link", "file-file"),
            directory("dir-dir", 0o700),
            member("dir-dir/x", b"kept"),
            directory("dir-dir", 0o711),
        ),
    )
    assert (root / "file-file").read_bytes() == b"new"
    assert (root / "alias").read_bytes() == b"old"
    assert (root / "dir-file").read_bytes() == b"now a file"
    assert (root / "link-dir/x").read_bytes() == b"inside"
    assert stat.S_IMODE((root / "link-dir").lstat().st_mode) == 0o711
    assert os.readlink(root / "dir-link") == "file-file"
    assert stat.S_IMODE((root / "file-file").lstat().st_mode) == 0o644
    assert (root / "dir-dir/x").read_bytes() == b"kept"
    assert stat.S_IMODE((root / "dir-dir").stat().st_mode) == 0o711


def test_a_replacement_that_changes_where_a_name_leads_is_seen(root: Path) -> None:
    """Neighbouring entries share their parent only as long as its name leads there: d/q/.. is d, and then it is e."""
    extract(
        root,
        archive(
            directory("d/q"),
            directory("e/f"),
            symlink("p", "d/q/.."),
            member("p/before", b"x"),
            symlink("p/q", "../e/f"),
            member("p/after", b"x"),
        ),
    )
    assert sorted(os.listdir(root / "d")) == ["before", "q"]
    assert sorted(os.listdir(root / "e")) == ["after", "f"]


def test_hard_links_replace_and_may_name_themselves(root: Path) -> None:
    """A hard link takes the place of another file; one to itself, or to what it is already, changes nothing."""
    extract(
        root,
        archive(
            member("a", b"a"),
            member("b", b"b"),
            hardlink("b", "a"),
            hardlink("b", "a"),
            hardlink("a", "a"),
            symlink("s", "a"),
            hardlink("t", "s"),
        ),
    )
    assert (root / "b").read_bytes() == b"a"
    assert (root / "a").stat().st_nlink == 2
    assert os.readlink(root / "t") == "a"
    assert (root / "t").lstat().st_ino == (root / "s").lstat().st_ino


def test_a_replaced_directorys_mode_reaches_nothing_else(root: Path) -> None:
    """A directory's mode, set at the end, is not given to what its name has come to mean."""
    extract(
        root,
        archive(
            directory("c/d", 0o777),
            member("c", b"x", mode=0o600),
            directory("a"),
            directory("a/sub", 0o777),
            directory("b"),
            directory("b/sub", 0o711),
            symlink("a", "b"),
        ),
    )
    assert stat.S_IMODE((root / "b/sub").stat().st_mode) == 0o711
    assert stat.S_IMODE((root / "c").stat().st_mode) == 0o600


def test_layers_add_up(root: Path) -> None:
    """An upper layer's entries replace and extend a lower one's, below directories whose final mode shuts us out."""
    extract(
        root,
        archive(
            directory("etc", 0o500), member("etc/issue", b"lower"), symlink("lib", "usr/lib"), directory("usr/lib")
        ),
        archive(member("etc/issue", b"upper"), member("etc/motd", b"hello"), member("lib/x", b"x")),
    )
    assert (root / "etc/issue").read_bytes() == b"upper"
    assert (root / "etc/motd").read_bytes() == b"hello"
    assert (root / "usr/lib/x").read_bytes() == b"x"
    assert stat.S_IMODE((root / "etc").stat().st_mode) == 0o500


def test_device_nodes_are_counted_and_not_created(root: Path) -> None:
    """No device node, overlayfs's whiteout (0:0) and a hard link to one included, ever exists."""
    contents = extract(
        root,
        archive(
            directory("dev"),
            member("dev/null", kind=tarfile.CHRTYPE),
            member("dev/sda", kind=tarfile.BLKTYPE),
            hardlink("dev/alias", "dev/null"),
        ),
    )
    assert os.listdir(root / "dev") == []
    assert contents.devices_skipped == 3


def test_overlay_and_foreign_xattrs_are_left_out(root: Path) -> None:
    """An archive can't make a directory opaque or redirected for overlayfs, nor bring labels and ACLs."""
    info, data = member("file", b"x")
    info.pax_headers = {
        f"SCHILY.xattr.{name}": "y"
        for name in ("user.kept", "user.overlay.redirect", "trusted.overlay.opaque", "security.selinux")
    }
    contents = extract(root, archive((info, data)))
    found = os.listxattr(root / "file")
    if "user.kept" not in found:
        pytest.skip("this file system has no user xattrs")
    assert [name for name in found if name != "security.selinux"] == ["user.kept"]
    assert contents.xattrs_skipped == 3


def test_an_xattr_that_the_kernel_refuses_is_left_out(root: Path) -> None:
    """A user attribute on a FIFO, which xattr(7) rules out, is counted, not an error."""
    info, data = member("pipe", kind=tarfile.FIFOTYPE)
    info.pax_headers = {"SCHILY.xattr.user.note": "x"}
    assert extract(root, archive((info, data))).xattrs_skipped == 1


def test_a_sparse_file_keeps_its_size(root: Path) -> None:
    """Holes are made, not written: a gigabyte of nothing takes no space."""
    info, data = member("lastlog", b"tail")
    info.pax_headers = {"GNU.sparse.map": f"{(1 << 30) - 4},4", "GNU.sparse.size": str(1 << 30)}
    extract(root, archive((info, data)))
    status = (root / "lastlog").stat()
    assert (status.st_size, status.st_blocks * 512 < 1 << 20) == (1 << 30, True)
    with (root / "lastlog").open("rb") as file:
        file.seek(-8, os.SEEK_END)
        assert file.read() == b"\0\0\0\0tail"


# What the "data" filter of tarfile let through: realpath() gives up at PATH_MAX and takes the rest of a path as it is
# (CVE-2025-4517, -4330, -4138), while the kernel goes on, component by component.
LONG = "d" * 247
STEPS = "abcdefghijklmnop"


def long_way_out() -> list[Member]:
    """Return links whose resolution is longer than PATH_MAX before it climbs out."""
    members, path = [], ""
    for step in STEPS:
        members += [directory(f"{path}{LONG}"), symlink(f"{path}{step}", LONG)]
        path += f"{LONG}/"
    long_link = "/".join(STEPS) + "/" + "l" * 254
    members += [symlink(long_link, "../" * len(STEPS)), symlink("escape", long_link + "/..")]
    return members


HOSTILE: dict[str, tuple[Member, ...]] = {
    "file below a long way out": (*long_way_out(), member("escape/victim", b"pwned")),
    "hard link through a long way out": (*long_way_out(), hardlink("take", "escape/victim")),
    "mode through a long way out": (
        *long_way_out(),
        hardlink("take", "escape/victim"),
        member("take", b"", mode=0o777),
    ),
    "name with ..": (member("../victim", b"pwned"),),
    "name with .. in the middle": (directory("a"), member("a/../../victim", b"pwned")),
    "file below a relative symlink out": (symlink("out", ".."), member("out/victim", b"pwned")),
    "file over a symlink out": (symlink("out", "../victim"), member("out", b"pwned")),
    "directory mode over a symlink out": (symlink("out", ".."), directory("out", 0o777), member("out/victim", b"x")),
    "directory, then a symlink of its name": (
        directory("out", 0o777),
        symlink("out", ".."),
        member("out/victim", b"x"),
    ),
    "children, then a symlink in their way": (
        directory("a", 0o777),
        directory("a/b", 0o777),
        symlink("a", ".."),
        member("a/victim", b"pwned"),
    ),
    "two symlinks that go up in turn": (
        directory("a"),
        symlink("a/up", ".."),
        symlink("up2", "a/up/.."),
        member("up2/victim", b"pwned"),
    ),
    "hard link to a name with ..": (hardlink("take", "../victim"), member("take", b"pwned")),
    "hard link through a symlink out": (symlink("out", ".."), hardlink("take", "out/victim")),
    "hard link to a symlink out, written through": (
        symlink("out", "../victim"),
        hardlink("take", "out"),
        member("take", b"pwned"),
    ),
    "fifo over a symlink out": (symlink("out", "../victim"), member("out", kind=tarfile.FIFOTYPE, mode=0o777)),
    "hard link to a directory": (directory("d"), hardlink("take", "d")),
    "hard link to the root": (hardlink("take", "."),),
    "hard link forward": (hardlink("take", "later"), member("later", b"x")),
    "the root as a symlink": (symlink(".", ".."), member("victim", b"pwned")),
    "the root as a file": (member("./", b"pwned"),),
    "procfs by a magic link": (symlink("out", "/proc/self/cwd"), member("out/victim", b"pwned")),
    "a loop of symlinks": (symlink("a", "b"), symlink("b", "a"), member("a/x", b"x")),
    "a file as a parent": (member("a", b"x"), member("a/b", b"x")),
    "a dangling symlink as a parent": (symlink("a", "nowhere"), member("a/b", b"x")),
    "a name too long": (member("n" * 256, b"x"),),
    "a path too long": (member("n/" * 2100 + "x", b"x"),),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_outside_the_root_changes(name: str, root: Path) -> None:
    """A hostile archive is refused with its entry named, or lands inside the root; the victim beside it stays."""
    # Both ends are good; the fixture looks at what is outside, the next test at messages.
    with contextlib.suppress(ImageError):
        extract(root, archive(directory("proc/self"), *HOSTILE[name]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("name with ..", "at or after '../victim': '../victim' contains '..'"),
        ("hard link to a name with ..", "'../victim' contains '..'"),
        ("hard link through a symlink out", "a hard link to 'out/victim', which the archive does not have before it"),
        ("hard link to a directory", "a hard link to the directory 'd'"),
        ("hard link to the root", "a hard link to the root"),
        ("hard link forward", "a hard link to 'later', which the archive does not have before it"),
        ("the root as a symlink", "it makes its root something else than a directory"),
        ("a loop of symlinks", "cannot extract 'a/x' into the store: Too many levels of symbolic links (errno 40)"),
        ("a file as a parent", "cannot extract 'a/b' into the store: Not a directory (errno 20)"),
        ("a dangling symlink as a parent", "'a' is a symlink that leads nowhere"),
        ("a path too long", "File name too long (errno 36)"),
    ],
)
def test_a_refused_archive_says_why(name: str, message: str, root: Path) -> None:
    """The message names the archive, the entry and the trick."""
    with pytest.raises(ImageError) as caught:
        extract(root, archive(*HOSTILE[name]))
    assert str(caught.value).startswith("image 'img': img.tar")
    assert message in str(caught.value)


def test_terminal_escapes_in_names_are_not_printed(root: Path) -> None:
    """A message shows control characters escaped, and can be encoded as UTF-8 whatever the name's bytes are."""
    with pytest.raises(ImageError) as caught:
        extract(root, archive(member("\x1b[2J\udcff/..", b"")))
    assert "\x1b" not in str(caught.value)
    assert b"\\x1b[2J" in str(caught.value).encode()


def test_the_limit_on_entries_counts_parents_too(root: Path) -> None:
    """One entry with a hundred parents is a hundred and one."""
    deep = archive(member("d/" * 100 + "file", b"x"))
    assert extract(root, deep, limits=ExtractLimits(entries=101)).entries == 101
    with pytest.raises(ImageError, match="more entries than the limit of 100"):
        extract(root, archive(member("e/" * 100 + "file", b"x")), limits=ExtractLimits(entries=100))


def _with_headers(entry: Member, **headers: str) -> Member:
    info, data = entry
    info.pax_headers = headers
    return info, data


@pytest.mark.parametrize(
    "entry",
    [
        _with_headers(directory("d"), **{"SCHILY.xattr.user.x": "x" * 1000}),
        _with_headers(directory("d"), **{f"SCHILY.xattr.security.{'x' * 1000}": "x"}),
        directory("./" * 500 + "d"),
        _with_headers(directory("d"), linkpath="x" * 1000),
        member("x" * 1000, kind=tarfile.CHRTYPE),
    ],
    ids=["attribute", "attribute's name", "name", "target", "device's name"],
)
def test_what_is_kept_until_the_end_is_limited(root: Path, entry: Member) -> None:
    """What is said of directories and devices can't fill the memory: a megabyte of it may compress to nothing."""
    other = archive(member("file", b"x"), entry)
    assert extract(root, other, limits=ExtractLimits(kept_bytes=1100)).entries == 2
    with pytest.raises(ImageError, match="directories and devices take more than the limit of 900 B"):
        extract(root, other, limits=ExtractLimits(kept_bytes=900))


def test_a_truncated_archive_names_where_it_broke(root: Path) -> None:
    """The message has the latest entry's name, so that the place can be found."""
    data = archive(member("first", b"x"), member("second", b"y" * 5000))
    with pytest.raises(ImageError, match=r"img\.tar, at or after 'second': it ends in the middle of an entry"):
        extract(root, data[: 512 * 5])


def test_a_tree_deeper_than_path_max_is_built_and_stays_inside(root: Path) -> None:
    """Symlinks can take an archive deeper than any path; that is no way out, and ends without an error."""
    half = f"{'x' * 200}/" * 12
    extract(root, archive(directory(half), symlink("half", half), member(f"half/{half}file", b"deep")))
    descriptor = os.open(root / half, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert os.stat(f"{half}file", dir_fd=descriptor).st_size == len("deep")
    finally:
        os.close(descriptor)
