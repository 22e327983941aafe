"""The places that this machine is: root, and an ordinary user."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.places.conftest import Here
from tests.places.place import Findings, Machine, Place

Check = Callable[[Place, Machine], Findings]


@pytest.mark.needs("root", "overlay", "cgroup v1")
def test_root_on_cgroup_v1(check: Check, here: Here, public_home: str) -> None:
    """Root on a host with cgroup v1 has everything."""
    place = Place(name="root, cgroup v1", python=sys.executable, home=public_home, cgroup="own cgroup")
    found = check(place, here)
    assert "cgroup v1 (own cgroup), root" in found.output


@pytest.mark.needs("root", "unprivileged user", "user namespaces", "cgroup v1")
def test_user_on_cgroup_v1(
    check: Check, here: Here, public_home: str, interpreter_for_everyone: str, packages_for_everyone: Path
) -> None:
    """An ordinary user on cgroup v1 has all of the isolation and none of the limits, which is said of each."""
    place = Place(
        name="user, cgroup v1",
        user="nobody",
        python=f"{interpreter_for_everyone} -B -P",
        home=public_home,
        limits=frozenset(),
        cgroup="",
        refusal="cgroup v1 is writable for root only",
        environ={
            "PYTHONPATH": str(packages_for_everyone),
            "PYTEST_PLUGINS": "pytest_crate.plugin",
            "HOME": public_home,
        },
    )
    found = check(place, here)
    assert "NO cgroup, rootless" in found.output
