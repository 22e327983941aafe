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

PARTS = [
    ("root", "tests/e2e/test_cgroup_v2.py"),
    ("root", "tests/functional/test_cgroup_parent.py"),
    ("root", "tests/escape/test_attempts.py"),
    *((user, f"tests/e2e/test_{name}.py") for user in ("root", USER) for name in ("limits", "isolation")),
]
# What a guest can't have, by who asks; any other skip is a failure.
LACKING = {
    "root": set[str](),
    USER: {"cpuset limit"},
}


@pytest.fixture(scope="session")
def project(guest: Guest) -> Guest:
    """The guest with the tests in it; what they test is the wheel."""
    guest.send(CHECKOUT, PROJECT, "tests", "pyproject.toml")
    for image in alpine_images():
        guest.send(image.parent, IMAGES, image.name)
    # Debian's kernel lets only CAP_SYS_ADMIN count events (3), and others CAP_PERFMON.
    assert guest.run("echo 2 >/proc/sys/kernel/perf_event_paranoid").returncode == 0
    return guest


@pytest.mark.long
@pytest.mark.parametrize(("user", "part"), PARTS, ids=[f"{user}-{Path(part).stem}" for user, part in PARTS])
def test_own(project: Guest, user: str, part: str) -> None:
    """They pass as root, and as an ordinary user with a systemd of its own; what is skipped can't be had there."""
    environ = f"CRATE_TEST_PATIENCE={PATIENCE} CRATE_TEST_IMAGES={IMAGES} COLUMNS=200"
    junit = f"/tmp/own-{user}.xml"
    done = project.run(
        f"rm -f {junit}; cd {PROJECT} && {environ} {VENV}/bin/python -B -m pytest -p no:cacheprovider "
        f"-p no:hypothesispytest -o junit_family=xunit1 --junitxml={junit} -v -rP {part}",
        user=user,
        seconds=7200,
    )
    print(done.stdout, done.stderr)
    cases = list(ET.fromstring(project.run(f"cat {junit}").stdout).iter("testcase"))
    failed = [case.get("name") for case in cases if any(node.tag in ("failure", "error") for node in case)]
    skipped = [str(node.get("message")) for case in cases for node in case.iter("skipped")]
    lacking = {reason.partition(":")[0].removeprefix("needs ") for reason in skipped}
    assert not failed
    assert lacking <= LACKING[user]
    assert len(skipped) < len(cases)
    assert done.returncode == 0
