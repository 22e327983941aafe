"""References of images: names from pyproject.toml, and paths."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_crate.errors import ImageError, SpecError
from pytest_crate.images.names import read_image_names, resolve_reference


def write(directory: Path, text: str) -> str:
    path = directory / "pyproject.toml"
    path.write_text(text)
    return str(path)


def test_names_are_relative_to_the_pyproject_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative, absolute and home-relative paths of the table come out absolute, whatever the working directory."""
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.chdir("/")
    pyproject = write(
        tmp_path, '[tool.pytest-crate.images]\ndebian12 = "images/../d.tar"\nhost = "/srv/root"\nmine = "~/m.tar"\n'
    )
    assert read_image_names(pyproject) == {
        "debian12": str(tmp_path / "d.tar"),
        "host": "/srv/root",
        "mine": "/home/ada/m.tar",
    }


@pytest.mark.parametrize("text", ["", "[tool.other]\nx = 1\n", "[tool.pytest-crate]\n"])
def test_a_project_without_the_table_names_no_images(text: str, tmp_path: Path) -> None:
    """Missing tables are no error."""
    assert read_image_names(write(tmp_path, text)) == {}


def test_a_project_without_the_file_names_no_images(tmp_path: Path) -> None:
    """A missing pyproject.toml is no error."""
    assert read_image_names(str(tmp_path / "pyproject.toml")) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tool", "expected a readable TOML file"),
        ("tool = 3", "a table of names and paths"),
        ("[tool]\npytest-crate = 1", "a table of names and paths"),
        ("[tool.pytest-crate]\nimages = ['a']", "a table of names and paths"),
        ("[tool.pytest-crate.images]\ndebian = 12", r"images\.debian=12: expected a path"),
        ('[tool.pytest-crate.images]\ndebian = ""', r"images\.debian='': expected a path"),
        ('[tool.pytest-crate.images]\n"./x" = "y"', "a name that does not start with"),
    ],
)
def test_a_wrong_table_says_where_and_what(text: str, message: str, tmp_path: Path) -> None:
    """Each mistake names the file, the key, the value and what was expected."""
    pyproject = write(tmp_path, text)
    with pytest.raises(SpecError, match=message) as caught:
        read_image_names(pyproject)
    assert caught.value.origin == pyproject


def test_a_file_that_is_not_utf8_is_reported(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 are the user's mistake, not a crash."""
    (tmp_path / "pyproject.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(SpecError, match="expected a readable TOML file"):
        read_image_names(str(tmp_path / "pyproject.toml"))


def test_a_name_resolves_to_its_path_and_a_path_to_itself(tmp_path: Path) -> None:
    """Names win; paths start with a dot, a slash or a tilde and are relative to the given directory."""
    archive = tmp_path / "rootfs.tar"
    archive.write_bytes(b"")
    names = {"debian12": str(archive)}
    assert resolve_reference("debian12", names=names, directory="/") == str(archive)
    assert resolve_reference("./rootfs.tar", names=names, directory=str(tmp_path)) == str(archive)
    assert resolve_reference(str(archive), names={}, directory="/") == str(archive)
    assert resolve_reference(str(tmp_path), names={}, directory="/") == str(tmp_path)


def test_an_unknown_name_lists_the_known_ones_and_says_how_to_add_it(tmp_path: Path) -> None:
    """The message is enough to mend it."""
    with pytest.raises(ImageError) as caught:
        resolve_reference("debain12", names={"debian12": "/d", "alpine": "/a"}, directory=str(tmp_path))
    assert str(caught.value) == (
        "image 'debain12': no image has this name; known names are 'alpine' or 'debian12'; "
        'add it to [tool.pytest-crate.images] in pyproject.toml, as debain12 = "path/to/rootfs.tar.gz"'
    )
    with pytest.raises(ImageError, match="no names are known"):
        resolve_reference("debian12", names={}, directory=str(tmp_path))


def test_a_bare_file_name_is_no_path_but_gets_a_hint(tmp_path: Path) -> None:
    """A file that is there under an unknown name is probably what was meant."""
    (tmp_path / "rootfs.tar").write_bytes(b"")
    with pytest.raises(ImageError, match=r'if you mean the path, write "\./rootfs\.tar"'):
        resolve_reference("rootfs.tar", names={}, directory=str(tmp_path))


def test_what_is_not_there_or_no_image_fails_early(tmp_path: Path) -> None:
    """A missing file, a dangling link, a FIFO and a name with a null byte each say what is wrong with the path."""
    os.symlink("nowhere", tmp_path / "dangling")
    os.mkfifo(tmp_path / "pipe")
    for name, message in {
        "missing.tar": "No such file or directory",
        "dangling": "No such file or directory",
        "pipe": "neither a file nor a directory",
        "a\0b": "null",
    }.items():
        with pytest.raises(ImageError, match=message):
            resolve_reference(f"./{name}", names={}, directory=str(tmp_path))
