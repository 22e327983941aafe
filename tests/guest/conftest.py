"""Guests, each started once for the tests that want it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.image import VENV, GuestImage, cached_image
from tests.guest.machine import Guest, booted

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    directory = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(directory), str(CHECKOUT)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    (made,) = directory.glob("*.whl")
    return made


@pytest.fixture(scope="session")
def guest_image(tests_cache: Path) -> GuestImage:
    """The guest's disk, built once per machine."""
    return cached_image(tests_cache / "guest")


@contextlib.contextmanager
def _with_wheel(image: GuestImage, directory: Path, kernel: str, wheel: Path) -> Iterator[Guest]:
    with booted(image, directory, kernel=kernel) as guest:
        guest.send(wheel.parent, "/opt/wheel", wheel.name)
        done = guest.run(f"{VENV}/bin/pip install -q --no-index --no-deps /opt/wheel/{wheel.name}")
        assert done.returncode == 0, done.stderr
        yield guest


@pytest.fixture(scope="session")
def guest(guest_image: GuestImage, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A guest with Debian's own kernel, 6.1."""
    with _with_wheel(guest_image, tmp_path_factory.mktemp("guest"), guest_image.kernels[0], wheel) as machine:
        yield machine


@pytest.fixture(scope="session")
def newer_guest(guest_image: GuestImage, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A guest with the kernel of Debian's backports."""
    with _with_wheel(guest_image, tmp_path_factory.mktemp("newer"), guest_image.kernels[-1], wheel) as machine:
        yield machine
