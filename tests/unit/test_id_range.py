"""Which ids subuid(5) gives, and what is said where it gives none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_crate.errors import HostError
from pytest_crate.kernel.id_range import IdRange, find_id_range

UID, GID = os.geteuid(), os.getegid()


@pytest.fixture
def programs(tmp_path: Path) -> str:
    """A PATH with the two programs."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in ("newuidmap", "newgidmap"):
        (directory / name).touch(mode=0o755)
    return str(directory)


def files(directory: Path, subuid: str, subgid: str) -> str:
    """Write the two files and return their directory."""
    (directory / "subuid").write_text(subuid)
    (directory / "subgid").write_text(subgid)
    return str(directory)


def test_a_users_own_ids_come_first(tmp_path: Path, programs: str) -> None:
    """The user is root, and all that is given to it, by number as by name, follows; others' entries don't count."""
    etc = files(
        tmp_path,
        f"else:100000:65536\n{UID}:200000:65536\n{UID}:300000:10\n",
        f"{UID}:400000:70000\n{UID}:400000:70000\nbroken\n{UID}:x:5\n",
    )
    assert find_id_range(etc=etc, path=programs) == IdRange(
        uids=((UID, 1), (200000, 65536), (300000, 10)), gids=((GID, 1), (400000, 70000))
    )


@pytest.mark.parametrize(
    ("subuid", "subgid", "message", "hint"),
    [
        ("", f"{UID}:100000:65536\n", "/etc/subuid gives the user * 0 ids", "--add-subuids 100000-165535 "),
        (f"{UID}:100000:65536\n", "", "/etc/subgid gives the user * 0 ids", "--add-subgids 100000-165535 "),
        (f"{UID}:9:1000\nelse:500000:65536\n", "", "1000 ids; 65536 are needed", "--add-subuids 565536-631071 "),
    ],
)
def test_no_range_names_the_command_that_gives_one(
    tmp_path: Path, programs: str, subuid: str, subgid: str, message: str, hint: str
) -> None:
    """The one that is proposed overlaps nobody's."""
    with pytest.raises(HostError) as caught:
        find_id_range(etc=files(tmp_path, subuid, subgid), path=programs)
    before, _, after = message.partition("*")
    assert before in caught.value.message
    assert after in caught.value.message
    assert caught.value.hint.startswith("sudo usermod ")
    assert hint in caught.value.hint
    assert caught.value.feature == "id range"


def test_no_files_at_all(tmp_path: Path, programs: str) -> None:
    """They are as good as empty."""
    with pytest.raises(HostError, match=r"/etc/subuid gives the user .* 0 ids"):
        find_id_range(etc=str(tmp_path / "nowhere"), path=programs)


def test_no_program_names_its_package(tmp_path: Path, programs: str) -> None:
    """It is looked for before the files are."""
    (Path(programs) / "newgidmap").chmod(0o644)
    with pytest.raises(HostError, match="newgidmap is not installed") as caught:
        find_id_range(etc=str(tmp_path / "nowhere"), path=programs)
    assert caught.value.hint == "sudo apt install uidmap"


def test_a_name_for_each_range() -> None:
    """What was extracted under one range is nothing under another."""
    same = IdRange(uids=((1000, 1), (100000, 65536)), gids=((1000, 1), (100000, 65536)))
    other = IdRange(uids=((1000, 1), (100000, 65536)), gids=((100, 1), (100000, 65536)))
    assert same.name == "root-from-1000-100000"
    assert other.name == "root-from-1000-100000-gid-100-100000"
