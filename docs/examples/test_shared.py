"""Tests that share a crate (docs/scope.md)."""

from __future__ import annotations

import os

import pytest

pytestmark = pytest.mark.crate(scope="module", memory="256m")


def test_writes():
    with open("/etc/written", "w") as file:
        file.write("by the test before")


def test_finds():
    assert os.path.exists("/etc/written")
