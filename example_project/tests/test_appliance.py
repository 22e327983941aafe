"""An image: tests and programs on a root filesystem that isn't the host's."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from logbook.settings import top_clients


@pytest.mark.crate(image="appliance")
def test_the_body_runs_on_the_image():
    """The test's own code sees the image's files: its name, its settings, its programs."""
    assert "ID=appliance" in Path("/etc/os-release").read_text()
    assert top_clients() == 1
    assert subprocess.check_output(["sh", "-c", "echo $0"], text=True) == "sh\n"


@pytest.mark.crate(image="appliance", hostname="appliance-7")
def test_a_program_runs_on_the_image(crate_sandbox):
    """A sandbox runs the image's programs, and changes to its files never reach the image."""
    assert crate_sandbox.run(["uname", "-n"]).stdout == "appliance-7\n"
    crate_sandbox.write_text("/etc/logbook.conf", "[summary]\ntop = 9\n")
    assert crate_sandbox.run(["cat", "/etc/logbook.conf"]).stdout == "[summary]\ntop = 9\n"


@pytest.mark.crate(image="appliance")
def test_the_next_crate_finds_it_unchanged(crate_sandbox):
    """Every crate starts from the image as it was built."""
    assert crate_sandbox.read_text("/etc/logbook.conf") == "[summary]\ntop = 1\n"
