"""Gets a Python that this machine lacks from Debian: an image of a suite, and its interpreter made to run here."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import filelock

SUITES = {"3.13": "trixie", "3.14": "forky", "3.15": "forky"}
"""Version of Python → the Debian suite whose image has it. No suite that is still published has a 3.12."""

_MMDEBSTRAP = [
    # What it mounts is seen by nothing else then, which could keep it busy, and goes with it whatever happens.
    *("unshare", "--mount"),
    "mmdebstrap",
    "--quiet",
    "--variant=minbase",
    # What is signed is checked as ever; but a mirror that lags behind may hold a list that is some days too old.
    '--aptopt=Acquire::Check-Valid-Until "false"',
]


def cache() -> Path:
    """Return the directory that images and interpreters are kept in, beside those of the tests themselves."""
    path = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pytest-crate-tests"
    path.mkdir(parents=True, exist_ok=True)
    return path


def image(version: str) -> Path:
    """Return a tar archive of a Debian with a Python, made if need be.

    :raises KeyError: Debian has no such Python.
    :raises subprocess.CalledProcessError: mmdebstrap failed; its error output is on ours.
    """
    suite = SUITES[version]
    tar = cache() / f"debian-{suite}-python{version}.tar"
    with _making(tar) as partial:
        if partial is not None:
            packages = f"python{version},python{version}-venv"
            subprocess.run([*_MMDEBSTRAP, f"--include={packages}", suite, str(partial)], check=True)
    return tar


def interpreter(version: str) -> Path:
    """Return an interpreter that runs on this machine with the image's own C library and standard library.

    It is an ordinary program: nothing of it is in a container, so that what it runs meets the real kernel.

    :raises KeyError: Debian has no such Python.
    """
    root = cache() / f"debian-{SUITES[version]}-python{version}"
    python = root / "usr" / "bin" / f"python{version}"
    with _making(root) as partial:
        if partial is not None:
            partial.mkdir()
            archive = str(image(version))
            subprocess.run(["tar", "-C", str(partial), "--exclude=./dev/*", "-xf", archive], check=True)
            libraries = sorted((partial / "usr" / "lib").glob("*-linux-*"))
            (loader,) = [path for each in libraries for path in each.glob("ld-linux-*.so.*")]
            # Where it will be, not where it is now.
            moved = [str(root / path.relative_to(partial)) for path in (loader, *libraries)]
            patch = ["patchelf", "--set-interpreter", moved[0], "--force-rpath", "--set-rpath", ":".join(moved[1:])]
            subprocess.run([*patch, str(partial / python.relative_to(root))], check=True)
    return python


@contextlib.contextmanager
def _making(path: Path) -> Iterator[Path | None]:
    """Give a path to make something at, which then becomes the one asked for; None if that is there already."""
    partial = path.with_name(f"partial-{path.name}")
    with filelock.FileLock(f"{path}.lock"):
        if path.exists():
            yield None
            return
        if partial.is_dir():
            shutil.rmtree(partial)
        partial.unlink(missing_ok=True)
        yield partial
        partial.rename(path)
