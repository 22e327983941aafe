from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def outside():
    return os.getpid(), socket.gethostname()


@pytest.fixture
def inside():
    return os.getpid(), socket.gethostname()


@pytest.mark.crate(hostname="crate-7")
def test_where_fixtures_run(outside, inside):
    assert inside == (os.getpid(), "crate-7")
    assert outside[0] != os.getpid()
    assert outside[1] != "crate-7"


@pytest.mark.crate
def test_tmp_path_is_kept(tmp_path):
    (tmp_path / "result.txt").write_text("to look at after a failure")


@pytest.mark.crate
def test_writes_are_private():
    Path("/tmp/leftover").touch()


@pytest.mark.crate
def test_and_vanish():
    assert not Path("/tmp/leftover").exists()


@pytest.mark.crate
def test_loopback_is_all_there_is():
    with socket.create_server(("127.0.0.1", 8080)) as server:
        socket.create_connection(server.getsockname()).close()
    with pytest.raises(OSError, match="unreachable"):
        socket.create_connection(("192.0.2.1", 80), timeout=10)
