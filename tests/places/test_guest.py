"""The suite of places, in guests: cgroup v2 with systemd, as root and as ordinary users."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.guest.image import PLAIN_USER, USER, VENV
from tests.guest.machine import Guest
from tests.places.place import ALL_LIMITS, Findings, Machine, Place

Check = Callable[[Place, Machine], Findings]

PYTHON = f"{VENV}/bin/python -B"
# Of systemd's own unit file for user managers (user@.service): neither cpuset nor io.
DELEGATED = ALL_LIMITS - {"cpuset"}
NOT_DELEGATED = "the cpuset controller is not delegated to this cgroup"

ROOT = Place(name="root, cgroup v2, systemd", python=PYTHON, home="/root", cgroup="systemd scope")
SESSION = Place(
    name="user, cgroup v2, systemd session",
    user=USER,
    python=PYTHON,
    home=f"/home/{USER}",
    limits=DELEGATED,
    cgroup="systemd scope",
    refusal=NOT_DELEGATED,
)
DELEGATED_SCOPE = dataclasses.replace(
    SESSION,
    name="user, cgroup v2, delegated scope",
    wrapper="systemd-run --user --scope --quiet --property=Delegate=yes",
    cgroup="delegated cgroup",
)
# As cron or a CI service starts a job: no session, no manager of the user's own.
PLAIN = Place(
    name="user, cgroup v2, nothing delegated",
    user="root",
    wrapper=f"setpriv --reuid={PLAIN_USER} --regid={PLAIN_USER} --clear-groups env -i HOME=/home/{PLAIN_USER} "
    "PATH=/usr/bin:/bin COLUMNS=200",
    python=PYTHON,
    home=f"/home/{PLAIN_USER}",
    owner=PLAIN_USER,
    limits=frozenset(),
    cgroup="",
    refusal="no systemd of this user's own runs",
)

_CONTAINER = (
    "podman run --rm --network=none --volume /root/place:/root/place --workdir /root/place --env COLUMNS=200 "
    "{flags} --rootfs /:O"
)
CONTAINER = dataclasses.replace(
    ROOT,
    name="root, cgroup v2, Podman container",
    wrapper=_CONTAINER.format(flags=""),
    limits=frozenset(),
    namespaces=False,
    refusal="--security-opt unmask=ALL",
)
# What the doctor names there, row by row.
OPENED = dataclasses.replace(
    ROOT,
    name="root, cgroup v2, Podman container opened",
    wrapper=_CONTAINER.format(flags="--security-opt unmask=ALL --cgroups=split --security-opt seccomp=unconfined"),
    cgroup="own cgroup",
)
PRIVILEGED = dataclasses.replace(
    OPENED, name="root, cgroup v2, privileged container", wrapper=_CONTAINER.format(flags="--privileged")
)


@contextmanager
def sysctl(guest: Guest, name: str, value: int) -> Iterator[None]:
    """Set one of the guest's own, for a while."""
    before = guest.run(f"sysctl -n {name}").stdout.strip()
    assert guest.run(f"sysctl -w {name}={value}").returncode == 0
    try:
        yield
    finally:
        guest.run(f"sysctl -w {name}={before}")


@pytest.mark.parametrize(
    "place", [ROOT, SESSION, DELEGATED_SCOPE, PLAIN, CONTAINER, OPENED, PRIVILEGED], ids=lambda place: place.name
)
def test_place(check: Check, guest: Guest, place: Place) -> None:
    """Every place has what it must, and says of the rest why not and how to mend it."""
    check(place, guest)


@pytest.mark.long
@pytest.mark.parametrize("place", [ROOT, SESSION], ids=lambda place: place.name)
def test_newer_kernel(check: Check, newer_guest: Guest, place: Place) -> None:
    """The same on the kernel of Debian's backports."""
    check(dataclasses.replace(place, name=f"{place.name}, newer kernel"), newer_guest)


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        pytest.param(
            "user.max_user_namespaces", 0, "sudo sysctl -w user.max_user_namespaces=15000", marks=pytest.mark.long
        ),
        ("kernel.unprivileged_userns_clone", 0, "sudo sysctl -w kernel.unprivileged_userns_clone=1"),
    ],
)
def test_user_namespaces_switched_off(check: Check, guest: Guest, name: str, value: int, remedy: str) -> None:
    """Where an ordinary user gets no user namespace no crated test runs; each failure has the command to mend it."""
    place = dataclasses.replace(SESSION, name=f"user, {name}={value}", namespaces=False, refusal=remedy)
    with sysctl(guest, name, value):
        check(place, guest)
