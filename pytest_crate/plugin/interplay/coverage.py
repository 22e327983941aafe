"""Brings home what coverage.py has measured in a crate, whose files are gone when it ends."""

from __future__ import annotations

import glob
import os
import re
import stat
import sys
import warnings
from collections.abc import Iterable
from typing import Any

import pytest

from pytest_crate.plugin import private
from pytest_crate.plugin.interplay.adapter import Adapter, expect
from pytest_crate.sandbox.rootfs import is_below
from pytest_crate.sandbox.temporary import SHARED_MEMORY

# Of a data file that coverage.py gives a name to: host, pid and a random part; before 7.5 without "pid".
_PID = re.compile(r"\.(?:pid)?(\d+)\.[^./]+$")
# coverage.py keeps a file's lines as bits, as many as its greatest number says, be it the only one.
_MAX_LINE = 1 << 24
_MAX_LINES = 1 << 26  # of all files that a crate brings home: 8 MiB of bits, which take seconds to add
# What a process, and a context, costs on top, in lines that take as long to add.
_PART_LINES, _CONTEXT_LINES = 1 << 14, 1 << 10
# coverage.py reads a file whole when it reports on it, and takes several times as much memory.
_MAX_SOURCE_BYTES = 64 << 20
# What is read there need not have an end, but for shared memory: that is a directory as any other.
_NO_SOURCES = ("/dev", "/proc", "/sys")


def adapter(_config: pytest.Config) -> Adapter:
    return _Coverage()


def _running() -> Any:
    # Not imported: whoever measures has imported it.
    module: Any = sys.modules.get("coverage")
    return None if module is None else module.Coverage.current()


