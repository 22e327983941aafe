from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pytest_crate.sandbox.terminal import open_terminal


def test_run(crate_sandbox):
    done = crate_sandbox.run(["tr", "a-z", "A-Z"], input="hello\n")
    assert done.args == ("tr", "a-z", "A-Z")
    assert (done.returncode, done.stdout, done.stderr) == (0, "HELLO\n", "")


def test_run_in_other_surroundings(crate_sandbox):
    done = crate_sandbox.run(["sh", "-c", 'echo "$GREETING from $PWD"'], env={"GREETING": "hello"}, cwd="/usr")
    assert done.stdout == "hello from /usr\n"


def test_bytes(crate_sandbox):
    assert crate_sandbox.run(["cat"], input=b"\xff\x00", text=False).stdout == b"\xff\x00"


def test_files(crate_sandbox):
    crate_sandbox.write_text("/etc/motd", "welcome\n")
    assert crate_sandbox.run(["cat", "/etc/motd"]).stdout == "welcome\n"
    crate_sandbox.run(["sh", "-c", "printf '\\001' > /tmp/answer"])
    assert crate_sandbox.read_bytes("/tmp/answer") == b"\x01"


def test_popen(crate_sandbox):
    server = crate_sandbox.popen(
        ["sh", "-c", "echo ready; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout.readline() == "ready\n"
    assert len(crate_sandbox.processes()) == 1
    assert server.communicate("bye\n")[0] == "bye\n"
    assert server.returncode == 0


def test_terminal(crate_sandbox):
    root = os.open(crate_sandbox.root, os.O_PATH)
    terminal = open_terminal(root)
    program = crate_sandbox.popen(["tty"], stdin=terminal.slave, stdout=terminal.slave, terminal=True)
    assert program.wait(10) == 0
    assert os.read(terminal.master, 100) == b"/dev/pts/0\r\n"
    for descriptor in (terminal.master, terminal.slave, root):
        os.close(descriptor)


EAT = "import sys; print('eating', flush=True); data = bytearray(256 << 20)"


@pytest.mark.crate(memory="64m")
def test_a_limit_is_a_result(crate_sandbox):
    done = crate_sandbox.run([sys.executable, "-c", EAT])
    assert done.exceeded == ("memory",)
    assert done.returncode == -9
    assert done.stdout == "eating\n"


def test_a_timeout_is_a_result(crate_sandbox):
    done = crate_sandbox.run(["sleep", "60"], timeout=0.5)
    assert done.exceeded == ("timeout",)
