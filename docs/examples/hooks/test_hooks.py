from __future__ import annotations

import time

import pytest


@pytest.mark.slow
@pytest.mark.crate(timeout=0.5)
def test_slow():
    time.sleep(1)
