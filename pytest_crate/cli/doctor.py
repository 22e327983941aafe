"""The command ``pytest-crate doctor``."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys

from pytest_crate.cli.parser import Commands
from pytest_crate.report.doctor import doctor_text
from pytest_crate.sandbox.doctor import examine

_DESCRIPTION = """\
Say what this host offers to crates: what was tried, whether it works, which keys of the marker depend on it, and the
command or setting that mends what is missing. Exit status: 0 if crates are fully enforced, 1 if not.
"""


def add_doctor(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser("doctor", help="say what this host offers to crates", description=_DESCRIPTION)
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.add_argument("--cgroup-parent", metavar="CGROUP", help="make crates' cgroups below this one")
    parser.set_defaults(function=doctor)


def doctor(arguments: argparse.Namespace) -> int:
    """Print what the host offers.

    :raises HostError: there is no such cgroup parent.
    """
    host = examine(cgroup_parent=arguments.cgroup_parent)
    if arguments.json:
        print(json.dumps(host.to_json(), indent=2))
    else:
        width = shutil.get_terminal_size().columns
        print(doctor_text(host.to_json(), width=width, colour=_wants_colour()), end="")
    return 0 if host.enforced else 1


def _wants_colour() -> bool:
    # NO_COLOR counts with any value but the empty one (no-color.org).
    if sys.stdout is None:  # closed before we were started
        return False
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
