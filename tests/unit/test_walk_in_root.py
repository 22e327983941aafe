from __future__ import annotations

import errno
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import libc
from pytest_crate.kernel.walk_in_root import walk_in_root

Open = Callable[[int, str, int, int], int]
FLAGS = {
    "path": os.O_PATH,
    "path itself": os.O_PATH | os.O_NOFOLLOW,
    "directory": os.O_PATH | os.O_DIRECTORY,
    "directory itself": os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW,
    "read": os.O_RDONLY | os.O_NONBLOCK,
    "read itself": os.O_RDONLY | os.O_NOFOLLOW,
    "write": os.O_WRONLY,
    "create": os.O_WRONLY | os.O_CREAT,
    "create anew": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
}
LINKS = {
    "absolute": "/etc/passwd",
    "out": "../../../../etc/passwd",
    "up": "..",
    "top": "/",
    "slash": "etc/",
    "file-slash": "etc/passwd/",
    "chain": "absolute",
    "loop": "loop",
    "dangling": "/nowhere/at/all",
    "new": "/etc/new",
    "etc/back": "../dir/../etc/passwd",
}
NAMES = ("", ".", "..", "etc", "passwd", "dir", "missing", *(name.rpartition("/")[2] for name in LINKS))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A root with files of the names that are outside, too, and symlinks of every kind."""
    root = tmp_path / "root"
    for directory in ("etc", "dir"):
        (root / directory).mkdir(parents=True)
    (root / "etc/passwd").write_text("inside")
    for name, target in LINKS.items():
        (root / name).symlink_to(target)
    return root


@pytest.fixture
def root(tree: Path) -> Iterator[int]:
    descriptor = os.open(tree, os.O_PATH | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def _kernels(root: int, path: str, flags: int, mode: int) -> int:
    try:
        return libc.openat2_in_root("open", root, path, flags, mode)
    except SandboxError as error:
        raise OSError(error.errno, "refused") from error


def _opened(open_it: Open, root: int, tree: Path, path: str, flags: int) -> object:
    """Return what was opened, by its place and its kind, or by which error it wasn't; what was made goes again."""
    before = set(tree.rglob("*"))
    try:
        descriptor = open_it(root, path, flags | os.O_CLOEXEC, 0o640 if flags & os.O_CREAT else 0)
    except OSError as error:
        assert set(tree.rglob("*")) == before
        return os.strerror(error.errno or 0)
    try:
        made = set(tree.rglob("*")) - before
        for file in made:
            file.unlink()
        status = os.fstat(descriptor)
        return (
            None if made else status.st_ino,
            oct(status.st_mode),
            os.get_inheritable(descriptor),
            [str(file.relative_to(tree)) for file in made],
        )
    finally:
        os.close(descriptor)


@pytest.mark.needs("openat2")
@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS.keys())
def test_it_is_what_the_kernel_opens(root: int, tree: Path, flags: int) -> None:
    """Whatever the path, the same file is opened, or the same error is raised, as by openat2(2)."""
    different = []
    paths = {prefix + "/".join(names) for prefix in ("", "/") for names in itertools.product(NAMES, repeat=2)}
    paths |= {f"{first}/../{second}" for first, second in itertools.product(NAMES, repeat=2)}
    before = os.listdir("/proc/self/fd")
    for path in sorted(paths):
        kernels, ours = (_opened(each, root, tree, path, flags) for each in (_kernels, walk_in_root))
        if kernels != ours:
            different.append(f"{path!r}: the kernel: {kernels}, we: {ours}")
    assert different == []
    assert os.listdir("/proc/self/fd") == before


def test_symlinks_have_an_end(root: int, tree: Path) -> None:
    """Forty are followed, and no more."""
    (tree / "link0").symlink_to("etc")
    for count in range(1, 41):
        (tree / f"link{count}").symlink_to(f"link{count - 1}")
    descriptor = walk_in_root(root, "link39", os.O_PATH)
    assert os.fstat(descriptor).st_ino == (tree / "etc").stat().st_ino
    os.close(descriptor)
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        walk_in_root(root, "link40", os.O_PATH)


def test_nothing_leads_out_while_directories_are_exchanged(root: int, tree: Path, tmp_path: Path) -> None:
    """A directory may be moved out of the root, and a symlink put in its place, between any two steps of the walk: what
    is opened is in the root."""
    (tree / "dir/sub").mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    ended = threading.Event()

    def exchange() -> None:
        while not ended.is_set():
            os.rename(tree / "dir/sub", outside / "sub")
            (tree / "dir/sub").symlink_to("/../../..")
            (tree / "dir/sub").unlink()
            os.rename(outside / "sub", tree / "dir/sub")

    inside = {path.lstat().st_ino for path in (tree, *tree.rglob("*"))}
    thread = threading.Thread(target=exchange)
    thread.start()
    seen = set()
    try:
        for _ in range(3000):
            try:
                descriptor = walk_in_root(root, "dir/sub/../../../..", os.O_PATH)
            except FileNotFoundError:
                continue
            seen.add(os.fstat(descriptor).st_ino)
            os.close(descriptor)
    finally:
        ended.set()
        thread.join()
    assert seen
    assert seen <= inside


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_it_is_taken_where_there_is_no_openat2(
    root: int, tree: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A kernel without the call, or a filter that denies it, changes nothing; the path's own errors name the step."""

    def refused(*args: object, **options: object) -> int:
        raise SandboxError("open", syscall="openat2", errno=number)

    monkeypatch.setattr(libc, "openat2_in_root", refused)
    descriptor = libc.open_in_root("read it", root, "out", os.O_RDONLY)
    with os.fdopen(descriptor) as file:
        assert file.read() == "inside"
    with pytest.raises(SandboxError, match=r"read it: openat\(missing\): No such file or directory"):
        libc.open_in_root("read it", root, "missing", os.O_RDONLY)
