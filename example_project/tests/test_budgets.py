"""Budgets: limits that the kernel enforces while a test runs."""

from __future__ import annotations

import pytest

from logbook.entries import parse
from logbook.summary import summarize
from logbook.traffic import traffic


@pytest.mark.crate(memory="64m")
def test_a_long_log_fits_in_little_memory():
    """A log is never held in memory: 200,000 requests are summarized within 64 MiB."""
    summary = summarize(parse(traffic(200_000)))
    assert summary.requests == 200_000
    assert len(summary.clients) == 50


@pytest.mark.crate(cpus=0.5, timeout=30)
def test_half_a_cpu_is_enough():
    """On half a CPU, 50,000 requests are summarized well within 30 seconds."""
    assert summarize(parse(traffic(50_000))).errors == 10_000


@pytest.mark.crate(cpus=0.5, timeout=30)
def test_a_line_that_is_no_request_costs_little():
    """A long line of garbage is passed over in one look; nothing backtracks."""
    assert list(parse(["a" * 1_000_000, '"' * 1_000_000])) == []
