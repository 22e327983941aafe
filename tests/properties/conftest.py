"""How long properties are tried: shortly with all tests, long with ``tox -e fuzz``."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("fuzz", max_examples=100_000, deadline=None, derandomize=False, print_blob=True)
