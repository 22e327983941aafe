"""The store: hits, misses, content addressing, and errors that leave nothing behind."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import filelock
import pytest

from pytest_crate.errors import ImageError, SandboxError
from pytest_crate.images import ArchiveFile, ExtractLimits, Image, ImageStore, default_store_root
from pytest_crate.images.ownership import current_ownership


def archive(**files: bytes) -> bytes:
    """Return a tar archive of executable files by name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o755
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(str(tmp_path / "store"))


@pytest.fixture
def image_file(tmp_path: Path) -> Path:
    path = tmp_path / "rootfs.tar.gz"
    path.write_bytes(gzip.compress(archive(sh=b"#!", init=b"x" * 100_000)))
    return path


def directory(tmp_path: Path) -> Path:
    """Return the part of the store that this user's images are in."""
    return tmp_path / "store" / f"v1-{current_ownership().name}"


def listing(tmp_path: Path, name: str) -> list[str]:
    return sorted(os.listdir(directory(tmp_path) / name))


def sha256(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_an_archive_is_extracted_once_and_found_again(store: ImageStore, image_file: Path, tmp_path: Path) -> None:
    """The second opener, in another store object, gets the same directory and hears of no extraction."""
    lines: list[str] = []
    image = store.open(str(image_file), "img", lines.append)
    assert lines == ["extracting img…"]
    assert image == Image(reference="img", rootfs=image.rootfs, digest=sha256(image_file))
    assert Path(image.rootfs, "sh").read_bytes() == b"#!"
    inode = os.stat(image.rootfs).st_ino
    again = ImageStore(str(tmp_path / "store")).open(str(image_file), "other name", lines.append)
    assert (again.rootfs, again.digest, again.reference) == (image.rootfs, image.digest, "other name")
    assert os.stat(again.rootfs).st_ino == inode
    assert lines == ["extracting img…"]


def test_the_store_keeps_what_it_needs_and_nothing_else(store: ImageStore, image_file: Path, tmp_path: Path) -> None:
    """An image has its root filesystem and a description; nobody else may enter, as setuid programs are in it."""
    image = store.open(str(image_file), "img")
    assert listing(tmp_path, "images") == [image.digest.replace(":", "-")]
    assert listing(tmp_path, "staging") == []
    assert directory(tmp_path).stat().st_mode & 0o777 == 0o700
    assert json.loads(Path(image.rootfs).with_name("image.json").read_text()) == {
        "reference": "img",
        "origin": str(image_file),
        "digest": image.digest,
        "entries": 2,
        "data_bytes": 100_002,
        "devices_skipped": 0,
        "xattrs_skipped": 0,
    }


def test_equal_content_is_one_image_wherever_it_is(store: ImageStore, image_file: Path, tmp_path: Path) -> None:
    """A copy elsewhere, or the same file touched, is the same image; a link to the file is the same file."""
    image = store.open(str(image_file), "img")
    inode = os.stat(image.rootfs).st_ino
    copy = tmp_path / "copy.tar"
    copy.write_bytes(image_file.read_bytes())
    os.symlink(image_file, tmp_path / "link")
    os.utime(image_file, (1, 1))
    for path in (copy, image_file, tmp_path / "link"):
        again = store.open(str(path), "img")
        assert (again.rootfs, os.stat(again.rootfs).st_ino) == (image.rootfs, inode)
    assert len(listing(tmp_path, "images")) == 1
    assert listing(tmp_path, "staging") == []


def test_changed_content_is_another_image(store: ImageStore, image_file: Path, tmp_path: Path) -> None:
    """A file rewritten in place, with size and mtime as before, is noticed by its ctime; the old image stays."""
    first = store.open(str(image_file), "img")
    status = image_file.stat()
    data = bytearray(image_file.read_bytes())
    data[4:8] = b"time"  # gzip's header has a time that nothing checks
    image_file.write_bytes(data)
    os.utime(image_file, ns=(status.st_atime_ns, status.st_mtime_ns))
    second = store.open(str(image_file), "img")
    assert (image_file.stat().st_size, image_file.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert second.digest == sha256(image_file) != first.digest
    assert len(listing(tmp_path, "images")) == 2


def test_a_rootfs_that_was_deleted_is_extracted_anew(store: ImageStore, image_file: Path) -> None:
    """Somebody who cleans up by hand, in whole or in part, does no harm."""
    image = store.open(str(image_file), "img")
    os.rename(image.rootfs, f"{image.rootfs}-away")
    assert store.open(str(image_file), "img") == image
    assert Path(image.rootfs, "sh").read_bytes() == b"#!"


def test_a_directory_is_used_as_it_is(store: ImageStore, tmp_path: Path) -> None:
    """A root filesystem that is unpacked already has no digest and takes no room in the store."""
    (tmp_path / "rootfs" / "bin").mkdir(parents=True)
    image = store.open(str(tmp_path / "rootfs"), "./rootfs")
    assert image == Image(reference="./rootfs", rootfs=str(tmp_path / "rootfs"), digest="")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "content", [b"", b"no archive" * 100, gzip.compress(b"nor this" * 200)], ids=["empty", "plain", "compressed"]
)
def test_what_is_no_archive_is_not_said_to_be_extracted(store: ImageStore, tmp_path: Path, content: bytes) -> None:
    """Nobody hears of an extraction that never begins."""
    (tmp_path / "file").write_bytes(content)
    lines: list[str] = []
    with pytest.raises(ImageError):
        store.open(str(tmp_path / "file"), "img", lines.append)
    assert lines == []


def test_progress_is_told_every_64_mib(store: ImageStore, tmp_path: Path) -> None:
    """Long work is heard of: once at the start and once per 64 MiB of archive."""
    path = tmp_path / "big.tar.gz"
    path.write_bytes(gzip.compress(archive(sh=bytes(130 << 20)), compresslevel=1))
    lines: list[str] = []
    store.open(str(path), "big", lines.append)
    assert [re.sub(r"\d+(\.\d+)?", "N", line) for line in lines] == [
        "extracting big…",
        "extracting big: N MiB…",
        "extracting big: N MiB…",
    ]
    assert [int(match) for match in re.findall(r": (\d+)", "\n".join(lines))] == [64, 128]


def write_layers(directory: Path, *layers: bytes) -> list[Path]:
    paths = []
    for number, data in enumerate(layers):
        path = directory / f"layer{number}.tar"
        path.write_bytes(data)
        paths.append(path)
    return paths


class Layers:
    """A source of several layers, as registries will be."""

    origin = "somewhere"

    def __init__(self, *paths: Path) -> None:
        self.paths = paths

    def identity(self) -> str:
        return " ".join(str(path) for path in self.paths)

    def layers(self) -> Iterator[BinaryIO]:
        for path in self.paths:
            yield path.open("rb")


def test_layers_of_a_source_make_one_root(store: ImageStore, tmp_path: Path) -> None:
    """Upper layers win; the digest is of all layers in order."""
    paths = write_layers(tmp_path, archive(a=b"1", b=b"1"), archive(b=b"2", c=b"2"))
    image = store.open(Layers(*paths), "img")
    assert {path.name: path.read_bytes() for path in Path(image.rootfs).iterdir()} == {"a": b"1", "b": b"2", "c": b"2"}
    assert image.digest != store.open(Layers(*reversed(paths)), "img").digest


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"no archive", "not a tar archive"),
        (bytes(10240), "rootfs.tar is empty, and no root filesystem"),
        (archive(sh=b"x" * 10_000)[:5000], "at or after 'sh': it ends in the middle of an entry: it is truncated"),
        (
            gzip.compress(archive(sh=os.urandom(10_000)), mtime=0)[:5000],
            "its compressed data ends too early: it is truncated",
        ),
        (gzip.compress(archive(sh=b"x"), mtime=0)[:-4] + b"\0\0\0\1", "its compressed data is damaged"),
        (archive(**{"../sh": b"x"}), "'../sh' contains '..'"),
        (archive(**{"manifest.json": b"[]", "0123/layer.tar": b"x"}), "use 'docker export'"),
        (archive(sh=bytes(2 << 20)), "it is larger than the limit of 1 MiB"),
        (gzip.compress(archive(sh=bytes(2 << 20))), "it is larger than the limit of 1 MiB"),
        (archive(sh=b"x") + bytes(2 << 20), "it is larger than the limit of 1 MiB"),
        (archive(**{f"f{number}": b"" for number in range(60)}), "it has more entries than the limit of 50"),
    ],
)
def test_a_bad_archive_is_an_error_and_leaves_nothing(data: bytes, message: str, tmp_path: Path) -> None:
    """Each names the image, the file and what is wrong; the store has neither an image nor a leftover."""
    path = tmp_path / "rootfs.tar"
    path.write_bytes(data)
    store = ImageStore(str(tmp_path / "store"), limits=ExtractLimits(size_bytes=1 << 20, entries=50))
    with pytest.raises(ImageError) as caught:
        store.open(str(path), "img")
    assert str(caught.value).startswith(f"image 'img': {path}")
    assert message in str(caught.value)
    assert (listing(tmp_path, "images"), listing(tmp_path, "staging")) == ([], [])


