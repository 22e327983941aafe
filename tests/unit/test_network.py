"""Which file frees the low ports; the rest of the module needs a kernel: see the e2e tests."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from pytest_crate.errors import SandboxError
from pytest_crate.kernel.network import allow_low_ports


def test_allow_low_ports_writes_the_setting(tmp_path: Path) -> None:
    """The first unprivileged port becomes 0, in the procfs that is given."""
    setting = tmp_path / "sys/net/ipv4/ip_unprivileged_port_start"
    setting.parent.mkdir(parents=True)
    setting.write_text("1024", encoding="ascii")
    allow_low_ports(str(tmp_path))
    assert setting.read_text(encoding="ascii")[:1] == "0"


def test_allow_low_ports_without_procfs(tmp_path: Path) -> None:
    """A procfs that isn't there is an error that names the file and the value."""
    with pytest.raises(SandboxError, match="value '0'") as caught:
        allow_low_ports(str(tmp_path))
    assert caught.value.errno == errno.ENOENT
    assert caught.value.path == f"{tmp_path}/sys/net/ipv4/ip_unprivileged_port_start"
