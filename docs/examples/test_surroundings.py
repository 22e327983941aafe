from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest


@pytest.mark.crate(hostname="box", workdir="/tmp")
def test_name_and_place():
    assert socket.gethostname() == "box"
    assert Path.cwd() == Path("/tmp")


@pytest.mark.crate(env={"TZ": "UTC", "LANG": None})
def test_variables():
    assert os.environ["TZ"] == "UTC"
    assert "LANG" not in os.environ


@pytest.fixture(scope="module")
def token():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SERVICE_TOKEN", "secret")
        yield


@pytest.mark.crate(clean_env=True, env={"GREETING": "hello"})
def test_few_variables(token):
    assert os.environ["GREETING"] == "hello"
    assert "SERVICE_TOKEN" not in os.environ


@pytest.mark.crate(tmpfs="16m")
def test_small_disk():
    with pytest.raises(OSError, match="No space left on device"):
        Path("/tmp/big").write_bytes(bytes(32 << 20))
    Path("/tmp/big").unlink()


HERE = Path(__file__).parent


@pytest.mark.crate(mounts=[f"{HERE}:/srv/examples:ro"])
def test_a_mount():
    assert Path("/srv/examples", Path(__file__).name).is_file()
    with pytest.raises(OSError, match="Read-only file system"):
        Path("/srv/examples/new").touch()
