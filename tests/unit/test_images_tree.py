"""Removal of trees that hostile archives made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_crate.images.tree import remove_tree


@contextmanager
def opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def remove(directory: Path, name: bytes) -> None:
    with opened(directory) as parent:
        remove_tree(parent, name)


def test_a_tree_goes_and_what_its_symlinks_point_to_stays(tmp_path: Path) -> None:
    """Links to a file and a directory outside are removed, not followed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("kept")
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "file").write_text("gone")
    os.symlink(outside, tree / "a" / "directory-link")
    os.symlink(outside / "file", tree / "a" / "b" / "file-link")
    os.mkfifo(tree / "a" / "pipe")
    remove(tmp_path, b"tree")
    assert os.listdir(tmp_path) == ["outside"]
    assert (outside / "file").read_text() == "kept"


def test_a_symlink_itself_is_unlinked(tmp_path: Path) -> None:
    """A tree's name that is a link to a directory is only a link."""
    (tmp_path / "real").mkdir()
    os.symlink("real", tmp_path / "link")
    remove(tmp_path, b"link")
    assert os.listdir(tmp_path) == ["real"]


def test_nothing_to_remove_is_fine(tmp_path: Path) -> None:
    """Removal can be repeated."""
    remove(tmp_path, b"missing")
    assert os.listdir(tmp_path) == []


def test_directories_without_permissions_go_too(tmp_path: Path) -> None:
    """Modes that shut their owner out don't keep a tree alive."""
    (tmp_path / "tree" / "shut" / "inner").mkdir(parents=True)
    (tmp_path / "tree" / "shut" / "inner" / "file").write_text("x")
    (tmp_path / "tree" / "shut" / "inner").chmod(0)
    (tmp_path / "tree" / "shut").chmod(0)
    (tmp_path / "tree").chmod(0o500)
    remove(tmp_path, b"tree")
    assert os.listdir(tmp_path) == []


def test_a_tree_deeper_than_stack_and_path_limits_goes(tmp_path: Path) -> None:
    """2,100 levels, whose path of 4,200 bytes no call could take, are removed without a recursion as deep."""
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(2100):
        os.mkdir("d", dir_fd=descriptor)
        inner = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)
    remove(tmp_path, b"d")
    assert os.listdir(tmp_path) == []


def test_odd_names_go(tmp_path: Path) -> None:
    """Names with newlines and bytes that are no UTF-8 are no obstacle."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in (b"\xff\xfe", b"new\nline", b"-rf"):
        os.mkdir(os.path.join(os.fsencode(tree), name))
    remove(tmp_path, b"tree")
    assert os.listdir(tmp_path) == []


def test_what_can_not_be_removed_is_an_error(tmp_path: Path) -> None:
    """A descriptor of something that is no directory is reported, not passed over."""
    (tmp_path / "file").write_text("x")
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        with pytest.raises(NotADirectoryError):
            remove_tree(descriptor, b"tree")
    finally:
        os.close(descriptor)
    assert (tmp_path / "file").read_text() == "x"
