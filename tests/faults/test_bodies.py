"""What a test's own code may run into, or do, in its crate: it fails with the reason, and the next one runs."""

from __future__ import annotations

import re

import pytest

from tests.inner import RunInner

pytestmark = pytest.mark.needs("root", "overlay", "memory limit", "pids limit", "no swap")

OOM = """
import subprocess, sys
import pytest

@pytest.fixture
def eats_in_setup():
    return bytearray(200 << 20)

@pytest.fixture
def eats_in_teardown():
    yield
    bytearray(200 << 20)

pytestmark = pytest.mark.crate(memory="64m", timeout=60)

def test_setup(eats_in_setup): pass

def test_call(): bytearray(200 << 20)

def test_teardown(eats_in_teardown): pass

def test_child(): subprocess.run([sys.executable, "-c", "bytearray(200 << 20)"])

def test_program(crate_sandbox):
    done = crate_sandbox.run([sys.executable, "-c", "bytearray(200 << 20)"])
    assert (done.exceeded, done.returncode) == (("memory",), -9)
    assert crate_sandbox.run(["echo", "x"]).stdout == "x\\n"

def test_program_checked(crate_sandbox):
    crate_sandbox.run([sys.executable, "-c", "bytearray(200 << 20)"], check=True)

@pytest.mark.crate(memory="100k")
def test_entering(): pass

def test_after(): pass
"""


def test_out_of_memory_at_each_stage(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """In set-up, body, tear-down, a child, a program, or on the way into the crate: each names the limit."""
    pytester.makepyfile(OOM)
    run = run_inner()
    exceeded = "memory limit 64 MiB exceeded"
    assert exceeded in run.of("test_setup", "setup")["longrepr"]
    assert exceeded in run.of("test_call")["longrepr"]
    assert exceeded in run.of("test_child")["longrepr"]
    assert run.of("test_teardown")["outcome"] == "passed"
    assert exceeded in run.of("test_teardown", "teardown")["longrepr"]
    assert run.of("test_program")["outcome"] == "passed"
    assert "limits exceeded: memory" in run.of("test_program_checked")["longrepr"]
    assert "memory limit 100 KiB exceeded" in run.of("test_entering", "setup")["longrepr"]
    assert run.of("test_after")["outcome"] == "passed"


FULL = """
import errno, os, subprocess
import pytest
from pytest_crate.errors import SandboxError

pytestmark = pytest.mark.crate(tmpfs="16m", timeout=60)

def fill(path):
    with open(path, "wb") as file:
        while True:
            file.write(bytes(1 << 20))

@pytest.mark.parametrize("place", ["/tmp", "/var/tmp", "/run", "/etc", "/dev/shm"])
def test_full(place):
    with pytest.raises(OSError) as caught:
        fill(f"{place}/much")
    assert caught.value.errno == errno.ENOSPC
    os.unlink(f"{place}/much")
    with open(f"{place}/little", "w") as file:
        file.write("x")

def test_full_untold(): fill("/tmp/much")

def test_program(crate_sandbox):
    done = crate_sandbox.run(["sh", "-c", "cat /dev/zero > /tmp/much"])
    assert done.returncode == 1 and "No space left on device" in done.stderr
    with pytest.raises(SandboxError, match="No space left on device"):
        crate_sandbox.write_bytes("/tmp/more", bytes(1 << 20))

def test_sparse(tmp_path):
    # 10 GB that take no room: in the private layer, and in pytest's own directory on the host.
    for path in ("/tmp/sparse", tmp_path / "sparse"):
        with open(path, "wb") as file:
            file.truncate(10 * 10**9)
        assert os.stat(path).st_size == 10 * 10**9 and os.stat(path).st_blocks < 64

def test_after(): assert not {"much", "little", "sparse"} & {*os.listdir("/tmp")}
"""


def test_a_full_private_layer(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A body, or a program, that fills its private layer meets ENOSPC; the next crate's is empty."""
    pytester.makepyfile(FULL)
    run = run_inner("--basetemp=base")
    assert run.outcomes() == {"passed": 8, "failed": 1}, run.text
    assert "No space left on device" in run.of("test_full_untold")["longrepr"]


FORKING = """
import os, signal, subprocess, sys, time
import pytest

pytestmark = pytest.mark.crate(pids=200, timeout=1)

def fork_for_ever():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        try:
            if os.fork() == 0:
                os.setsid()
                time.sleep(0.01)
                os._exit(0)
        except OSError:
            pass

def test_timeout(): fork_for_ever()

def test_leaves():
    for _ in range(4):
        if os.fork() == 0:
            fork_for_ever()
    time.sleep(0.2)

def test_dies():
    for _ in range(4):
        if os.fork() == 0:
            fork_for_ever()
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGKILL)

@pytest.mark.crate(timeout=30)
def test_program(crate_sandbox):
    script = "trap '' TERM INT; for i in 1 2 3; do (while :; do (sleep 0.01 &); done) & done; sleep 100"
    assert "timeout" in crate_sandbox.run(["sh", "-c", script], timeout=1).exceeded

@pytest.mark.crate(timeout=30)
def test_after(): pass
"""


def test_forking_while_being_killed(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Who forks while it is killed, at its timeout or its end, is gone with the rest of its crate."""
    pytester.makepyfile(FORKING)
    run = run_inner()
    assert re.search("timeout of 1 s exceeded|pids limit 200 exceeded", run.of("test_timeout")["longrepr"])
    assert "SIGKILL" in run.of("test_dies")["longrepr"] or "exceeded" in run.of("test_dies")["longrepr"]
    assert run.of("test_program")["outcome"] == "passed", run.of("test_program")["longrepr"]
    assert run.of("test_after")["outcome"] == "passed"
