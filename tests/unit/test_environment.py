"""The environment of a payload."""

from __future__ import annotations

from pytest_crate.sandbox.environment import payload_environment, program_environment
from pytest_crate.spec import CrateSpec

HOST = {"PATH": "/host/bin", "HOME": "/home/me", "SECRET": "x", "PYTEST_X": "1", "LC_ALL": "C", "TERM": "xterm"}


def test_a_body_has_the_hosts_environment_with_the_specs_changes() -> None:
    """Variables are set, and removed by None."""
    spec = CrateSpec(env=(("SECRET", None), ("TZ", "UTC")))
    assert payload_environment(spec, HOST) == {**{k: v for k, v in HOST.items() if k != "SECRET"}, "TZ": "UTC"}


def test_a_clean_environment_has_the_minimum() -> None:
    """What a program needs to start, and what belongs to pytest and Python, but no secrets."""
    assert payload_environment(CrateSpec(clean_env=True), HOST) == {k: v for k, v in HOST.items() if k != "SECRET"}


def test_a_program_on_an_image_has_the_images_environment() -> None:
    """The host's PATH, HOME and secrets mean nothing there."""
    environ = program_environment(CrateSpec(image="x", env=(("A", "1"),)), HOST)
    assert environ["PATH"].startswith("/usr/local/sbin:")
    assert environ.keys() == {"PATH", "LANG", "TERM", "A"}


def test_a_program_on_the_hosts_root_has_what_a_body_has() -> None:
    """Without an image, driving and riding are alike."""
    assert program_environment(CrateSpec(), HOST) == payload_environment(CrateSpec(), HOST)
