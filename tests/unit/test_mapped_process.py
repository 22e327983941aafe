"""What becomes of files that a crate's other users have left, as root of their user namespace sees it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_crate.images.tree import remove_tree
from pytest_crate.kernel import mapped_process

OTHER = 1000


@pytest.mark.needs("root")
def test_files_are_given_back_however_deep(tmp_path: Path) -> None:
    """All below a directory is the user's again, below more directories than a walk has stack for; what a symbolic link
    leads to stays its owner's, and so does the directory itself."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("its owner's")
    shared = tmp_path / "shared"
    for directory in (shared, shared / "a", shared / "a" / "b", shared / "c"):
        directory.mkdir()
    for file in (shared / "file", shared / "a" / "b" / "file", shared / "c" / "file"):
        file.write_text("left")
    (shared / "a" / "link").symlink_to(victim)
    for path in (victim, victim / "file", shared, *shared.rglob("*")):
        os.chown(path, OTHER, OTHER, follow_symlinks=False)
    top = os.open(shared, os.O_RDONLY)
    try:
        place = os.dup(top)
        deep = []
        try:
            for _ in range(3000):
                os.mkdir("nested", dir_fd=place)
                os.chown("nested", OTHER, OTHER, dir_fd=place)
                above, place = place, os.open("nested", os.O_RDONLY, dir_fd=place)
                os.close(above)
            mapped_process.give_back_below([str(shared)])
            for _ in range(3000):
                deep.append(os.fstat(place).st_uid)
                above, place = place, os.open("..", os.O_RDONLY, dir_fd=place)
                os.close(above)
        finally:
            os.close(place)
        assert deep == [0] * 3000
    finally:
        remove_tree(top, b"nested")
        os.close(top)
    assert {path: path.lstat().st_uid for path in shared.rglob("*")} == dict.fromkeys(shared.rglob("*"), 0)
    assert len(list(shared.rglob("*"))) == 7
    assert [path.stat().st_uid for path in (shared, victim, victim / "file")] == [OTHER] * 3
