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
    # Podman's own profile (containers-default), where AppArmor is in force.
    refusal="Docker, Podman: --security-opt apparmor=unconfined",
)
_NO_PROFILE = "--security-opt apparmor=unconfined"
CONTAINER_MASKED = dataclasses.replace(
    CONTAINER,
    name="root, cgroup v2, Podman container without AppArmor's profile",
    wrapper=_CONTAINER.format(flags=_NO_PROFILE),
    refusal="--security-opt unmask=ALL",
)
# What the doctor names there, row by row.
OPENED = dataclasses.replace(
    ROOT,
    name="root, cgroup v2, Podman container opened",
    wrapper=_CONTAINER.format(
        flags=f"{_NO_PROFILE} --security-opt unmask=ALL --cgroups=split --security-opt seccomp=unconfined"
    ),
    cgroup="own cgroup",
)
PRIVILEGED = dataclasses.replace(
    OPENED, name="root, cgroup v2, privileged container", wrapper=_CONTAINER.format(flags="--privileged")
)

# An image of the guest's own, with its programs and the tests' packages bound in: there is no registry to be reached.
_DOCKER = (
    "docker run --rm --network=none --volume /usr:/usr:ro --volume /opt:/opt:ro --volume /root/place:/root/place "
    "--workdir /root/place --env COLUMNS=200 {flags} place"
)
_DOCKER_IMAGE = """
set -e
cd /
tar -c --no-recursion tmp var var/tmp run root home opt usr proc sys dev bin sbin lib lib64 >/tmp/place.tar
tar -r -f /tmp/place.tar etc
docker import - place </tmp/place.tar
rm /tmp/place.tar
"""
DOCKER = dataclasses.replace(
    ROOT,
    name="root, cgroup v2, Docker container",
    wrapper=_DOCKER.format(flags=""),
    limits=frozenset(),
    namespaces=False,
    refusal="Docker, Podman: --security-opt seccomp=unconfined",
)
_DOCKER_FLAGS = (
    "--security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined"
)
DOCKER_OPENED = dataclasses.replace(
    DOCKER,
    name="root, cgroup v2, Docker container opened but for cgroups",
    wrapper=_DOCKER.format(flags=_DOCKER_FLAGS),
    namespaces=True,
    refusal="Docker, or cgroup v1: --privileged",
)
DOCKER_PRIVILEGED = dataclasses.replace(
    ROOT,
    name="root, cgroup v2, privileged Docker container",
    wrapper=_DOCKER.format(flags="--privileged"),
    cgroup="own cgroup",
)

# Ubuntu's kernel, with the setting that Ubuntu has since 23.10.
RESTRICTED = dataclasses.replace(
    SESSION,
    name="user, Ubuntu's kernel, AppArmor restricts user namespaces",
    namespaces=False,
    refusal="sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
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
    "place",
    [ROOT, SESSION, DELEGATED_SCOPE, PLAIN, CONTAINER, CONTAINER_MASKED, OPENED, PRIVILEGED],
    ids=lambda place: place.name,
)
def test_place(check: Check, guest: Guest, place: Place) -> None:
    """Every place has what it must, and says of the rest why not and how to mend it."""
    check(place, guest)


_DELEGATE_CPUSET = """
set -e
mkdir -p /etc/systemd/system/user@.service.d
printf '[Service]\\nDelegate=cpu cpuset io memory pids\\n' >/etc/systemd/system/user@.service.d/crate.conf
systemctl daemon-reload
systemctl restart user@$(id -u {user}).service
"""
_DELEGATE_NO_CPUSET = """
rm -r /etc/systemd/system/user@.service.d
systemctl daemon-reload
systemctl restart user@$(id -u {user}).service
"""


@pytest.mark.long
def test_cpuset_delegated(check: Check, guest: Guest) -> None:
    """With the setting that the doctor names for cpuset, ordinary users have every limit."""
    place = dataclasses.replace(
        SESSION, name="user, cgroup v2, systemd session, cpuset delegated", limits=ALL_LIMITS, refusal=""
    )
    try:
        done = guest.run(_DELEGATE_CPUSET.format(user=USER))
        assert done.returncode == 0, done.stderr
        check(place, guest)
    finally:
        guest.run(_DELEGATE_NO_CPUSET.format(user=USER))


