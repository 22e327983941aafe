"""Builds the image that the examples run on: the example project's."""

from __future__ import annotations

import runpy
from pathlib import Path

IMAGES = Path(__file__).parents[2] / "example_project" / "images"


def pytest_configure(config):
    """Build the image before collection; under xdist the workers find it built."""
    if not hasattr(config, "workerinput"):
        runpy.run_path(str(IMAGES / "build_appliance.py"), run_name="__main__")
