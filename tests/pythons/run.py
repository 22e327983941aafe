"""Runs the tests on several Pythons: those of this machine, and Debian's where it has none."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.pythons import debian

ROOT = Path(__file__).resolve().parents[2]


def local(version: str) -> str | None:
    """Return this machine's own interpreter of a version."""
    program = shutil.which(f"python{version}")
    if program is None:
        return None
    # Of several versions that pyenv keeps, the programs on the path run the chosen ones only.
    ask = [program, "-c", "import sys; print(sys.executable)"]
    asked = subprocess.run(ask, capture_output=True, text=True, check=False)
    return asked.stdout.strip() if asked.returncode == 0 else None


def run_here(version: str, arguments: list[str]) -> bool:
    """Run the tests with an interpreter of a version, on this machine's kernel."""
    python = local(version) or str(debian.interpreter(version))
    environment = f"py{version.replace('.', '')}"
    tox = [sys.executable, "-m", "tox", "run", "-e", environment, "--discover", python, "--", *arguments]
    return subprocess.run(tox, cwd=ROOT, check=False).returncode == 0


def run_in_crate(version: str) -> bool:
    """Run the tests that need no privileges inside of a crate of ours: Debian with that Python, and no network."""
    environment = ROOT / ".tox" / f"py{version.replace('.', '')}"
    (packages,) = environment.glob("lib/python*/site-packages")
    command = [
        str(environment / "bin" / "pytest-crate"),
        *("run", "--usage", "--memory=2g", "--timeout=900", "--workdir=/src"),
        f"--mount={ROOT}:/src:ro",
        f"--mount={packages}:/packages:ro",
        "--env=PYTHONPATH=/packages",
        "--env=PYTHONDONTWRITEBYTECODE=1",
        "--env=HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis",
        str(debian.image(version)),
        *(f"python{version}", "-m", "pytest", "-p", "no:cacheprovider", "tests/unit"),
    ]
    return subprocess.run(command, check=False).returncode == 0


def main() -> int:
    """Return 0 if all tests passed on each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("versions", nargs="+", metavar="VERSION", help="such as 3.14")
    parser.add_argument("--tests", nargs="+", default=["tests"], help="what to run (default: all)")
    arguments = parser.parse_args()
    outcomes = []
    for version in arguments.versions:
        began = time.monotonic()
        passed = run_here(version, arguments.tests)
        if passed and version in debian.SUITES:
            passed = run_in_crate(version)
        outcomes.append((version, passed, time.monotonic() - began))
    for version, passed, seconds in outcomes:
        print(f"Python {version}: {'passed' if passed else 'FAILED'} after {seconds:.0f} s")
    return 0 if all(passed for _, passed, _ in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
