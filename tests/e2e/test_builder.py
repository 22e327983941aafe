"""The builder of roots, and the next one that takes its place."""

from __future__ import annotations

import socket
import subprocess
from contextlib import ExitStack
from unittest.mock import Mock

import pytest

from pytest_crate.errors import SandboxError
from pytest_crate.sandbox.builder import Builder
from pytest_crate.sandbox.launcher import Launcher


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
        launcher = object.__new__(Launcher)
        launcher.ending = set()
        launcher.builder = Builder(pid=working.pid, channel=channel)
        building = Mock(builder=Builder(pid=working.pid, channel=gone), channel=heard, init=init.pid)
        with pytest.raises(SandboxError, match="the builder was killed"):
            launcher._hear(building)
        assert launcher.builder is not None
        assert working.poll() is None
