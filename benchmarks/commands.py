"""Runs commands to their end, in surroundings that say nothing of the outer run."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_NOT_PASSED_ON = ("CI", "COLUMNS", "FORCE_COLOR", "NO_COLOR", "PY_COLORS", "VIRTUAL_ENV")
_NOT_PASSED_ON_PREFIXES = ("BENCH_", "COV_", "CRATE_", "PYTEST_", "PYTHON", "TOX_")
_TAIL_CHARACTERS = 2000


class CommandFailed(Exception):
    """A command ended with another status than 0, or went on for too long."""


def surroundings() -> dict[str, str]:
    """Return this process's environment without what tells of tox, Python and pytest."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in _NOT_PASSED_ON and not name.startswith(_NOT_PASSED_ON_PREFIXES)
    }


def run(
    command: Sequence[str | Path],
    *,
    where: Path | None = None,
    environ: Mapping[str, str] | None = None,
    seconds: float = 900,
) -> tuple[float, str]:
    """Run a command and return the seconds that it took and what it printed.

    :param environ: variables on top of :func:`surroundings`.
    :raises CommandFailed: it ended with another status than 0, or was ended after so many ``seconds``.
    """
    started = time.perf_counter()
    try:
        # A session of its own: at the timeout everything it started goes with it.
        process = subprocess.Popen(
            command,
            cwd=where,
            env=surroundings() | dict(environ or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise CommandFailed(f"{command[0]}: {error.strerror}") from error
    with process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            text = output.decode(errors="replace")[-_TAIL_CHARACTERS:]
            raise CommandFailed(f"{_shown(command)} still ran after {seconds:g} s\n{text}") from None
    took = time.perf_counter() - started
    text = output.decode(errors="replace")
    if process.returncode != 0:
        raise CommandFailed(f"{_shown(command)} ended with {process.returncode}\n{text[-_TAIL_CHARACTERS:]}")
    return took, text


def _shown(command: Sequence[str | Path]) -> str:
    return " ".join(map(str, command))
