"""Names, numbers and masks of capabilities, and the text that the kernel shows them in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_crate.errors import SandboxError
from pytest_crate.kernel.capabilities import (
    DEFAULT_CAPABILITIES,
    Capabilities,
    bounding_to_drop,
    capability_mask,
    capability_numbers,
    last_capability,
    parse_capabilities,
)
from pytest_crate.spec import CAPABILITIES

STATUS = """\
Name:\tbash
Uid:\t0\t0\t0\t0
CapInh:\t0000000000000000
CapPrm:\t000001fffeffffff
CapEff:\t00000000a80425fb
CapBnd:\t000001ffffffffff
CapAmb:\t0000000000000400
NoNewPrivs:\t1
Seccomp:\t2
"""


def test_numbers_are_those_of_the_kernel_header() -> None:
    """The order of the names agrees with linux/capability.h."""
    header = Path("/usr/include/linux/capability.h")
    if not header.exists():
        pytest.skip(f"{header} is not installed")
    text = header.read_text(encoding="utf-8")
    known = {name.lower(): int(number) for name, number in re.findall(r"#define CAP_(\w+)\s+(\d+)\n", text)}
    assert len(known) > 30
    ours = {name: number for number, name in enumerate(CAPABILITIES)}
    assert ours | known == known | ours  # a name that both know has one number
    assert len(set((ours | known).values())) == len(ours | known)


def test_default_capabilities() -> None:
    """A payload keeps Docker's default set without device nodes and the host's audit log."""
    docker = 0xA80425FB  # what a container's CapBnd shows
    assert capability_mask(capability_numbers(DEFAULT_CAPABILITIES)) == docker & ~(1 << 27) & ~(1 << 29)
    assert len(DEFAULT_CAPABILITIES) == 12


def test_capability_numbers() -> None:
    """Names become numbers; one that doesn't exist is an error."""
    assert capability_numbers(["chown", "sys_admin", "checkpoint_restore"]) == {0, 21, 40}
    with pytest.raises(ValueError, match="no capability: cap_chown, root"):
        capability_numbers(["chown", "root", "cap_chown"])


def test_capability_mask() -> None:
    """A mask has the bit of each number, beyond 32 bits too."""
    assert capability_mask([]) == 0
    assert capability_mask([0, 5, 40]) == 0x100_0000_0021


@given(st.frozensets(st.integers(0, 63)))
def test_bounding_to_drop(keep: frozenset[int]) -> None:
    """Whatever is not kept is dropped, in ascending order, with numbers that only future kernels know."""
    drop = bounding_to_drop(keep)
    assert list(drop) == sorted(set(drop))
    assert set(drop) | keep == set(range(64))
    assert not set(drop) & keep


def test_bounding_to_drop_ends_with_the_kernels_last() -> None:
    """The kernel's last capability is dropped too, and nothing beyond it is tried."""
    assert bounding_to_drop(frozenset({0, 2}), 4) == (1, 3, 4)


def test_last_capability(tmp_path: Path) -> None:
    """It is read from the procfs that is given; without the file there is an error that names it."""
    file = tmp_path / "sys/kernel/cap_last_cap"
    with pytest.raises(SandboxError, match="last capability") as caught:
        last_capability(str(tmp_path))
    assert caught.value.path == str(file)
    file.parent.mkdir(parents=True)
    file.write_text("40\n", encoding="ascii")
    assert last_capability(str(tmp_path)) == 40


def test_parse_capabilities() -> None:
    """The text of a status file becomes the sets that it names."""
    assert parse_capabilities(STATUS) == Capabilities(
        inheritable=0,
        permitted=0x1FFFEFFFFFF,
        effective=0xA80425FB,
        bounding=0x1FFFFFFFFFF,
        ambient=1 << 10,
        no_new_privs=True,
    )
    assert not parse_capabilities(STATUS.replace("NoNewPrivs:\t1", "NoNewPrivs:\t0")).no_new_privs


def test_parse_capabilities_of_another_text() -> None:
    """A text without the lines is an error that names the first missing one, never an empty set."""
    with pytest.raises(KeyError, match="CapInh"):
        parse_capabilities("Name:\tbash\n")
