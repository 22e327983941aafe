"""What a failed test reached for outside of its crate: found by the child in the exception, told by the mirror."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any

import pytest

from pytest_crate.plugin.crates import is_socket
from pytest_crate.report import failure
from pytest_crate.spec import CrateSpec

ATTRIBUTE = "crate_reach"
"""The attribute of a report on its way out of a crate that holds what was found, as builtins."""

_MOST = 3  # paths, and ports, told of one failure
_MOST_ERRORS = 50
_MOST_SOCKETS = 50
_UNREACHABLE = frozenset((errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN))
# A name that isn't known, for now or at all; EAI_NODATA is glibc's own.
_NO_NAME = frozenset((socket.EAI_NONAME, socket.EAI_AGAIN, socket.EAI_FAIL, -5))
_MISSING = frozenset((errno.ENOENT, errno.EACCES, errno.EPERM))
_NO_SERVER = _MISSING | {errno.ECONNREFUSED}  # unix(7)
_LOOPBACK = frozenset(("127.0.0.1", "::1", "localhost"))
# As asyncio, urllib3, libpq and URLs have it.
_ADDRESS = re.compile(r"(?:127\.0\.0\.1|localhost|::1\]?)['\"]?(?:,|:)? ?(?:port[= ])?['\"]?(\d{1,5})\b")
_LISTEN = "0A"  # TCP_LISTEN, include/net/tcp_states.h


def found(error: BaseException, spec: CrateSpec) -> dict[str, Any]:
    """In the child: return what the errors behind a failure tell of the world outside; often nothing.

    :return: builtins: ``network``, whether something unreachable was called; ``ports`` of the loopback interface
        that refused; ``paths`` that were missing; ``sockets``, paths that may have been meant for a connection.
    """
    facts: dict[str, Any] = {}
    for each in _chain(error):
        if isinstance(each, OSError):
            # An exception class of the user's may do anything when it is looked at; then there is nothing to tell.
            with contextlib.suppress(Exception):
                _look_at(each, spec, facts)
    return facts


def _look_at(error: OSError, spec: CrateSpec, facts: dict[str, Any]) -> None:
    closed = spec.network == "none"
    if isinstance(error, socket.gaierror):
        if closed and error.errno in _NO_NAME:
            facts["network"] = True
    elif closed and error.errno in _UNREACHABLE:
        facts["network"] = True
    elif closed and error.errno == errno.ECONNREFUSED:
        facts.setdefault("ports", []).extend(_ports(error))
    elif spec.image is None and error.errno in _MISSING:
        names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        facts.setdefault("paths", []).extend(map(os.path.abspath, names))
    if spec.image is None and error.filename is None and error.errno in _NO_SERVER:
        facts.setdefault("sockets", []).extend(list(_absolute_paths(error))[:_MOST_SOCKETS])


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, those that led to it, and those in groups, each once."""
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending and len(seen) < _MOST_ERRORS:
        each = pending.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        pending += [each.__context__, each.__cause__]
        if isinstance(each, BaseExceptionGroup):
            pending += each.exceptions


def _ports(error: OSError) -> Iterator[int]:
    """Yield the ports that a refused connection was meant for, as far as the error or its traceback has them."""
    for match in _ADDRESS.finditer(str(error)):
        yield int(match[1])
    # A socket's own error names no address; whoever connected often has it in a variable.
    for value in _variables(error):
        if (
            type(value) is tuple
            and len(value) >= 2
            and type(value[0]) is str
            and value[0] in _LOOPBACK
            and type(value[1]) is int
        ):
            yield value[1]


def _absolute_paths(error: BaseException) -> Iterator[str]:
    """Yield the absolute paths that those have in a variable whom an error came through."""
    for value in _variables(error):
        if type(value) is str and value.startswith("/"):
            yield value


def _variables(error: BaseException) -> Iterator[object]:
    traceback: TracebackType | None = error.__traceback__
    while traceback is not None:
        yield from tuple(traceback.tb_frame.f_locals.values())
        traceback = traceback.tb_next


def tell(report: pytest.TestReport, hidden: Callable[[Iterable[str]], Iterator[str]]) -> None:
    """In pytest: take what was found off a report, and say of it what is so, in the report's ``Crate`` section.

    What it holds is the word of a process that may not be trusted.

    :param hidden: yields those of the host's paths that a crate hides.
    """
    facts = report.__dict__.pop(ATTRIBUTE, None)
    if not report.failed or not isinstance(facts, Mapping):
        return
    notes = list(_notes(facts, hidden))
    if notes:
        report.sections.append(failure.notes_section(notes))


def _notes(facts: Mapping[str, Any], hidden: Callable[[Iterable[str]], Iterator[str]]) -> Iterator[str]:
    if facts.get("network") is True:
        yield failure.no_network()
    ports = dict.fromkeys(port for port in _several(facts, "ports") if type(port) is int)
    if ports:
        listening = _listening_ports()
        yield from (failure.other_loopback(port) for port in list(ports)[:_MOST] if port in listening)
    paths = filter(os.path.lexists, _paths(facts, "paths"))
    # Any variable may hold a path: only where a socket is was it one to connect to.
    sockets = filter(is_socket, _paths(facts, "sockets"))
    there = dict.fromkeys(itertools.chain(paths, sockets))
    yield from map(failure.hidden_path, itertools.islice(hidden(there), _MOST))


def _several(facts: Mapping[str, Any], name: str) -> list[Any]:
    """Return what a failure names of a kind, as far as an honest one would go on."""
    found = facts.get(name)
    return found[: 2 * _MOST_ERRORS] if isinstance(found, list) else []


def _paths(facts: Mapping[str, Any], name: str) -> list[str]:
    return [path for path in _several(facts, name) if isinstance(path, str) and "\0" not in path]


def _listening_ports() -> set[int]:
    """Return the TCP ports on which someone listens in the calling process's network (proc(5), /proc/net/tcp)."""
    ports: set[int] = set()
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/self/net/{name}", encoding="ascii") as table:
                rows = [line.split() for line in table][1:]
        except FileNotFoundError:  # a kernel without IPv6
            continue
        ports.update(int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == _LISTEN)
    return ports