@pytest.mark.long
def test_lingering(check: Check, guest: Guest) -> None:
    """The command that the doctor names where no systemd of the user's own runs: memory, cpus and pids are there."""
    place = dataclasses.replace(
        PLAIN,
        name="user, cgroup v2, after enable-linger",
        limits=DELEGATED,
        cgroup="systemd scope",
        refusal=NOT_DELEGATED,
    )
    try:
        done = guest.run(f"loginctl enable-linger {PLAIN_USER}; systemctl is-system-running --wait")
        assert done.returncode == 0, done.stdout + done.stderr
        check(place, guest)
    finally:
        guest.run(f"loginctl disable-linger {PLAIN_USER}")


@pytest.mark.long
@pytest.mark.parametrize("place", [DOCKER, DOCKER_OPENED, DOCKER_PRIVILEGED], ids=lambda place: place.name)
def test_docker(check: Check, guest: Guest, place: Place) -> None:
    """Docker's containers refuse with the flags that mend it; with those they have what they name."""
    done = guest.run(_DOCKER_IMAGE)
    assert done.returncode == 0, done.stderr
    check(place, guest)


_LARGE = """
import pytest

@pytest.mark.crate(memory="256m")
def test_large():
    pass

@pytest.mark.crate(memory="64m")
def test_small():
    pass
"""


@pytest.mark.long
def test_a_limit_beyond_the_containers(guest: Guest) -> None:
    """More than the container around pytest allows is refused, with both numbers."""
    guest.run("rm -rf /root/place; mkdir /root/place; cat >/root/place/test_it.py", stdin=_LARGE.encode())
    command = _CONTAINER.format(flags="--privileged --memory=150m --memory-swap=150m")
    done = guest.run(f"{command} {PYTHON} -m pytest -p no:cacheprovider")
    print(done.stdout, done.stderr)
    assert "256 MiB is asked for, and /sys/fs/cgroup/memory.max around it allows 150 MiB" in " ".join(
        done.stdout.split()
    )
    assert "1 passed, 1 error" in done.stdout


# As Ubuntu's own of this name: a user namespace may be made, and there are no capabilities in it.
_UBUNTU_PROFILE = """
profile unprivileged_userns flags=(attach_disconnected) {
  audit deny capability,
  file, network, mount, umount, pivot_root, signal, ptrace, unix, dbus, change_profile,
}
"""


@pytest.mark.long
@pytest.mark.parametrize("profile", [False, True])
def test_apparmor_of_ubuntu(check: Check, ubuntu_guest: Guest, profile: bool) -> None:
    """Where AppArmor restricts user namespaces each failure has the command to mend it, whether there is a profile that
    lets them be made without capabilities, as on Ubuntu, or none, which keeps them from being made. After it all is as
    on Debian."""
    place = RESTRICTED
    if profile:
        place = dataclasses.replace(place, name=f"{place.name} by their capabilities")
        loaded = ubuntu_guest.run("apparmor_parser -r", stdin=_UBUNTU_PROFILE.encode())
        assert loaded.returncode == 0, loaded.stderr
    else:
        ubuntu_guest.run("apparmor_parser -R", stdin=_UBUNTU_PROFILE.encode())
    with sysctl(ubuntu_guest, "kernel.apparmor_restrict_unprivileged_userns", 1):
        check(place, ubuntu_guest)
        assert ubuntu_guest.run(place.refusal).returncode == 0
        check(dataclasses.replace(SESSION, name="user, Ubuntu's kernel, that restriction lifted"), ubuntu_guest)


@pytest.mark.long
@pytest.mark.parametrize("place", [ROOT, SESSION], ids=lambda place: place.name)
def test_newer_kernel(check: Check, newer_guest: Guest, place: Place) -> None:
    """The same on the kernel of Debian's backports."""
    check(dataclasses.replace(place, name=f"{place.name}, newer kernel"), newer_guest)


@pytest.mark.long
@pytest.mark.parametrize("place", [ROOT, dataclasses.replace(SESSION, overlay=False)], ids=lambda place: place.name)
def test_older_kernel(check: Check, older_guest: Guest, place: Place) -> None:
    """The same on the kernels of an earlier Debian and Ubuntu: they have no overlay for ordinary users (5.11), and tell
    no peak of memory (5.19)."""
    version = ".".join(older_guest.run("uname -r").stdout.split(".")[:2])
    found = check(dataclasses.replace(place, name=f"{place.name}, kernel {version}", peak=False), older_guest)
    assert f"kernel {version}" in found.output


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
