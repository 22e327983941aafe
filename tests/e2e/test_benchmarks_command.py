"""The benchmarks run: one figure of the quick form, from the wheel to the table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


@pytest.mark.needs("root", "overlay", "memory limit", "cpus limit", "pids limit")
def test_a_figure(tmp_path: Path, tests_cache: Path) -> None:
    """The command measures, tells what it does, prints a table with bars, and writes JSON."""
    written = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", "again", "--rounds", "2"]
    command += ["--json", str(written), "--cache", str(tests_cache / "benchmarks")]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=600)
    assert (done.returncode, "again: round 2 of 2" in done.stderr) == (0, True), done.stdout + done.stderr
    (figure,) = json.loads(written.read_text())["figures"]
    assert [set(measured) for measured in figure["rounds"]] == [{"subprocess.run", "crate", "usage"}] * 2
    # In a crate or not, a program needs some time; the table says the same as the file.
    values = {each["name"]: each["median"] for each in figure["contenders"]}
    assert 0.1 < values["subprocess.run"] < values["crate"] * 2
    ratio = figure["comparisons"][0]
    assert (ratio["one"], ratio["other"], ratio["bar"]) == ("crate", "subprocess.run", 1.5)
    (row, _) = [line for line in done.stdout.splitlines() if line.startswith("crate / subprocess.run ")]
    assert row.endswith(f"<= 1.5 {'met' if ratio['met'] else 'missed'}")
    assert f"{os.cpu_count()} CPUs" in done.stdout
