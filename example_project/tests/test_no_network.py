"""No network: a crate has a loopback interface of its own and nothing else."""

from __future__ import annotations

import socket

import pytest

from logbook.entries import parse
from logbook.summary import host_name, render, summarize

pytestmark = pytest.mark.crate(network="none")


def test_nothing_answers():
    """No address outside is reachable; the attempt fails at once."""
    with pytest.raises(OSError, match="unreachable"):
        socket.create_connection(("192.0.2.1", 80), timeout=10)


def test_unknown_names_stay_addresses(log):
    """Without a name server, a summary with names shows addresses."""
    assert render(summarize(parse(log.splitlines())), top=1, name=host_name) == (
        "4 requests, 1 errors, 500 bytes\n       2  192.0.2.1\n"
    )