def test_what_is_missing_or_no_file_is_an_error(store: ImageStore, tmp_path: Path) -> None:
    """The message has the path and the reason; a FIFO is not waited for."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").mkdir()
    for name, message in {
        "missing.tar": "cannot read it: {}: No such file or directory (errno 2)",
        "pipe": "cannot read it: {}: neither a file nor a directory (errno 22)",
        "empty": "{} is empty, and no root filesystem",
    }.items():
        path = tmp_path / name
        with pytest.raises(ImageError) as caught:
            store.open(str(path), "img")
        assert str(caught.value) == f"image 'img': {message.format(path)}"


def test_an_archive_that_changes_meanwhile_is_an_error(store: ImageStore, image_file: Path, tmp_path: Path) -> None:
    """A file that is being written while it is read is not kept under a digest of half its bytes."""

    def touch(line: str) -> None:
        os.utime(image_file, (1, 1))

    with pytest.raises(ImageError, match=r"rootfs\.tar\.gz changed while it was being extracted"):
        store.open(str(image_file), "img", touch)
    assert (listing(tmp_path, "images"), listing(tmp_path, "staging")) == ([], [])


def test_an_interrupted_extraction_leaves_nothing(store: ImageStore, image_file: Path, tmp_path: Path) -> None:
    """Ctrl-C comes through, and the lock is free and the store clean after it."""

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.open(str(image_file), "img", interrupt)
    assert (listing(tmp_path, "images"), listing(tmp_path, "staging")) == ([], [])
    assert store.open(str(image_file), "img").digest == sha256(image_file)


def test_a_wait_for_another_process_is_told(store: ImageStore, image_file: Path, tmp_path: Path) -> None:
    """Who finds the lock held hears so, and goes on when it is released."""
    directory(tmp_path).mkdir(parents=True, mode=0o700)
    lock = filelock.FileLock(str(directory(tmp_path) / "lock"))
    lines: list[str] = []

    def release(line: str) -> None:
        lines.append(line)
        lock.release()

    lock.acquire()
    store.open(str(image_file), "img", release)
    assert lines == [f"waiting for another process that extracts an image into {tmp_path}/store", "extracting img…"]


def test_leftovers_go_when_the_store_is_used_next(store: ImageStore, image_file: Path, tmp_path: Path) -> None:
    """A hit cleans up after a killed process as a miss does, unless another process is at work there."""
    store.open(str(image_file), "img")
    leftover = directory(tmp_path) / "staging" / "0123" / "rootfs"
    leftover.mkdir(parents=True)
    (leftover / "file").write_text("x")
    with filelock.FileLock(str(directory(tmp_path) / "lock")):
        store.open(str(image_file), "img")
        assert listing(tmp_path, "staging") == ["0123"]
    store.open(str(image_file), "img")
    assert listing(tmp_path, "staging") == []


def test_a_store_that_others_can_write_to_is_refused(store: ImageStore, image_file: Path, tmp_path: Path) -> None:
    """A directory that anybody could have filled is not trusted, on a hit as on a miss."""
    store.open(str(image_file), "img")
    directory(tmp_path).chmod(0o777)
    with pytest.raises(ImageError, match=r"must be a directory that belongs to user \d+ and that nobody else can"):
        store.open(str(image_file), "img")


def test_a_planted_symlink_is_no_store(store: ImageStore, image_file: Path, tmp_path: Path) -> None:
    """A store that is a link to elsewhere is refused."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (tmp_path / "store").mkdir()
    os.symlink(elsewhere, directory(tmp_path))
    with pytest.raises(ImageError, match="must be a directory"):
        store.open(str(image_file), "img")
    assert os.listdir(elsewhere) == []


