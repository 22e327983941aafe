from __future__ import annotations

import sys

import pytest

GROW = "data = b'x' * (50 << 20)"


@pytest.mark.crate(memory="256m")
def test_usage(crate_sandbox):
    done = crate_sandbox.run([sys.executable, "-c", "sum(range(1_000_000))"])
    assert done.usage.cpu_usage_usec < 2_000_000

    crate_sandbox.run([sys.executable, "-c", GROW])
    assert 50 << 20 < crate_sandbox.usage.memory_peak_bytes < 256 << 20
    assert crate_sandbox.usage.memory_oom_kills == 0
