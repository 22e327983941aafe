"""What a process can do about owners, by its capabilities and its user namespace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pytest_crate
from pytest_crate.images.ownership import Ownership, current_ownership
from pytest_crate.kernel import libc

as_root = pytest.mark.needs("root")


def ownership_in_user_namespace(*uid_maps: str) -> str:
    """Return what a child in a new user namespace with that map finds."""
    child_reads, parent_writes = os.pipe()
    parent_reads, child_writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            libc.unshare("be in a user namespace", libc.CLONE_NEWUSER)
            os.write(child_writes, b"!")
            os.read(child_reads, 1)
            result = str(current_ownership())
        except BaseException as error:  # noqa: BLE001 - reported, and nothing of pytest's may run on in the child
            result = f"{type(error).__name__}: {error}"
        os.write(child_writes, result.encode())
        os._exit(0)
    os.close(child_writes)
    try:
        assert os.read(parent_reads, 1) == b"!"
        # More than one's own id can be mapped by a privileged parent only (user_namespaces(7)).
        Path(f"/proc/{child}/uid_map").write_text("\n".join(uid_maps))
        os.write(parent_writes, b"!")
        return os.read(parent_reads, 1000).decode()
    finally:
        for descriptor in (child_reads, parent_writes, parent_reads):
            os.close(descriptor)
        os.waitpid(child, 0)


def test_root_keeps_owners_and_a_user_does_not() -> None:
    """Outside of any user namespace it is a matter of being root."""
    expected = (
        Ownership(keep=True, name="root") if os.geteuid() == 0 else Ownership(keep=False, name=f"uid{os.geteuid()}")
    )
    assert current_ownership() == expected


@as_root
@pytest.mark.parametrize(
    ("uid_maps", "expected"),
    [
        (["0 100000 65536"], Ownership(keep=True, name="root-from-100000")),
        (["0 1000 1", "1 100000 65536"], Ownership(keep=True, name="root-from-1000-100000")),
        (["0 0 1", "2 100000 65536"], Ownership(keep=False, name="uid0")),
        (["0 0 1"], Ownership(keep=False, name="uid0")),
        (["3 0 1"], Ownership(keep=False, name="uid0")),
        (["5 7 1", "0 0 5"], Ownership(keep=False, name="uid0")),
    ],
)
def test_root_of_a_user_namespace_keeps_owners_if_it_has_a_range_of_ids(
    uid_maps: list[str], expected: Ownership
) -> None:
    """A container's root does, whose files are others outside; a single user dressed as root does not."""
    assert ownership_in_user_namespace(*uid_maps) == str(expected)


@pytest.mark.needs("root", "setpriv")
def test_root_without_the_power_to_change_owners_keeps_none() -> None:
    """A container that was started without CAP_CHOWN extracts as a user would."""
    code = "from pytest_crate.images.ownership import current_ownership; print(current_ownership())"
    result = subprocess.run(
        ["setpriv", "--bounding-set=-chown", sys.executable, "-c", code],
        cwd=Path(pytest_crate.__file__).parents[1],
        check=True,
        capture_output=True,
        text=True,
    )
    assert result.stdout.strip() == str(Ownership(keep=False, name="uid0"))
