"""The parser of ``pytest-crate``'s command line."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn, TypeAlias


class Parser(argparse.ArgumentParser):
    """A parser for a command that chooses the exit status of its own failures.

    :param failure_status: for a command line that makes no sense; the command's failures have it as well.
    """

    def __init__(self, *, failure_status: int = 2, **keywords: object) -> None:
        super().__init__(allow_abbrev=False, **keywords)  # type: ignore[arg-type]
        self.failure_status = failure_status
        self.set_defaults(failure_status=failure_status, prog=self.prog)

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """Parse all arguments: what a command's own parser doesn't know is that command's failure."""
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unknown arguments: {' '.join(unknown)}")
        return namespace, unknown

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and exit."""
        self.print_usage(sys.stderr)
        self.exit(self.failure_status, f"{self.prog}: {message}\nTry '{self.prog} --help'.\n")


# What add_subparsers() returns has no public name, and can't be subscripted when the program runs.
Commands: TypeAlias = "argparse._SubParsersAction[Parser]"  # noqa: SLF001
"""What the parsers of commands are added to."""
