"""``pytest --crate-doctor``: prints what the host offers to crates, and stops."""

from __future__ import annotations

import shutil
import sys

import pytest

from pytest_crate.errors import HostError
from pytest_crate.report.doctor import doctor_text
from pytest_crate.sandbox.doctor import examine


def print_doctor(config: pytest.Config) -> int:
    """Print what the host offers; return 0 if crates are fully enforced, else 1.

    :raises pytest.UsageError: the configured cgroup parent does not exist.
    """
    try:
        host = examine(cgroup_parent=config.getini("crate_cgroup_parent") or None)
    except HostError as error:
        raise pytest.UsageError(f"ini crate_cgroup_parent: {error}") from error
    colour = {"yes": True, "no": False}.get(config.getoption("color"), sys.stdout.isatty())
    sys.stdout.write(doctor_text(host.to_json(), width=shutil.get_terminal_size().columns, colour=colour))
    return 0 if host.enforced else 1
