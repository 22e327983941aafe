"""``pytest-crate doctor`` and ``pytest --crate-doctor`` on the real host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_crate.cli import main
from pytest_crate.kernel import calls, libc
from pytest_crate.sandbox import doctor

WHOLE_HOST = pytest.mark.needs("root", "overlay", *(f"{key} limit" for key in ("memory", "swap", "cpus", "pids")))


@WHOLE_HOST
def test_a_host_that_enforces(capfd: pytest.CaptureFixture[str]) -> None:
    """Here crates are enforced: status 0, a whole crate among the rows, in less than two seconds, without colour."""
    began = time.monotonic()
    assert main(["doctor"]) == 0
    assert time.monotonic() - began < 2
    out, err = capfd.readouterr()
    assert (err, "\x1b" in out) == ("", False)
    lines = out.splitlines()
    assert [line for line in lines if line.startswith("ok        a whole crate    made, limited, used and removed in ")]
    assert lines[-1] == "Crates are fully enforced here."


@WHOLE_HOST
def test_json(capfd: pytest.CaptureFixture[str]) -> None:
    """``--json`` has the same rows as data."""
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    rows = {row["feature"]: row for row in found["rows"]}
    assert found["enforced"] is True
    assert rows["memory limit"] == {
        "feature": "memory limit",
        "status": "ok",
        "detail": "enforced",
        "affects": ["memory"],
        "remedy": "",
    }
    assert rows["a whole crate"]["status"] == "ok"


@WHOLE_HOST
def test_from_pytest(tmp_path: Path) -> None:
    """``pytest --crate-doctor`` prints the same, collects nothing, and has the same status."""
    (tmp_path / "test_it.py").write_text("raise SystemError('collected')")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--crate-doctor", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0
    assert done.stdout.startswith("kernel ")
    assert done.stdout.endswith("Crates are fully enforced here.\n")


@pytest.mark.needs("unprivileged user")
def test_an_ordinary_user() -> None:
    """Any user can ask; whoever may make no cgroups is told which keys that concerns, and that it is not enough."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            libc.prctl("own /proc/self again", libc.PR_SET_DUMPABLE, 1)
            os.chdir("/")
            os.write(writing, json.dumps(doctor.examine().to_json()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as file:
        found = json.load(file)
    os.waitpid(pid, 0)
    rows = {row["feature"]: row for row in found["rows"]}
    assert found["enforced"] is False
    assert (rows["memory limit"]["status"], rows["memory limit"]["affects"]) == ("missing", ["memory"])
    assert rows["a whole crate"]["status"] in ("ok", "missing")


@pytest.mark.needs("root")
def test_a_program_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crate in which a program can't run is no crate: the row has the program's last words."""
    monkeypatch.setattr(doctor, "_SCRIPT", "raise SystemExit('no such luck')")
    rows = {row.feature: row for row in doctor.examine().rows}
    assert rows["a whole crate"].status == "missing"
    assert rows["a whole crate"].detail == "a program in it ended with 1: no such luck"


@pytest.mark.needs("calls")
def test_how_programs_enter(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says whether the program is there that enters crates; without it they are made in a less deep way."""
    assert doctor.entering_row().status == "ok"
    monkeypatch.setattr(calls, "PROGRAM", "/nowhere")
    row = doctor.entering_row()
    assert (row.status, row.affects) == ("degraded", ())
    assert "pip install" in row.remedy


def test_closed_output(tmp_path: Path) -> None:
    """Nothing can be said without standard output; the status says it all the same."""
    line = f"{sys.executable} -m pytest_crate.cli doctor >&-"
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, stderr=-1, timeout=60, check=False)
    assert (done.returncode in (0, 1), done.stderr) == (True, b"")


def test_no_such_cgroup(capfd: pytest.CaptureFixture[str]) -> None:
    """A cgroup parent that doesn't exist is said with the command that makes it."""
    assert main(["doctor", "--cgroup-parent", "/no/such/cgroup"]) == 2
    assert capfd.readouterr().err.startswith(
        "pytest-crate doctor: the configured cgroup '/no/such/cgroup' does not exist"
    )
