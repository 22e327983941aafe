"""The inner runs of tests/functional, for the tests of pytest's own features."""

from __future__ import annotations

from tests.functional.conftest import both_ways as both_ways
from tests.functional.conftest import run_inner as run_inner
