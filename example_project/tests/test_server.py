"""A sandbox: the test stays outside and drives programs in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = str(Path(__file__).parents[1])
LOGBOOK = [sys.executable, "-m", "logbook"]
FETCH = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8080/').read().decode(), end='')"
SUMMARY = "4 requests, 1 errors, 500 bytes\n       2  192.0.2.1\n       1  192.0.2.2\n       1  127.0.0.1\n"


@pytest.mark.crate(memory="128m", pids=32)
def test_summary(crate_sandbox, log):
    """The program summarizes what comes in on its standard input."""
    completed = crate_sandbox.run([*LOGBOOK, "summary", "-"], input=log, cwd=PROJECT)
    assert completed.stdout == SUMMARY


@pytest.mark.crate(memory="128m", pids=32)
@pytest.mark.parametrize("visitor", ["first", "second"])
def test_server(crate_sandbox, log, visitor):
    """The server answers on port 8080, which is free in every sandbox, in parallel too."""
    crate_sandbox.write_text("/tmp/access.log", log)
    server = crate_sandbox.popen([*LOGBOOK, "serve", "/tmp/access.log"], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    assert server.stdout.readline() == "listening on http://127.0.0.1:8080/\n"
    assert crate_sandbox.run([sys.executable, "-c", FETCH]).stdout == SUMMARY


def test_a_missing_log(crate_sandbox):
    """A log that isn't there ends the program with status 2 and a message."""
    completed = crate_sandbox.run([*LOGBOOK, "summary", "/tmp/none.log"], cwd=PROJECT)
    assert completed.returncode == 2
    assert "/tmp/none.log" in completed.stderr
