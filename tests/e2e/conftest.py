"""Runs of an inner pytest whose tests are in real crates."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from pytest_crate.sandbox.sandbox import Engine
from tests.inner import INNER_TIMEOUT_SECONDS


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class InnerRun:
    """One inner run: what pytest printed, and the JSON report."""

    result: pytest.RunResult
    tests: dict[str, dict[str, Any]]

    @property
    def outcomes(self) -> dict[str, str]:
        """The outcome of each test that had a crate, by its name."""
        return {name: test["outcome"] for name, test in self.tests.items()}

    @property
    def text(self) -> str:
        """All that it printed."""
        return self.result.stdout.str()

    @property
    def short_summary(self) -> str:
        """The lines of pytest's short test summary."""
        return self.text.partition(" short test summary info ")[2]

    def crate(self, test: str) -> dict[str, Any]:
        """Return the JSON report on the one crate of a test."""
        (crate,) = self.tests[test]["crates"]
        found: dict[str, Any] = crate
        return found

    def usage(self, test: str) -> dict[str, int | None]:
        """Return what the one crate of a test used."""
        usage: dict[str, int | None] = self.crate(test)["usage"]
        return usage

    def all_passed(self) -> bool:
        """Tell whether the run passed, with each of its tests in a crate; print it all if not."""
        ran = sum(self.result.parseoutcomes().get(word, 0) for word in ("passed", "failed", "errors", "skipped"))
        passed = bool(self.result.ret == 0 and set(self.outcomes.values()) == {"passed"} and ran == len(self.tests))
        if not passed:
            print(self.outcomes)
        return passed


class RunCrated(Protocol):
    """Runs pytest on one test file; its relative paths are below ``pytester.path``."""

    def __call__(self, source: str, *args: str) -> InnerRun: ...


@pytest.fixture
def engine() -> Iterator[Engine]:
    """Make crates without a run of pytest's."""
    engine = Engine()
    try:
        yield engine
    finally:
        engine.close()


@pytest.fixture(scope="session")
def image_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the inner runs keep extracted images: each is extracted once."""
    return tmp_path_factory.mktemp("image-store")


@pytest.fixture
def home(tmp_path: Path, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home directory of the inner runs, beside the project."""
    directory = tmp_path / "home"
    directory.mkdir()
    monkeypatch.setenv("HOME", str(directory))
    monkeypatch.setenv("COLUMNS", "160")  # so that no line of the short summary is cut
    return directory


@pytest.fixture
def run_crated(pytester: pytest.Pytester, home: Path, image_store: Path) -> RunCrated:
    """Run an inner pytest in a process of its own."""

    def run(source: str, *args: str) -> InnerRun:
        pytester.makepyfile(test_inner=source)
        pytester.makeini(f"[pytest]\ncrate_image_store = {image_store}\n")
        report = pytester.path / "crates.json"
        result = pytester.runpytest_subprocess(
            # Other plugins have descriptors and memory of their own: pytest-rerunfailures listens on a socket.
            *("-p", "no:cacheprovider", "-p", "no:rerunfailures", "-p", "no:cov"),
            f"--crate-report={report}",
            *args,
            timeout=INNER_TIMEOUT_SECONDS,
        )
        document = json.loads(report.read_text())
        tests = {test["nodeid"].partition("::")[2]: test for test in document["tests"]}
        return InnerRun(result=result, tests=tests)

    return run