def _data(running: Any) -> Any:
    """Return what was measured so far; a single test may have run nothing that is to be measured."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sys.modules["coverage.exceptions"].CoverageWarning)
        return running.get_data()


class _Coverage(Adapter):
    at_end = True

    def __init__(self) -> None:
        self._before: frozenset[str] = frozenset()
        self._lines_left = _MAX_LINES

    def brings_much(self, item: pytest.Item) -> bool:
        return _running() is not None

    def child_starts(self, item: pytest.Item) -> None:
        running = _running()
        if running is not None:
            self._before = frozenset(_parallel_files(_data(running)))

    def take(self, item: pytest.Item) -> Any:
        running = _running()
        if running is None:
            return None
        running.stop()
        # coverage.py notices the fork and begins a file of its own, in the crate's private layer; processes that
        # the test has started and that are measured (patch = subprocess, concurrency = multiprocessing) as well.
        own = _data(running)
        parts = [_packed(own)]
        for path in sorted(set(_parallel_files(own)) - self._before - {own.data_filename()}):
            data = sys.modules["coverage"].CoverageData(path)
            data.read()
            parts.append(_packed(data))
        return parts

    def mirror_starts(self, item: pytest.Item) -> None:
        self._lines_left = _MAX_LINES

    def give(self, item: pytest.Item, data: Any) -> None:
        running = _running()
        if running is None:
            return
        shared = _shared_directories(item)
        parts = [_Part(part, shared) for part in expect(data, list)]
        self._lines_left -= sum(part.lines for part in parts)
        if self._lines_left < 0:
            raise ValueError(f"files of more than {_MAX_LINES} lines")
        for part in parts:
            part.add_to(_data(running))


def _parallel_files(data: Any) -> list[str]:
    # How coverage.py itself finds the files to combine (coverage.data.combinable_files). Another xdist worker may write
    # its own at this moment, in a directory that crates see. Its pid, which is in the name, is more than any here.
    paths = glob.glob(glob.escape(data.base_filename()) + ".*")
    with open("/proc/loadavg", encoding="ascii") as file:
        last = int(file.read().split()[4])  # the pid last given in this namespace (proc_loadavg(5))
    return [path for path in paths if (found := _PID.search(path)) is None or int(found[1]) <= last]


def _packed(data: Any) -> dict[str, Any]:
    files = sorted(data.measured_files())
    contexts = {}
    for context in sorted(data.measured_contexts() | {""}):
        data.set_query_context(context)
        read = data.arcs if data.has_arcs() else data.lines
        contexts[context] = {file: found for file in files if (found := read(file))}
    data.set_query_contexts(None)
    return {
        "arcs": data.has_arcs(),
        "contexts": contexts,
        "tracers": {file: data.file_tracer(file) or "" for file in files},
    }


class _Part:
    """What one process has measured, as :func:`_packed` wrote it."""

    def __init__(self, packed: Any, shared: Iterable[str]) -> None:
        """
        :param shared: the directories whose files it says nothing of.
        """
        self._arcs: bool = expect(packed["arcs"], bool)
        contexts = {
            expect(name, str): _checked(files, self._arcs) for name, files in expect(packed["contexts"], dict).items()
        }
        tracers = {expect(file, str): expect(name, str) for file, name in expect(packed["tracers"], dict).items()}
        named = {file for files in contexts.values() for file in files} | set(tracers)
        kept = {file for file in named if _is_kept(file, shared)}
        self._contexts = {
            name: {file: found for file, found in files.items() if file in kept} for name, files in contexts.items()
        }
        self._tracers = {file: name for file, name in tracers.items() if file in kept}

    @property
    def lines(self) -> int:
        """How many lines coverage.py has to keep a bit of, or what takes as long."""
        besides = _PART_LINES + _CONTEXT_LINES * len(self._contexts)
        if self._arcs:
            return besides  # arcs are kept one by one
        return besides + sum(max(found, default=0) for files in self._contexts.values() for found in files.values())

    def add_to(self, measured: Any) -> None:
        # Not loads(), which would run what it is given as SQL.
        data = sys.modules["coverage"].CoverageData(no_disk=True)
        for context, files in self._contexts.items():
            data.set_context(context)
            (data.add_arcs if self._arcs else data.add_lines)(files)
        data.touch_files(self._tracers)
        data.add_file_tracers({file: name for file, name in self._tracers.items() if name})
        measured.update(data)
        if set(self._contexts) <= {""}:
            # Said once more, piece by piece: coverage combines only one of several workers' files that have the same
            # hash, and what update() adds is not hashed (coverage 7.17, sqldata.py). Contexts are, by their names.
            (measured.add_arcs if self._arcs else measured.add_lines)(self._contexts.get("", {}))


def _checked(files: Any, arcs: bool) -> dict[str, list[Any]]:
    """Return what was measured in each file; nothing in it can cost more than it should."""
    checked: dict[str, list[Any]] = {}
    for file, found in expect(files, dict).items():
        if arcs:
            checked[expect(file, str)] = [(_line(start, -_MAX_LINE), _line(end, -_MAX_LINE)) for start, end in found]
        else:
            checked[expect(file, str)] = [_line(number, 0) for number in found]
    return checked


def _shared_directories(item: pytest.Item) -> list[str]:
    """Return the directories that a body may write to, where a file may be another one when it is reported on."""
    found = (private.basetemp(item.config), private.cache_directory(item.config))
    return [os.path.realpath(directory) for directory in found if directory is not None]


def _is_kept(file: str, shared: Iterable[str]) -> bool:
    """Return whether what was measured of a file is kept: coverage.py reads each that is named, be it a pipe.

    :raises ValueError: it is no name of a file.
    """
    for place in {os.path.abspath(file), os.path.realpath(file)}:
        if any(is_below(place, directory) for directory in shared):
            return False
        if any(is_below(place, directory) for directory in _NO_SOURCES) and not is_below(place, SHARED_MEMORY):
            return False
    try:
        status = os.stat(file)
    except OSError:
        return True  # it was there in the crate alone
    return stat.S_ISREG(status.st_mode) and status.st_size <= _MAX_SOURCE_BYTES


def _line(number: Any, least: int) -> int:
    if not least <= expect(number, int) < _MAX_LINE:
        raise ValueError(f"{number} is no line number")
    return int(number)
