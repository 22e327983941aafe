"""The inner runs of tests/functional, for the tests of pytest's own features."""

from __future__ import annotations

from tests.functional.conftest import both_ways, run_inner

__all__ = ["both_ways", "run_inner"]
