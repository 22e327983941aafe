"""How places are visited: this machine as one of them, and the table of what was seen."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.places.judge import judge
from tests.places.place import Findings, Machine, Place, visit

collect_ignore = ["project"]


class Here:
    """This machine."""

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

    def send(self, source: Path, target: str, *names: str) -> None:
        """Copy the files of a directory."""
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        if names:
            raise NotImplementedError(shlex.join(names))


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


@pytest.fixture
def check() -> Callable[[Place, Machine], Findings]:
    """Visit a place and fail with all that is not as it must be there."""

    def run(place: Place, machine: Machine) -> Findings:
        found = visit(place, machine)
        print(found.output)
        faults = judge(place, found)
        assert not faults, "\n".join([place.name, *faults])
        return found

    return run
