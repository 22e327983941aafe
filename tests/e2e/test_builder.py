"""The builder, and inits that furnish their own roots: what goes wrong with one root is nothing to the next."""

from __future__ import annotations

import socket
import subprocess
from contextlib import ExitStack
from unittest.mock import Mock

import pytest

from pytest_crate.errors import SandboxError
from pytest_crate.sandbox.builder import Builder
from pytest_crate.sandbox.making import Maker
from pytest_crate.sandbox.remains import Remains

pytestmark = pytest.mark.needs("root", "overlay", "calls")

LAUNCHER = """
from pytest_crate.sandbox import sandbox

assert sandbox._LAUNCH.endswith("; main()")
sandbox._LAUNCH = sandbox._LAUNCH.removesuffix("main()") + "exec(" + repr({program!r}) + "); main()"
sandbox.Engine.prepare = lambda *_, **__: None  # each crate is begun by its own test
"""

TESTS = """
import os
import psutil
import pytest

PIDS = []

def builder():
    (found,) = [each for each in psutil.Process().children(recursive=True) if each.name() == "crate-builder"]
    return found

def places(pid):
    names = [os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")]
    return [*names, os.readlink(f"/proc/{pid}/root"), len(os.listdir(f"/proc/{pid}/fd"))]

def test_before(crate_sandbox):
    assert crate_sandbox.run(["hostname"]).stdout != "bad\\n"
    PIDS.append((builder().pid, places(builder().pid)))

@pytest.mark.crate(hostname="bad")
def test_bad(crate_sandbox): pass

def test_after(crate_sandbox):
    assert crate_sandbox.run(["true"]).returncode == 0
    assert os.readlink(f"/proc/{builder().pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt")
    assert builder().cwd() == "/"
    same = (builder().pid, places(builder().pid)) == PIDS[0]
    print("the same builder" if same else "another builder", PIDS, builder().pid, places(builder().pid))
"""


def run_with(pytester: pytest.Pytester, program: str) -> str:
    """Run the tests with a launcher that does something first; return what pytest printed."""
    pytester.makeconftest(LAUNCHER.format(program=program))
    pytester.makepyfile(TESTS)
    done = pytester.runpytest_subprocess("-rP", "-p", "no:cacheprovider", "-p", "no:rerunfailures")
    assert done.parseoutcomes() == {"passed": 2, "errors": 1}
    return done.stdout.str()


def test_a_root_that_cannot_be_furnished(pytester: pytest.Pytester) -> None:
    """The builder tells why, leaves the crate's namespaces, keeps nothing of it, and furnishes the next root."""
    printed = run_with(
        pytester,
        """
import errno, os, sys
from pytest_crate.errors import SandboxError
from pytest_crate.sandbox import mounts
perform = mounts.Proc.perform
def refuse(self, shop):
    if os.uname().nodename == "bad":
        raise SandboxError("try it", syscall="mount", path="/here", errno=errno.EIO)
    perform(self, shop)
mounts.Proc.perform = refuse
""",
    )
    assert "crate: try it: mount(/here): Input/output error (errno 5)" in printed
    assert "the same builder" in printed


def test_a_builder_that_hangs(pytester: pytest.Pytester) -> None:
    """It is killed when a root is not ready in time, and another furnishes the next one."""
    printed = run_with(
        pytester,
        """
import time
from pytest_crate.sandbox import builder, making
making.READY_SECONDS = 1
furnish = builder.furnish
builder.furnish = lambda design, *a, **k: (
    time.sleep(100) if design.hostname == "bad" else furnish(design, *a, **k)
)
""",
    )
    assert "crate: build the crate: its process did not get ready within" in printed
    assert "another builder" in printed


