"""Where a child's captured output goes: to files of its own, so that it need not walk in step with pytest."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from typing import IO

import pytest

from pytest_crate.plugin import private

_CHUNK_BYTES = 1 << 20
# pytest reads what is captured whole into its memory.
_MOST_LEFT_BYTES = 4 << 20


class ChildOutput:
    """The files of all children, one after the other; nothing is in them between two tests.

    What pytest captures of an item before the fork, the output of wider fixtures, is moved to the child,
    which reports it with its own. What a child leaves unreported, because it crashed, is moved back.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._files: list[tuple[int, int, IO[bytes]]] = []
        self._moved = ("", "")
        if private.captures(config) == "fd":
            # On a disk, as pytest's own: kept in memory they would count against the crate's limit without end.
            self._files = [
                (target, captured, tempfile.TemporaryFile(buffering=0))  # noqa: SIM115 - kept for the whole run
                for target, captured in private.captured_files(config)
            ]

    def before_fork(self) -> None:
        """Have the files hold what pytest has captured so far."""
        for _, captured, file in self._files:
            _empty(file.fileno())
            _copy(captured, file.fileno())

    def in_child(self) -> None:
        """Let what is captured from now on go to the files, and what was captured so far be in them."""
        for target, captured, file in self._files:
            # Opened anew: flags that a test sets there (fcntl(2), F_SETFL) would be every later test's.
            own = os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDWR | os.O_CLOEXEC)
            os.lseek(own, 0, os.SEEK_END)
            if os.path.sameopenfile(target, captured):
                os.dup2(own, target)
            os.dup2(own, captured, inheritable=False)
            os.close(own)
            file.close()

    def in_mirror(self) -> None:
        """Forget in pytest what the child reports."""
        self._moved = private.take_captured(self._config)

    def take_back(self, *, reported: bool) -> None:
        """In pytest, when the child has gone: let what it has left unreported be captured here.

        :param reported: what was moved to it, it has reported.
        """
        for _, captured, file in self._files:
            _copy(file.fileno(), captured, most_bytes=_MOST_LEFT_BYTES)
            _empty(file.fileno())
        if not self._files and not reported:
            private.write_captured(self._config, *self._moved)
        self._moved = ("", "")


def _empty(descriptor: int) -> None:
    if os.fstat(descriptor).st_size:
        os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)


def _copy(source: int, target: int, *, most_bytes: int | None = None) -> None:
    """Append what is in one file to another; of more than so many bytes the middle is left out."""
    size = os.fstat(source).st_size
    if most_bytes is None or size <= most_bytes:
        _copy_part(source, target, 0, size)
        return
    half = most_bytes // 2
    _copy_part(source, target, 0, half)
    _write(target, f"\n[... {size - 2 * half} bytes cut by pytest-crate ...]\n".encode())
    _copy_part(source, target, size - half, size)


def _copy_part(source: int, target: int, start: int, end: int) -> None:
    while start < end and (chunk := os.pread(source, min(_CHUNK_BYTES, end - start), start)):
        start += len(chunk)
        _write(target, chunk)


def _write(target: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]


def flush(config: pytest.Config) -> None:
    """Write out what is buffered, so that it is not written twice after a fork, nor lost at an exit.

    With the capture suspended: what was printed before a test, the terminal's own lines among it, is not the test's.
    """
    with private.capture_suspended(config):
        for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            # A test may have closed or replaced any of them.
            with contextlib.suppress(OSError, ValueError, AttributeError):
                if stream is not None:
                    stream.flush()
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.flush()
