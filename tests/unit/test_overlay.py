"""Over which directory an overlay is tried in a user namespace."""

from __future__ import annotations

import pytest

from pytest_crate.kernel.overlay import directory_without_mounts


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        (["/", "/proc"], "/usr"),
        (["/", "/usr/share/x", "/proc"], "/etc"),
        (["/", "/usr", "/etc/hosts"], "/var"),
        (["/", "/usrlocal"], "/usr"),
    ],
)
def test_one_without_mounts_at_or_below_it(points: list[str], expected: str) -> None:
    """Locked mounts below a lower directory are a refusal of their own, and say nothing of overlays."""
    lines = [f"{number} 1 0:1 / {point} rw - ext4 x rw" for number, point in enumerate(points)]
    assert directory_without_mounts("\n".join(lines)) == expected