def test_a_builder_that_cannot_leave(pytester: pytest.Pytester) -> None:
    """It says so and ends: whatever is asked next is asked of another one."""
    printed = run_with(
        pytester,
        """
import os
from pytest_crate.sandbox import builder
take = builder._WayBack.take
def stay(self, kinds):
    if os.uname().nodename == "bad":
        raise OSError(1, "no way back")
    take(self, kinds)
builder._WayBack.take = stay
""",
    )
    assert "crate: build the crate: Operation not permitted (errno 1)" in printed
    assert "another builder" in printed


def test_a_builder_that_is_killed(pytester: pytest.Pytester) -> None:
    """The test whose root it was at fails with that."""
    printed = run_with(
        pytester,
        """
import os
from pytest_crate.sandbox import builder
furnish = builder.furnish
builder.furnish = lambda design, *a, **k: (
    os.kill(os.getpid(), 9) if design.hostname == "bad" else furnish(design, *a, **k)
)
""",
    )
    assert "crate: build the crate: the builder was killed" in printed
    assert "another builder" in printed


def test_whoever_should_bear_an_init_is_killed(pytester: pytest.Pytester) -> None:
    """Its end is noticed, and not only that nothing is ready in time: the init that it may have borne waits itself."""
    printed = run_with(
        pytester,
        """
import struct
from pytest_crate.kernel import libc, seccomp
from pytest_crate.sandbox import making
making.READY_SECONDS = 10_000
begin_init = making.begin_init
is_write = struct.pack(
    "=HBBIHBBIHBBIHBBI",
    *(0x20, 0, 0, 0),  # load the call's number
    *(0x15, 0, 1, libc.NUMBERS["write"]),
    *(0x06, 0, 0, 0x80000000),  # SECCOMP_RET_KILL_PROCESS
    *(0x06, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
)
def doomed(design, birth, kinds):
    if design.hostname == "bad":
        birth.table.add("be doomed", "prctl", libc.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        seccomp.install(is_write, call=birth.table.add)
    begin_init(design, birth, kinds)
making.begin_init = doomed
""",
    )
    assert "crate: make the crate's namespaces: the process that should fork died" in printed
    assert "the same builder" in printed


def test_an_init_that_hangs_without_a_builder(pytester: pytest.Pytester) -> None:
    """A forked init that is not ready in time is given up likewise."""
    pytester.makeconftest(
        LAUNCHER.format(
            program="""
import time
from pytest_crate.kernel import calls
from pytest_crate.sandbox import init, making
making.READY_SECONDS = 1
calls.works = lambda: False
furnish = init.furnish
init.furnish = lambda design, *a, **k: time.sleep(100) if design.hostname == "bad" else furnish(design, *a, **k)
"""
        )
    )
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.crate(hostname="bad")
        def test_bad(crate_sandbox): pass

        @pytest.mark.crate
        def test_after(crate_sandbox): assert crate_sandbox.run(["true"]).returncode == 0
        """
    )
    done = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:rerunfailures")
    assert done.parseoutcomes() == {"passed": 1, "errors": 1}
    assert "crate: build the crate: its process did not get ready within" in done.stdout.str()


def test_what_one_leaves_undone_does_not_end_the_next() -> None:
    """A root that was asked of a builder that has ended can't be made; the next builder, at work already, lives on."""
    with ExitStack() as stack:
        processes = [stack.enter_context(subprocess.Popen(["sleep", "100"])) for _ in range(2)]
        for process in processes:
            stack.callback(process.kill)
        init, working = processes
        pairs = [socket.socketpair() for _ in range(3)]
        for end in (end for pair in pairs for end in pair):
            stack.enter_context(end)
        (heard, told), (gone, _), (channel, _) = pairs
        told.close()
        maker = object.__new__(Maker)
        maker._remains = Remains()
        maker._builder = Builder(pid=working.pid, channel=channel)
        making = Mock(builder=Builder(pid=working.pid, channel=gone), channel=heard, init=init.pid)
        with pytest.raises(SandboxError, match="the builder was killed"):
            maker._hear(making)
        assert maker._builder is not None
        assert working.poll() is None
