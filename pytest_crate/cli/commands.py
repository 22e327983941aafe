"""The parser of ``pytest-crate``, and what becomes of a command: its status, or a message."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence

from pytest_crate import __version__
from pytest_crate.cli.doctor import add_doctor
from pytest_crate.cli.image import add_image
from pytest_crate.cli.messages import say
from pytest_crate.cli.parser import Parser
from pytest_crate.cli.run import add_run, add_shell
from pytest_crate.errors import CrateError

_DESCRIPTION = """\
Run programs in crates: fresh Linux namespaces, a root filesystem of their own, and limits on memory, CPU, processes and
time that the kernel enforces.
"""


def make_parser() -> Parser:
    """Return the parser; the arguments that it gives have the ``function`` to call."""
    parser = Parser(prog="pytest-crate", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"pytest-crate {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (add_run, add_shell, add_doctor, add_image):
        add(commands)
    return parser


def run_command(argv: Sequence[str] | None) -> int:
    """Run a command; return its exit status.

    :param argv: the arguments; None for those of the process.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A path is printed as it is, in whatever encoding: Python does so of itself in the locales C and POSIX only.
        sys.stdout.reconfigure(errors="surrogateescape")
    arguments = make_parser().parse_args(argv)
    try:
        status: int = arguments.function(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output, such as head(1), has gone. Python's own flush at the end would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 1)
        return 128 + signal.SIGPIPE
    except (CrateError, OSError) as error:
        say(f"{arguments.prog}: {error}")
        return int(arguments.failure_status)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return status
