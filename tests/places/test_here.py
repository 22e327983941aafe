"""The places that this machine is: root, and an ordinary user."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.places.conftest import Here
from tests.places.place import ALL_LIMITS, Findings, Machine, Place

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


CONTAINER = Path(__file__).with_name("oci.py")
# What `runc spec` proposes, and what opens it step by step. (crun alone runs on no host with both versions of cgroups.)
_NAMES = {
    "default": "as `runc spec` proposes",
    "setfcap": "with CAP_SETFCAP",
    "unmasked": "with CAP_SETFCAP and nothing masked",
    "privileged": "with all capabilities and writable cgroups",
}
_OPENED = {
    "default": "Docker, Podman: --cap-add SETFCAP; or in it run pytest as another user than root",
    "setfcap": "Docker: --security-opt systempaths=unconfined; Podman: --security-opt unmask=ALL",
    "unmasked": "the cgroup file system is read-only",
    "privileged": "",
}


@pytest.mark.needs("root", "overlay", "cgroup v1", "runc")
@pytest.mark.parametrize("kind", _OPENED)
def test_container(check: Check, here: Here, public_home: str, kind: str) -> None:
    """A container of runc's own default refuses with what opens it; opened, it has what it was given."""
    whole = kind == "privileged"
    place = Place(
        name=f"root, cgroup v1, runc: {_NAMES[kind]}",
        wrapper=f"{sys.executable} -B {CONTAINER} runc {kind}",
        python=f"{sys.executable} -B",
        home=public_home,
        namespaces=kind in ("unmasked", "privileged"),
        limits=ALL_LIMITS if whole else frozenset(),
        cgroup="own cgroup" if whole else "",
        refusal=_OPENED[kind],
    )
    check(place, here)
