"""Runs of an inner pytest, plain and with every test in a crate, and what they have to have in common."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.comparing import read_junit, without_varying

PATIENCE = int(os.environ.get("CRATE_TEST_PATIENCE", "1"))
"""How many times longer than usual anything may take, as on an emulated machine."""

INNER_TIMEOUT_SECONDS = 120 * PATIENCE

FORGING = """
def test_forges():
    from pytest_crate.plugin import transfer
    whole = transfer.pack_report
    transfer.pack_report = lambda *args: whole(*args) | {added!r}

def test_later(): pass
"""
"""Tests of which the first adds something of its own to its reports."""

RECORDER = Path(__file__).parent / "recorder.py"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class InnerRun:
    """One inner run of pytest: what it printed, reported and wrote as JUnit XML."""

    result: pytest.RunResult
    reports: list[dict[str, Any]]
    junit: list[Any]

    @property
    def ret(self) -> int:
        return int(self.result.ret)

    @property
    def text(self) -> str:
        return self.result.stdout.str()

    def of(self, name: str, when: str = "call") -> dict[str, Any]:
        """Return the one report of a test, given the end of its node id, and a phase."""
        found = [report for report in self.reports if report["nodeid"].endswith(name) and report["when"] == when]
        assert len(found) == 1, f"{len(found)} reports of {name}, {when}"
        return found[0]

    def outcomes(self) -> dict[str, int]:
        return {name: count for name, count in self.result.parseoutcomes().items() if name != "crates"}

    def printed(self) -> list[str]:
        """Return the lines on the terminal, without what crates add: header line, table."""
        lines: list[str] = []
        in_table = False
        for line in without_varying(self.text).splitlines():
            plain = re.sub(r"\x1b\[[0-9;]*m", "", line)
            if plain.startswith(("===", "!!!", "---")):
                in_table = plain.strip("=") == " crates "
            elif re.match(r"\d+ crates?, cpu ", plain):
                in_table = False  # with -q no rule ends the table: its total does
                continue
            if (
                not in_table
                and not plain.startswith(("crate: ", "cachedir: ", "confinement loosened: "))
                and "- generated xml file: " not in line
            ):
                # The width of a rule depends on the time or the path in it.
                lines.append(re.sub(r"^(==+|--+) | (==+|--+)$", " -- ", line))
        return lines


class RunInner(Protocol):
    """Runs pytest on the files of a test's directory."""

    def __call__(
        self,
        *args: str,
        way: str = "plain",
        env: dict[str, str] | None = None,
        plugins: Sequence[str] | None = None,
    ) -> InnerRun:
        """Run it.

        :param plugins: by the names of their entry points, the only ones to be loaded beside pytest-crate; without
            this, all that are installed are.
        """


@pytest.fixture
def run_inner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RunInner:
    """Run pytest in a process of its own, below the test's directory, and record its reports."""
    # pytester makes the project its home directory; few projects are one.
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    # In a CI job, which pytest takes these for, the short summary holds whole messages.
    # An inner run is no worker of this one.
    # Nor is it in the CI job of which tox keeps the variables.
    workers = [
        name for name in os.environ if name.startswith(("PYTEST_XDIST_", "__TOX_ENVIRONMENT_VARIABLE_ORIGINAL_"))
    ]
    # What is printed goes through buffers, as it does wherever nobody has asked for another way.
    python = ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE")
    for name in ("PYTEST_ADDOPTS", "PYTEST_DISABLE_PLUGIN_AUTOLOAD", "CI", "BUILD_NUMBER", *python, *workers):
        monkeypatch.delenv(name, raising=False)
    shutil.copy(RECORDER, tmp_path / "crate_recorder.py")

    def run(
        *args: str,
        way: str = "plain",
        env: dict[str, str] | None = None,
        plugins: Sequence[str] | None = None,
    ) -> InnerRun:
        if plugins is None:
            # Where it is installed its import takes longer than all the rest, and few inner tests need it.
            loaded = ["-p", "no:hypothesispytest"]
        else:
            env = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **(env or {})}
            loaded = [each for name in ("pytest_crate", *plugins) for each in ("-p", name)]
        recorded, junit = tmp_path / f"{way}.json", tmp_path / f"{way}.xml"
        for path in (recorded, junit):
            path.unlink(missing_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RECORDED", str(recorded))
            for name, value in (env or {}).items():
                patch.setenv(name, value)
            result = pytester.runpytest_subprocess(
                "-p",
                "crate_recorder",
                *loaded,
                f"--junitxml={junit}",
                f"-ocache_dir={tmp_path / way}.cache",
                *args,
                timeout=INNER_TIMEOUT_SECONDS,
            )
        reports = json.loads(recorded.read_text())["reports"] if recorded.exists() else []
        return InnerRun(result=result, reports=reports, junit=read_junit(junit) if junit.exists() else [])

    return run


BothWays = Callable[..., InnerRun]


@pytest.fixture
def both_ways(run_inner: RunInner) -> BothWays:
    """Run pytest plain and with ``--crate-all``, and assert that nobody could tell the two apart."""

    def run(
        *args: str,
        crated: bool = True,
        printed: bool = True,
        plugins: Sequence[str] | None = None,
        env: dict[str, str] | None = None,
    ) -> InnerRun:
        """Return the run in crates.

        :param crated: some test's body is expected to get as far as a crate.
        :param printed: what is on the terminal is compared, too.
        """
        plain = run_inner(*args, way="plain", plugins=plugins, env=env)
        crates = run_inner("--crate-all", *args, way="crated", plugins=plugins, env=env)
        assert any(report["crates"] for report in crates.reports) == crated
        assert not any(report["crates"] for report in plain.reports)
        differences = [
            *_differences("reports", _pretty(plain.reports), _pretty(crates.reports)),
            *_differences("JUnit XML", _pretty(plain.junit), _pretty(crates.junit)),
            *(_differences("terminal", plain.printed(), crates.printed()) if printed else ()),
        ]
        if differences:
            pytest.fail("\n".join(differences), pytrace=False)
        assert crates.ret == plain.ret
        return crates

    return run


def _pretty(data: list[Any]) -> list[str]:
    kept = [
        {name: value for name, value in item.items() if name not in ("crates", "uncrated", "pid")}
        if isinstance(item, dict)
        else item
        for item in data
    ]
    return without_varying(json.dumps(kept, indent=1)).splitlines()


def _differences(what: str, plain: list[str], crated: list[str]) -> list[str]:
    return list(difflib.unified_diff(plain, crated, f"{what} plain", f"{what} in crates", n=4, lineterm=""))
