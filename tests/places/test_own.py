"""The project's own tests, a part of them, in a guest: what they say on this machine holds on cgroup v2, too."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.conftest import alpine_images
from tests.guest.image import USER, VENV
from tests.guest.machine import Guest
from tests.places.conftest import CHECKOUT

PROJECT = "/opt/project"
IMAGES = "/opt/images"
# How much longer than here an inner run may take under emulation.
PATIENCE = 5

ROOT_ONLY = ("cgroup_v2", "delegation", "rootless", "no_overlay", "private_root")
EVERYBODY = ("limits", "isolation", "host", "fork_inside")
PARTS = [
    *(("root", f"tests/e2e/test_{name}.py") for name in (*ROOT_ONLY, *EVERYBODY)),
    *((USER, f"tests/e2e/test_{name}.py") for name in EVERYBODY),
    *(
        (user, f"tests/functional/test_{name}.py")
        for user in ("root", USER)
        for name in ("sandbox", "scope", "walk_outcomes", "crashes", "reports")
    ),
]
# What a guest can't have, by who asks; any other skip is a failure.
LACKING = {
    "root": {"cgroup v1"},
    USER: {"root", "cgroup v1", "cpuset limit"},
}


@pytest.fixture(scope="session")
def project(guest: Guest) -> Guest:
    """The guest with the tests in it; what they test is the wheel."""
    guest.send(CHECKOUT, PROJECT, "tests", "pyproject.toml")
    for image in alpine_images():
        guest.send(image.parent, IMAGES, image.name)
    return guest


@pytest.mark.long
@pytest.mark.parametrize(("user", "part"), PARTS, ids=[f"{user}-{Path(part).stem}" for user, part in PARTS])
def test_own(project: Guest, user: str, part: str) -> None:
    """They pass as root, and as an ordinary user with a systemd of its own; what is skipped can't be had there."""
    # Another systemd than ours is asked, and no more is required than the guest has.
    environ = f"CRATE_TEST_PATIENCE={PATIENCE} CRATE_TEST_IMAGES={IMAGES} COLUMNS=200"
    junit = f"/tmp/own-{user}.xml"
    done = project.run(
        f"rm -f {junit}; cd {PROJECT} && {environ} {VENV}/bin/python -B -m pytest -p no:cacheprovider "
        f"-p no:hypothesispytest -o junit_family=xunit1 --junitxml={junit} -v --durations=10 {part}",
        user=user,
        seconds=7200,
    )
    print(done.stdout[-20000:], done.stderr)
    cases = list(ET.fromstring(project.run(f"cat {junit}").stdout).iter("testcase"))
    failed = [case.get("name") for case in cases if any(node.tag in ("failure", "error") for node in case)]
    reasons = {str(node.get("message")) for case in cases for node in case.iter("skipped")}
    unexpected = {reason for reason in reasons if reason.partition(":")[0].removeprefix("needs ") not in LACKING[user]}
    assert not failed, failed
    assert not unexpected
    assert len(reasons) < len(cases), "all are skipped"
    assert done.returncode == 0
