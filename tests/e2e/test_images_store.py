"""The store among processes, users, full and read-only disks, and under an overlay."""

from __future__ import annotations

import gzip
import io
import os
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from pytest_crate.errors import ImageError
from pytest_crate.images import Image, ImageStore, resolve_reference
from pytest_crate.images.tree import remove_tree
from pytest_crate.kernel import libc
from tests.conftest import temporary_prefix

as_root = pytest.mark.needs("root")

NOBODY = 65534


def archive(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.uid = len(data), 0o755, 1234
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that nobody's processes may enter and write to; tmp_path is below one that only we may enter."""
    path = Path(tempfile.mkdtemp(prefix=temporary_prefix("store")))
    path.chmod(0o777)
    yield path
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    remove_tree(descriptor, os.fsencode(path.name))
    os.close(descriptor)


def start(function: Callable[[], object], *, user: int | None = None, private_mounts: bool = False) -> tuple[int, int]:
    """Run a function in a child; return its pid and a pipe from which its result, or its error, can be read."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    try:
        if private_mounts:
            libc.unshare("make mounts private", libc.CLONE_NEWNS)
            libc.mount("make mounts private", "none", "/", flags=libc.MS_REC | libc.MS_PRIVATE)
        if user is not None:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            # Else /proc/self is root's (proc(5)), and an id map can't be written.
            libc.prctl("be an ordinary process of the user", libc.PR_SET_DUMPABLE, 1)
        result = str(function())
    except BaseException as error:  # noqa: BLE001 - reported, and nothing of pytest's may run on in the child
        result = f"{type(error).__name__}: {error}"
    os.write(writer, result.encode(errors="backslashreplace"))
    os._exit(0)


def finish(child: int, reader: int) -> str:
    with open(reader, encoding="utf-8") as file:
        result = file.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, result
    return result


def run(function: Callable[[], object], *, user: int | None = None, private_mounts: bool = False) -> str:
    return finish(*start(function, user=user, private_mounts=private_mounts))


def names(store: Path, *below: str) -> list[str]:
    """Return what the only part of a store has, below the given directory."""
    (part,) = store.glob("v1-*")
    return sorted(os.listdir(part.joinpath(*below)))


def test_ten_processes_at_once_extract_once(tmp_path: Path) -> None:
    """All get the same root filesystem, complete; one of them extracted it."""
    path = tmp_path / "rootfs.tar.gz"
    path.write_bytes(gzip.compress(archive(**{f"file{number}": os.urandom(20_000) for number in range(300)})))

    def open_image() -> str:
        lines: list[str] = []
        image = ImageStore(str(tmp_path / "store")).open(str(path), "img", lines.append)
        extracted = sum(line.startswith("extracting") for line in lines)
        return f"{os.stat(image.rootfs).st_ino} {len(os.listdir(image.rootfs))} {extracted}"

    results = [finish(*child).split() for child in [start(open_image) for _ in range(10)]]
    assert {(inode, count) for inode, count, _ in results} == {(results[0][0], "300")}
    assert sum(int(extracted) for _, _, extracted in results) == 1
    assert names(tmp_path / "store", "staging") == []


class KilledMidway:
    """A source whose reader is killed by SIGKILL in the middle of the archive."""

    origin = "killer"

    def identity(self) -> str:
        return "killer"

    def layers(self) -> Iterator[BinaryIO]:
        yield _Killer(archive(first=b"x" * 5000, second=b"y" * 5000))


class _Killer(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > 8000:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(size)


def test_an_extraction_killed_midway_leaves_no_image_and_the_next_opener_cleans_up(tmp_path: Path) -> None:
    """After SIGKILL there is no image; the next opener, of whatever image, is not kept waiting and removes the rest."""
    child, reader = start(lambda: ImageStore(str(tmp_path / "store")).open(KilledMidway(), "img"))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    os.close(reader)
    assert names(tmp_path / "store", "images") == []
    (leftover,) = names(tmp_path / "store", "staging")
    assert names(tmp_path / "store", "staging", leftover, "rootfs") == ["first", "second"]
    path = tmp_path / "rootfs.tar"
    path.write_bytes(archive(sh=b"x"))
    lines: list[str] = []
    image = ImageStore(str(tmp_path / "store")).open(str(path), "img", lines.append)
    assert lines == ["extracting img…"]
    assert os.listdir(image.rootfs) == ["sh"]
    assert names(tmp_path / "store", "staging") == []


@as_root
@pytest.mark.parametrize("options", ["size=1m", "nr_inodes=30"])
def test_a_full_disk_is_an_error_and_leaves_nothing(options: str, tmp_path: Path) -> None:
    """Out of blocks or out of inodes: the message names the entry and the store, which is as empty as before."""
    store, path = tmp_path / "store", tmp_path / "rootfs.tar"
    store.mkdir()
    path.write_bytes(archive(**{f"file{number}": b"x" * 100_000 for number in range(40)}))

    def fill() -> str:
        libc.mount("mount a small disk", "tmpfs", str(store), "tmpfs", data=options)
        try:
            ImageStore(str(store)).open(str(path), "img")
        except ImageError as error:
            return f"{error} {names(store, 'images')} {names(store, 'staging')}"
        return "extracted"

    result = run(fill, private_mounts=True)
    assert result.startswith(f"image 'img': {path}: cannot extract 'file")
    assert (
        f"into the store {store}: No space left on device (errno 28); another place can be named by --store" in result
    )
    assert result.endswith(" [] []")


@as_root
def test_a_read_only_store_serves_what_it_has_and_says_why_it_takes_no_more(tmp_path: Path) -> None:
    """A hit needs no write. A miss names the store, the reason and the way out."""
    store = tmp_path / "store"
    for name in ("known", "new"):
        (tmp_path / f"{name}.tar").write_bytes(archive(sh=name.encode()))
    known = ImageStore(str(store)).open(str(tmp_path / "known.tar"), "known")

    def use() -> str:
        libc.mount("see the store", str(store), str(store), flags=libc.MS_BIND)
        libc.mount("make it read-only", "none", str(store), flags=libc.MS_REMOUNT | libc.MS_BIND | libc.MS_RDONLY)
        assert ImageStore(str(store)).open(str(tmp_path / "known.tar"), "known") == known
        try:
            ImageStore(str(store)).open(str(tmp_path / "new.tar"), "new")
        except ImageError as error:
            return str(error)
        return "extracted"

    result = run(use, private_mounts=True)
    assert result.startswith(f"image 'new': cannot keep it in the store {store}: ")
    assert result.endswith(
        "Read-only file system (errno 30); "
        "another place can be named by --store, ini crate_image_store or XDG_CACHE_HOME"
    )


@as_root
def test_a_user_without_permission_is_told_what_is_denied(directory: Path) -> None:
    """An archive that may not be read, and a store that may not be written, are told apart."""
    secret, public, store = directory / "secret.tar", directory / "public.tar", directory / "store"
    for path in (secret, public):
        path.write_bytes(archive(sh=b"x"))
    secret.chmod(0o600)
    public.chmod(0o644)
    store.mkdir(mode=0o755)

    def use(path: Path) -> Callable[[], Image]:
        return lambda: ImageStore(str(store)).open(str(path), "img")

    assert run(use(secret), user=NOBODY) == (
        f"ImageError: image 'img': cannot read it: {secret}: Permission denied (errno 13)"
    )
    assert run(lambda: resolve_reference(str(secret), names={}, directory="/"), user=NOBODY) == (
        f"ImageError: image '{secret}': {secret}: Permission denied"
    )
    denied = f"ImageError: image 'img': cannot keep it in the store {store}: {store}/v1-uid{NOBODY}: Permission denied"
    assert run(use(public), user=NOBODY).startswith(denied)
    assert os.listdir(store) == []


@as_root
def test_root_and_a_user_keep_images_apart(directory: Path) -> None:
    """In one store, root's extraction has the archive's owners and the user's is the user's own."""
    path, store = directory / "rootfs.tar", directory / "store"
    path.write_bytes(archive(sh=b"x"))
    path.chmod(0o644)
    store.mkdir()
    store.chmod(0o777)

    def open_image() -> str:
        return ImageStore(str(store)).open(str(path), "img").rootfs

    roots, users = open_image(), run(open_image, user=NOBODY)
    assert roots.startswith(f"{store}/v1-root/images/sha256-")
    assert users.startswith(f"{store}/v1-uid{NOBODY}/images/sha256-")
    assert os.stat(f"{roots}/sh").st_uid == 1234
    assert os.stat(f"{users}/sh").st_uid == NOBODY


@as_root
def test_a_store_of_another_user_is_refused(directory: Path) -> None:
    """A directory planted under our name by somebody else is not used, though we, being root, could."""
    (directory / "rootfs.tar").write_bytes(archive(sh=b"x"))
    planted = directory / "store" / "v1-root"
    planted.mkdir(parents=True, mode=0o700)
    os.chown(planted, NOBODY, NOBODY)
    with pytest.raises(ImageError, match=f"has mode drwx------ and belongs to user {NOBODY}"):
        ImageStore(str(directory / "store")).open(str(directory / "rootfs.tar"), "img")


@as_root
def test_a_user_can_mount_an_image_copy_on_write_and_it_stays_as_it_was(directory: Path) -> None:
    """In a user namespace an overlay on the image is written, files of mode 000 are read, the image is unchanged."""
    path, store = directory / "rootfs.tar", directory / "store"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, mode in {"secret": 0, "file": 0o644}.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = 5, mode
            tar.addfile(info, io.BytesIO(b"image"))
    path.write_bytes(buffer.getvalue())
    path.chmod(0o644)
    for name in ("store", "cow", "merged"):
        (directory / name).mkdir()
        (directory / name).chmod(0o777)
    rootfs = run(lambda: ImageStore(str(store)).open(str(path), "img").rootfs, user=NOBODY)

    def change() -> str:
        libc.unshare("be root in a user namespace", libc.CLONE_NEWUSER | libc.CLONE_NEWNS)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {NOBODY} 1")
        Path("/proc/self/gid_map").write_text(f"0 {NOBODY} 1")
        cow, merged = directory / "cow", directory / "merged"
        libc.mount("hold changes", "tmpfs", str(cow), "tmpfs")
        (cow / "upper").mkdir()
        (cow / "work").mkdir()
        options = f"lowerdir={rootfs},upperdir={cow}/upper,workdir={cow}/work,userxattr"
        libc.mount("see the image", "overlay", str(merged), "overlay", data=options)
        (merged / "file").write_text("changed")
        return (merged / "secret").read_text() + (merged / "file").read_text()

    result = run(change, user=NOBODY)
    if "unshare" in result or "uid_map" in result:
        pytest.skip(f"no unprivileged user namespaces here: {result}")
    assert result == "imagechanged"
    assert {file.name: file.read_text() for file in Path(rootfs).iterdir()} == {"secret": "image", "file": "image"}


@as_root
def test_an_image_in_a_user_namespace_without_its_ids_is_the_users_own(tmp_path: Path) -> None:
    """Root of a namespace that maps one id can't keep owners, and shares nothing with real root's images."""
    path = tmp_path / "rootfs.tar"
    path.write_bytes(archive(sh=b"x"))

    def open_image() -> str:
        libc.unshare("be root in a user namespace", libc.CLONE_NEWUSER)
        Path("/proc/self/uid_map").write_text("0 0 1")
        return ImageStore(str(tmp_path / "store")).open(str(path), "img").rootfs

    rootfs = run(open_image)
    assert rootfs.startswith(f"{tmp_path}/store/v1-uid0/images/sha256-")
    assert os.stat(f"{rootfs}/sh").st_uid == 0


@pytest.mark.needs("zstd", "zstd program")
def test_zst_archives_are_read_as_zstd_writes_them(tmp_path: Path) -> None:
    """With the zstd extra, a .tar.zst is one more archive."""
    plain = tmp_path / "rootfs.tar"
    plain.write_bytes(archive(sh=b"x" * 100_000))
    subprocess.run(["zstd", "-q", str(plain)], check=True)
    image = ImageStore(str(tmp_path / "store")).open(f"{plain}.zst", "img")
    assert Path(image.rootfs, "sh").read_bytes() == b"x" * 100_000
