from __future__ import annotations

import pytest


@pytest.mark.crate(memory="64m")
def test_two_machines(crate_sandbox_factory):
    first = crate_sandbox_factory(hostname="first")
    second = crate_sandbox_factory(hostname="second", memory="128m")
    first.write_text("/tmp/note", "mine\n")
    assert first.run(["uname", "-n"]).stdout == "first\n"
    assert "note" not in second.run(["ls", "/tmp"]).stdout


@pytest.fixture
def appliance(crate_sandbox_factory):
    return crate_sandbox_factory(image="appliance", hostname="appliance")


def test_a_fixture_of_your_own(appliance):
    assert appliance.run(["uname", "-n"]).stdout == "appliance\n"
