"""Fetches a suite, makes its environment, and runs it plain and in crates."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

from tests.comparing import read_junit
from tests.parity.suites import PYTEST, XDIST, Suite

INSTALL_SECONDS = 900
RUN_SECONDS = 3600

RECORDER = Path(__file__).parent.parent / "recorder.py"

# What an outer run's own surroundings say is not for the suites.
_NOT_PASSED_ON = (
    "BUILD_NUMBER",
    "CI",
    "COLUMNS",
    "FORCE_COLOR",
    "NO_COLOR",
    "PYTHONPATH",
    "PYTHONWARNINGS",
    "PY_COLORS",
    "TOX_ENV_DIR",
    "VIRTUAL_ENV",
)
_NOT_PASSED_ON_PREFIXES = ("CRATE_", "COV_", "PYTEST_", "TOX_")


class SuiteError(Exception):
    """A suite could not be fetched, installed or run."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one run of a suite reported.

    :ivar name: the way it was run.
    :ivar returncode: pytest's.
    :ivar reports: every report, as ``tests/recorder.py`` keeps it.
    :ivar warnings: every warning in the summary.
    :ivar junit: the test cases of its JUnit XML.
    :ivar output: what it printed.
    """

    name: str
    returncode: int
    reports: list[dict[str, Any]]
    warnings: list[dict[str, Any]]
    junit: list[Any]
    output: str


class Workplace:
    """The directory, kept in the user's cache, where a suite lies with an environment of its own."""

    def __init__(self, suite: Suite, cache: Path, wheel: Path) -> None:
        self.suite = suite
        self.directory = cache / f"{suite.name}-{suite.version}"
        self.source = self.directory / "source"
        self._wheel = wheel
        self._venv = self.directory / "venv"

    @property
    def python(self) -> str:
        return str(self._venv / "bin" / "python")

    @contextlib.contextmanager
    def prepared(self) -> Iterator[Workplace]:
        """Have it to oneself, with everything in place."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self.directory / "lock"):
            self._fetch()
            self._install()
            yield self

    def _fetch(self) -> None:
        if self._archives():
            return
        # The one way of pip's to get a source distribution. It asks the build for its metadata; nothing is built.
        partial = self.directory / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        self._pip(
            sys.executable,
            "download",
            "--no-deps",
            f"--no-binary={self.suite.name}",
            f"--dest={partial}",
            f"{self.suite.name}=={self.suite.version}",
        )
        for path in partial.iterdir():
            path.rename(self.directory / path.name)

    def _archives(self) -> list[Path]:
        return [path for pattern in ("*.tar.gz", "*.zip") for path in self.directory.glob(pattern)]

    def unpack(self) -> None:
        """Lay the source anew: a suite leaves things there."""
        shutil.rmtree(self.source, ignore_errors=True)
        place = self.directory / "unpacked"
        shutil.rmtree(place, ignore_errors=True)
        (archive,) = self._archives()
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as zipped:
                zipped.extractall(place)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(place, filter="tar")
        (root,) = place.iterdir()
        root.rename(self.source)
        place.rmdir()
        for name in self.suite.without:
            shutil.rmtree(self.source / name)

    def _install(self) -> None:
        wanted = [PYTEST, XDIST, *self.suite.requirements, f"{self.suite.name}=={self.suite.version}"]
        mark = self.directory / "installed.json"
        told = json.dumps([sys.version, sys.base_prefix, wanted])
        if not mark.exists() or mark.read_text() != told:
            mark.unlink(missing_ok=True)
            shutil.rmtree(self._venv, ignore_errors=True)
            _call([sys.executable, "-m", "venv", str(self._venv)], self.directory, INSTALL_SECONDS)
            self._pip(self.python, "install", *wanted, str(self._wheel))
            mark.write_text(told)
        # The plugin as it is now, whatever was there.
        current = self.directory / "wheel.sha256"
        digest = hashlib.sha256(self._wheel.read_bytes()).hexdigest()
        if not current.exists() or current.read_text() != digest:
            current.unlink(missing_ok=True)
            self._pip(self.python, "install", "--no-deps", "--force-reinstall", str(self._wheel))
            current.write_text(digest)
        (packages,) = self._venv.glob("lib/python*/site-packages")
        shutil.copy(RECORDER, packages / "crate_recorder.py")

    def _pip(self, python: str, *args: str) -> None:
        _call([python, "-m", "pip", "--disable-pip-version-check", *args], self.directory, INSTALL_SECONDS)

    def run(self, name: str, *args: str) -> Run:
        """Run the suite's tests on a source laid anew; ``args`` say which way."""
        self.unpack()
        recorded, junit = (self.directory / f"{name}.{kind}" for kind in ("json", "xml"))
        for path in (recorded, junit):
            path.unlink(missing_ok=True)
        command = [
            *(self.python, "-m", "pytest", "-p", "crate_recorder", f"--junitxml={junit}", "-ra"),
            *args,
            *self.suite.args,
        ]
        environ = {
            name: value
            for name, value in os.environ.items()
            if name not in _NOT_PASSED_ON and not name.startswith(_NOT_PASSED_ON_PREFIXES)
        }
        # One order of sets: two workers must collect the same parameters in the same order.
        environ |= {"RECORDED": str(recorded), "COLUMNS": "100", "PYTHONHASHSEED": "0"}
        returncode, output = _run(command, self.source, RUN_SECONDS, environ)
        (self.directory / f"{name}.log").write_text(output)
        # Passed or failed; not interrupted, nor without a test.
        if returncode not in (0, 1) or not recorded.exists() or not junit.exists():
            raise SuiteError(f"{self.suite.name}, {name}: pytest ended with {returncode}\n{output[-6000:]}")
        data = json.loads(recorded.read_text())
        if not data["reports"]:  # two workers that collected different tests, perhaps: that counts as failed
            raise SuiteError(f"{self.suite.name}, {name}: no test was run\n{output[-6000:]}")
        return Run(
            name=name,
            returncode=returncode,
            reports=data["reports"],
            warnings=data["warnings"],
            junit=read_junit(junit),
            output=output,
        )


def build_wheel(checkout: Path, directory: Path) -> Path:
    """Build the wheel of this checkout."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "-w"]
    _call([*command, str(directory), str(checkout)], directory, INSTALL_SECONDS)
    (wheel,) = directory.glob("*.whl")
    return wheel


def _call(command: list[str], where: Path, seconds: float) -> None:
    returncode, output = _run(command, where, seconds, dict(os.environ))
    if returncode != 0:
        raise SuiteError(f"{' '.join(command)} ended with {returncode}\n{output[-6000:]}")


def _run(command: list[str], where: Path, seconds: float, environ: Mapping[str, str]) -> tuple[int, str]:
    # A session of its own: at the timeout everything it started goes with it.
    with subprocess.Popen(
        command,
        cwd=where,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                text = output.decode(errors="replace")
                raise SuiteError(f"{' '.join(command)} still ran after {seconds} s\n{text[-6000:]}") from None
            raise
    return process.returncode, output.decode(errors="replace")
