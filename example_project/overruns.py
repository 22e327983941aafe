"""Every test here overruns a limit, and fails; see how with ``pytest example_project/overruns.py``."""

from __future__ import annotations

import re
import socket
import subprocess

import pytest

from logbook.entries import parse
from logbook.traffic import traffic


@pytest.mark.crate(memory="64m")
def test_memory():
    """Holds a whole log in memory; the kernel kills the crate at 64 MiB."""
    assert len(list(parse(traffic(2_000_000)))) == 2_000_000


@pytest.mark.crate(cpus=0.5, timeout=2)
def test_cpu_time():
    """Matches with a pattern that backtracks for ever; half a CPU doesn't get far in two seconds."""
    assert re.match(r"(\S+\s*)+\]", "a" * 64) is None


@pytest.mark.crate(pids=16)
def test_processes():
    """Starts one process per client; the kernel refuses the seventeenth task."""
    processes = [subprocess.Popen(["sleep", "60"]) for _ in range(50)]
    assert len(processes) == 50


@pytest.mark.crate
def test_network():
    """Calls out to the network, which isn't there."""
    socket.create_connection(("192.0.2.1", 443), timeout=10).close()


@pytest.mark.crate(tmpfs="16m")
def test_disk():
    """Spools 32 MiB to a private /tmp of 16."""
    with open("/tmp/spool", "wb") as spool:
        spool.writelines(bytes(1 << 20) for _ in range(32))
