"""The command ``pytest-crate``: programs in crates by hand, what the host offers, and the store of images."""

from __future__ import annotations

import os
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status.

    :param argv: the arguments; None for those of the process.
    """
    _open_standard_descriptors()
    # Not before: an import may open what stays open, as that of ctypes does with newer versions of libffi.
    from pytest_crate.cli.commands import run_command  # noqa: PLC0415

    return run_command(argv)


def _open_standard_descriptors() -> None:
    # What we open ourselves must not take the number of a closed one, and so become a program's input or output.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        continue
    os.close(descriptor)
