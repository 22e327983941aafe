"""What coverage.py measures in crates."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("coverage")

MODULE = """
def classify(number):
    if number < 0:
        return "negative"
    if number == 0:
        return "zero"
    return "positive"

def never():
    return 1
"""

TESTS = """
import measured
import pytest

@pytest.fixture
def zero():
    return measured.classify(0)

@pytest.mark.parametrize("number, word", [(-1, "negative"), (1, "positive")])
def test_classify(number, word):
    assert measured.classify(number) == word

def test_zero(zero):
    assert zero == "zero"
"""


@pytest.fixture(autouse=True)
def home(pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home of its own: pytester makes the project one, in which each file would be a mount of its own."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("options", [[], ["--branch"]])
def test_coverage_is_the_same_to_the_line(pytester: pytest.Pytester, options: list[str]) -> None:
    """Lines and branches run only in crates are measured, without any configuration."""
    pytester.makepyfile(measured=MODULE, test_measured=TESTS)
    found = {}
    for way in ([], ["--crate-all"]):
        data = pytester.path / f"data{len(way)}"
        command = [
            sys.executable,
            "-m",
            "coverage",
            "run",
            *options,
            f"--data-file={data}",
            "--source=.",
            "-m",
            "pytest",
        ]
        subprocess.run([*command, "-q", "-p", "no:cacheprovider", *way], check=True, timeout=100)
        target = Path(f"{data}.json")
        subprocess.run(
            [sys.executable, "-m", "coverage", "json", "-q", f"--data-file={data}", "-o", target],
            check=True,
            timeout=100,
        )
        files = json.loads(target.read_text())["files"]
        found[len(way)] = {
            name: (file["executed_lines"], file["missing_lines"], file.get("executed_branches"))
            for name, file in files.items()
        }
    assert found[0]["measured.py"][1] == [9]
    assert found[1] == found[0]


def test_pytest_cov_and_workers(pytester: pytest.Pytester) -> None:
    """pytest-cov's total is that of a plain run, with and without xdist."""
    pytest.importorskip("pytest_cov")
    pytester.makepyfile(measured=MODULE, test_measured=TESTS)
    totals = set()
    for way in ([], ["--crate-all"], ["--crate-all", "-n2"]):
        result = pytester.runpytest_subprocess(
            "-q", "-p", "no:cacheprovider", "--cov=measured", "--cov-branch", "--cov-report=term-missing", *way
        )
        (line,) = [line for line in result.outlines if line.startswith("measured.py")]
        totals.add(tuple(line.split()))
    assert len(totals) == 1, totals
