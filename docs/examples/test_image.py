from __future__ import annotations

from pathlib import Path

import pytest


@pytest.mark.crate(image="appliance")
def test_a_body_on_an_image():
    assert "ID=appliance" in Path("/etc/os-release").read_text()


@pytest.mark.crate(image="appliance")
def test_a_program_on_an_image(crate_sandbox):
    done = crate_sandbox.run(["sh", "-c", ". /etc/os-release; echo $NAME"])
    assert done.stdout == "Logbook Appliance\n"
