"""A log's summary: how much traffic, how many errors, the busiest clients."""

from __future__ import annotations

import collections
import dataclasses
import socket
from collections.abc import Callable, Iterable

from logbook.entries import Entry


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a log says in numbers."""

    requests: int
    errors: int
    size_bytes: int
    clients: collections.Counter[str]


def summarize(entries: Iterable[Entry]) -> Summary:
    """Read entries once, keeping one counter per client and nothing else."""
    requests = errors = size_bytes = 0
    clients: collections.Counter[str] = collections.Counter()
    for entry in entries:
        requests += 1
        errors += entry.status >= 400
        size_bytes += entry.size_bytes
        clients[entry.client] += 1
    return Summary(requests=requests, errors=errors, size_bytes=size_bytes, clients=clients)


def host_name(address: str) -> str:
    """Return the name of an address, or the address itself if nobody can tell."""
    try:
        return socket.gethostbyaddr(address)[0]
    except OSError:
        return address


def render(summary: Summary, *, top: int, name: Callable[[str], str] = str) -> str:
    """Return a summary as text, with the busiest clients by name."""
    lines = [f"{summary.requests} requests, {summary.errors} errors, {summary.size_bytes} bytes"]
    lines += [f"{count:>8}  {name(client)}" for client, count in summary.clients.most_common(top)]
    return "\n".join(lines) + "\n"
