"""``pytest-crate image``: the store of images from the command line."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from pytest_crate.cli import main
from pytest_crate.images import ImageStore

Image = Callable[..., "tuple[int, list[str], str]"]


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Image:
    """Run ``pytest-crate image`` in an empty directory with a store of its own; give status, lines and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*args: str) -> tuple[int, list[str], str]:
        status = main(["image", *args])
        out, err = capfd.readouterr()
        return status, out.splitlines(), err

    return run


def archive(path: Path, *directories: str, data: bytes = b"x" * 2048) -> str:
    """Write a tarball of directories and one file, and return its digest."""
    with tarfile.open(path, "w") as tar:
        for name in directories:
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
        info = tarfile.TarInfo("file")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_an_empty_store(image: Image) -> None:
    """A store that does not exist yet is an empty one."""
    assert image("list") == (0, ["DIGEST              SIZE  EXTRACTED         FROM"], "")
    assert image("prune") == (0, [], "")


def test_add_list_path_rm(image: Image, tmp_path: Path) -> None:
    """An image added is listed with size and origin, its path is a root filesystem, and removed it is gone."""
    digest = archive(tmp_path / "rootfs.tar", "usr")
    assert image("add", "rootfs.tar") == (0, [digest], "")
    _, (_, line), _ = image("list")
    fields = line.split()
    assert [fields[0], *fields[1:3], fields[5]] == [digest[7:19], "2", "KiB", str(tmp_path / "rootfs.tar")]
    _, (path,), _ = image("path", "rootfs.tar")
    assert (Path(path) / "file").read_bytes() == b"x" * 2048
    assert image("rm", digest[7:13]) == (0, [digest], "")
    assert len(image("list")[1]) == 1
    assert not Path(path).exists()


def test_a_path_that_is_no_utf_8(tmp_path: Path) -> None:
    """A path is printed byte for byte, be its encoding the locale's or not."""
    name = os.fsdecode(b"caf\xe9.tar")
    archive(tmp_path / name, "usr")
    (tmp_path / os.fsdecode(b"caf\xe9") / "usr").mkdir(parents=True)
    printed = b""
    for arguments in (["path", os.fsdecode(b"caf\xe9")], ["add", name], ["list"]):
        done = subprocess.run(
            [sys.executable, "-m", "pytest_crate.cli", "image", *arguments, "--store", "store"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        printed += done.stdout
    assert printed.startswith(os.fsencode(tmp_path) + b"/caf\xe9\n")
    assert printed.endswith(b"/caf\xe9.tar\n")


def test_rm_wants_one_image(image: Image, tmp_path: Path) -> None:
    """A digest that means no image, or more than one, removes none."""
    for number in range(2):
        archive(tmp_path / f"{number}.tar", "usr", data=bytes([number]))
        image("add", f"{number}.tar")
    status, lines, err = image("rm", "sha256:")
    assert (status, lines) == (2, [])
    assert "it is the beginning of 2 digests; 'pytest-crate image list' shows them" in err
    assert "no image has this digest" in image("rm", "0" * 64)[2]
    assert len(image("list")[1]) == 3


def test_prune(image: Image, tmp_path: Path) -> None:
    """Images are pruned whose tarball is gone or has changed, and only those."""
    for name in ("kept", "gone", "changed"):
        archive(tmp_path / f"{name}.tar", "usr", data=name.encode())
        image("add", f"{name}.tar")
    (tmp_path / "gone.tar").unlink()
    archive(tmp_path / "changed.tar", "usr", data=b"other")
    status, lines, _ = image("prune")
    assert (status, sorted(line.split("/")[-1] for line in lines)) == (0, ["changed.tar", "gone.tar"])
    assert [line.split("/")[-1] for line in image("list")[1][1:]] == ["kept.tar"]
    assert image("prune")[1] == []


def test_a_directory_is_not_stored(image: Image, tmp_path: Path) -> None:
    """A directory is used where it is."""
    (tmp_path / "rootfs" / "usr").mkdir(parents=True)
    assert image("path", "rootfs") == (0, [str(tmp_path / "rootfs")], "")
    status, _, err = image("add", "rootfs")
    assert status == 2
    assert "a directory is used where it is: there is nothing to add" in err


@pytest.mark.needs("root", "overlay")
def test_an_image_in_use_stays(image: Image, tmp_path: Path) -> None:
    """While a crate uses an image it can't be removed, nor is it pruned."""
    digest = archive(tmp_path / "rootfs.tar", "usr")
    tools = [f"--mount={path}" for path in ("/usr", "/bin", "/lib", "/lib64") if Path(path).exists()]
    command = [sys.executable, "-m", "pytest_crate.cli", "run", *tools, "rootfs.tar", "sh", "-c", "echo ready; cat"]
    with subprocess.Popen(command, stdin=-1, stdout=-1) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        (tmp_path / "rootfs.tar").unlink()
        status, _, err = image("rm", digest)
        pruned = image("prune")[1]
        process.communicate()
    assert (status, pruned) == (2, [])
    assert "a crate uses it now: process " in err
    assert len(image("prune")[1]) == 1


@pytest.mark.needs("root", "overlay")
def test_an_image_that_is_taken_into_use_meanwhile_stays(
    image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crate that begins while it is looked for others keeps its files: the image isn't removed."""
    digest = archive(tmp_path / "rootfs.tar", "usr")
    image("add", "rootfs.tar")
    tools = [f"--mount={path}" for path in ("/usr", "/bin", "/lib", "/lib64") if Path(path).exists()]
    script = "echo ready; read line; ls /file; read line"
    command = [sys.executable, "-m", "pytest_crate.cli", "run", *tools, "rootfs.tar", "sh", "-c", script]
    users = ImageStore._users  # noqa: SLF001
    with ExitStack() as stack:
        begun: list[subprocess.Popen[bytes]] = []

        def look(store: ImageStore, wanted: str) -> list[int]:
            found = users(store, wanted)
            if not begun:
                begun.append(stack.enter_context(subprocess.Popen(command, stdin=-1, stdout=-1)))
                stack.callback(begun[0].kill)
                assert begun[0].stdout is not None
                assert begun[0].stdout.readline() == b"ready\n"
            return found

        monkeypatch.setattr(ImageStore, "_users", look)
        status, _, err = image("rm", digest)
        shown, _ = begun[0].communicate(b"\n\n")
    assert (status, shown) == (2, b"/file\n")
    assert "a crate uses it now: process " in err
    assert image("rm", digest)[0] == 0
