"""How places are visited: this machine, guests started once, and the table of what was seen."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.guest.image import USER, VENV, GuestImage, cached_image
from tests.guest.machine import Guest, booted
from tests.places import results
from tests.places.judge import figures, judge
from tests.places.place import Findings, Machine, Place, visit

CHECKOUT = Path(__file__).parents[2]

collect_ignore = ["project"]


class Here:
    """This machine."""

    shared = True

    def run(self, command: str, *, user: str = "root", seconds: float = 600) -> subprocess.CompletedProcess[str]:
        """Run a command as root or as a user without root's rights and variables."""
        other = user != "root"
        return subprocess.run(
            ["bash", "-c", command],
            user=user if other else None,
            group=pwd.getpwnam(user).pw_gid if other else None,
            extra_groups=[] if other else None,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"} if other else None,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def send(self, source: Path, target: str) -> None:
        """Copy the files of a directory."""
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


@pytest.fixture(scope="session")
def here() -> Here:
    """This machine."""
    return Here()


@pytest.fixture
def public_home() -> Iterator[str]:
    """A directory that any user can reach, and that goes."""
    with tempfile.TemporaryDirectory(prefix="pytest-crate-place-") as name:
        os.chmod(name, 0o777)
        yield name


_ROWS: pytest.StashKey[dict[str, str]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("places")
    group.addoption("--places-update", action="store_true", help="write what was seen into docs/places-results.md")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_ROWS] = {}


def pytest_unconfigure(config: pytest.Config) -> None:
    if config.getoption("places_update"):
        results.update(CHECKOUT / "docs" / "places-results.md", config.stash[_ROWS])


@pytest.fixture
def check(pytestconfig: pytest.Config) -> Callable[[Place, Machine], Findings]:
    """Visit a place and fail with all that is not as it must be there."""

    def run(place: Place, machine: Machine) -> Findings:
        found = visit(place, machine)
        print(found.output)
        faults = judge(place, found)
        assert not faults, "\n".join([place.name, *faults])
        if place.namespaces:
            print(f"accuracy: {place.name}: {figures(place, found)}")
        header = next(line for line in found.output.splitlines() if line.startswith("crate: "))
        pytestconfig.stash[_ROWS][place.name] = results.row(place, header)
        return found

    return run


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    directory = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(directory), str(CHECKOUT)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    (made,) = directory.glob("*.whl")
    return made


@pytest.fixture(scope="session")
def guest_image(tests_cache: Path, needs: Callable[..., None]) -> GuestImage:
    """The guest's disk, built once per machine."""
    needs("root", "guests")
    return cached_image(tests_cache / "guest")


@contextlib.contextmanager
def _with_wheel(image: GuestImage, directory: Path, kernel: str, wheel: Path) -> Iterator[Guest]:
    with booted(image, directory, kernel=kernel) as guest:
        guest.send(wheel.parent, "/opt/wheel", wheel.name)
        done = guest.run(f"{VENV}/bin/pip install -q --no-index --no-deps /opt/wheel/{wheel.name}")
        assert done.returncode == 0, done.stderr
        # ssh keeps a process for each user's connection: the guest's, not a test's.
        assert guest.run("true", user=USER).returncode == 0
        yield guest


@pytest.fixture(scope="session")
def guest(guest_image: GuestImage, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A guest with Debian's own kernel, 6.1."""
    with _with_wheel(guest_image, tmp_path_factory.mktemp("guest"), guest_image.kernel("6.1"), wheel) as machine:
        yield machine


@pytest.fixture(scope="session")
def ubuntu_guest(guest_image: GuestImage, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A guest with Ubuntu's kernel, 6.8."""
    with _with_wheel(guest_image, tmp_path_factory.mktemp("ubuntu"), guest_image.kernel("6.8"), wheel) as machine:
        yield machine


@pytest.fixture(scope="session")
def newer_guest(guest_image: GuestImage, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A guest with the kernel of Debian's backports."""
    with _with_wheel(guest_image, tmp_path_factory.mktemp("newer"), guest_image.kernel("6.12"), wheel) as machine:
        yield machine


@pytest.fixture(scope="session", params=["5.10", "5.4"])
def older_guest(
    request: pytest.FixtureRequest, guest_image: GuestImage, wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guest]:
    """A guest with the kernel of an earlier Debian, and one with that of an earlier Ubuntu."""
    kernel = guest_image.kernel(request.param)
    with _with_wheel(guest_image, tmp_path_factory.mktemp("older"), kernel, wheel) as machine:
        yield machine
