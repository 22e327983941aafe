"""The JSON report: one document, described by the JSON Schema beside this module, written in one piece."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping

from pytest_crate.errors import CrateError
from pytest_crate.report.hints import PreloadHint
from pytest_crate.report.record import TestRecord, shared_crates

SCHEMA_VERSION = 1
"""Raised when a field changes its meaning or goes; a new field alone does not raise it."""


def json_report(
    host: Mapping[str, object], records: Iterable[TestRecord], hints: Iterable[PreloadHint] = ()
) -> dict[str, object]:
    """Return the report as builtins, in the shape of ``schema-1.json``.

    Tests are in the order of their ids, whatever order and worker they ran in; records of one id
    (reruns) keep theirs.

    :param host: what enforced the crates, as builtins.
    :param hints: what would make them cheaper.
    """
    tests = sorted(records, key=lambda record: record.nodeid)
    return {
        "schema": SCHEMA_VERSION,
        "host": dict(host),
        "tests": [record.to_json() for record in tests],
        "shared_crates": [crate.to_json() for crate in shared_crates(tests)],
        "hints": [hint.to_json() for hint in hints],
    }


def write_report(path: str | os.PathLike[str], report: Mapping[str, object]) -> None:
    """Write a report as JSON; missing directories are made.

    A reader of the file never sees half a report: it appears by rename(2). What is no regular file,
    such as a pipe or ``/dev/stdout``, is written to as it is.

    :raises CrateError: it can't be written; the message names the path and the reason.
    """
    # ASCII: test ids may hold lone surrogates (a file name that is not UTF-8), which no encoding can write.
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            with open(path, "w", encoding="ascii") as file:
                file.write(text)
        else:
            # A symlink stays one; what it points at is replaced.
            _replace(os.path.realpath(path), text)
    except OSError as error:
        raise CrateError(f"cannot write the crate report {os.fspath(path)!r}: {error.strerror or error}") from error


def _replace(target: str, text: str) -> None:
    directory, name = os.path.split(target)
    os.makedirs(directory, exist_ok=True)
    # Not tempfile: its files are mode 0600, and a report is for others to read as the umask allows.
    temporary = os.path.join(directory, f".{name[:200]}.{os.urandom(8).hex()}.tmp")
    try:
        with open(temporary, "x", encoding="ascii") as file:
            file.write(text)
        os.rename(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
