from __future__ import annotations

import os
import time

import pytest


@pytest.mark.crate(memory="64m")
def test_memory():
    buffer = bytearray(16 << 20)
    assert len(buffer) == 16 << 20


@pytest.mark.crate(cpus=0.5, timeout=30)
def test_cpu_bandwidth():
    started = time.monotonic()
    while time.process_time() < 0.3:
        pass
    assert time.monotonic() - started > 0.3


@pytest.mark.crate(cpuset="0")
def test_one_cpu():
    assert os.sched_getaffinity(0) == {0}


@pytest.mark.crate(pids=16)
def test_tasks():
    child = os.fork()
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0) == (child, 0)
