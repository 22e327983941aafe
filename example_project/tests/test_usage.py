"""Usage: what a program took, in numbers that a test can assert on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from logbook.traffic import traffic

PROJECT = str(Path(__file__).parents[1])


@pytest.mark.crate(memory="128m")
def test_the_price_of_a_summary(crate_sandbox):
    """Summarizing 50,000 requests takes less than 5 seconds of CPU time and 64 MiB of memory."""
    completed = crate_sandbox.run(
        [sys.executable, "-m", "logbook", "summary", "-"], input="".join(traffic(50_000)), cwd=PROJECT
    )
    assert completed.returncode == 0
    assert completed.exceeded == ()
    usage = crate_sandbox.usage
    assert 0 < usage.cpu_usage_usec < 5_000_000
    assert 1 << 20 < usage.memory_peak_bytes < 64 << 20
    assert usage.memory_oom_kills == 0