def test_a_file_in_the_stores_place_is_an_error(store: ImageStore, image_file: Path, tmp_path: Path) -> None:
    """The message names the store and what to do."""
    (tmp_path / "store").write_text("")
    with pytest.raises(
        ImageError,
        match=r"store: .*; another place can be named by --store, ini crate_image_store or XDG_CACHE_HOME",
    ):
        store.open(str(image_file), "img")


def test_the_default_store_is_where_caches_belong() -> None:
    """XDG's rules: its variable if absolute, else ~/.cache, with the password database's home if HOME is unset."""
    assert default_store_root({"XDG_CACHE_HOME": "/c", "HOME": "/h"}) == "/c/pytest-crate"
    assert default_store_root({"XDG_CACHE_HOME": "relative", "HOME": "/h"}) == "/h/.cache/pytest-crate"
    assert default_store_root({"HOME": "/h"}) == "/h/.cache/pytest-crate"
    assert default_store_root({}).endswith("/.cache/pytest-crate")


def test_without_any_home_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's user of a number that has no name has no home directory."""

    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    with pytest.raises(ImageError, match=r"no home directory .*; another place can be named by --store"):
        default_store_root({})


def test_an_image_that_does_not_reach_the_disk_is_not_kept(
    store: ImageStore, image_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of syncfs(2) is one of the store's, and the image is not there."""

    def fail(step: str, name: str, *args: object, path: str = "") -> int:
        raise SandboxError(step, syscall=name, path="rootfs", errno=5)

    monkeypatch.setattr("pytest_crate.kernel.libc.libc_call", fail)
    with pytest.raises(ImageError, match=r"cannot keep it .*: syncfs\(rootfs\): Input/output error \(errno 5\)"):
        store.open(str(image_file), "img")
    assert (listing(tmp_path, "images"), listing(tmp_path, "staging")) == ([], [])


def test_an_archive_file_knows_itself_by_more_than_its_name(image_file: Path) -> None:
    """A replaced file has another identity."""
    source = ArchiveFile(path=str(image_file))
    before = source.identity()
    assert source.identity() == before
    replacement = image_file.with_name("new")
    replacement.write_bytes(image_file.read_bytes())
    os.replace(replacement, image_file)
    assert source.identity() != before
