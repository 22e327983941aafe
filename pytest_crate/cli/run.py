"""The commands ``pytest-crate run`` and ``pytest-crate shell``."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import os
from collections.abc import Sequence

from pytest_crate.cli.foreground import run_in_foreground
from pytest_crate.cli.messages import say, say_progress
from pytest_crate.cli.options import HOST, add_crate_options, find_image, open_store, spec_of
from pytest_crate.cli.parser import Commands, Parser
from pytest_crate.errors import SandboxError
from pytest_crate.kernel import identity
from pytest_crate.report import failure_message, failure_section
from pytest_crate.result import CrateResult, Exit
from pytest_crate.sandbox import host_view, rootfs
from pytest_crate.sandbox.crate_sandbox import CrateSandbox
from pytest_crate.sandbox.program import ProgramNotFound
from pytest_crate.sandbox.sandbox import Engine, LauncherEnded
from pytest_crate.spec import CrateSpec

# As in docker-run(1), and in shells.
OUR_FAILURE, NOT_EXECUTABLE, NOT_FOUND, SIGNALLED = 125, 126, 127, 128

_IMAGE_HELP = (
    "a directory or a tarball with a root filesystem, a name from [tool.pytest-crate.images] of ./pyproject.toml, "
    "or 'host': the host's own root, where writes are private"
)
_RUN = """\
Run a program in a crate of its own: fresh namespaces, a root filesystem of its own and limits that the kernel enforces.
On a terminal it gets a terminal; in a pipeline, the pipes. Nothing that it writes stays, but for mounts with :rw.
"""
_RUN_STATUS = """\
Exit status: the program's; 128 + n if signal n ended it; 125 if there could be no crate, 126 if the program can't be
executed, 127 if it is not found.
"""
_SHELL = "Open a shell in a crate of its own: the one that the user has in the image's user database, else /bin/sh."


def add_run(commands: Commands) -> None:
    """Add the parser of ``run``."""
    parser = commands.add_parser(
        "run",
        help="run a program in a crate",
        description=_RUN,
        epilog=_RUN_STATUS,
        usage="%(prog)s [options] IMAGE CMD [ARG...]",
        failure_status=OUR_FAILURE,
    )
    parser.add_argument("image", metavar="IMAGE", help=_IMAGE_HELP)
    parser.add_argument(
        "command",
        metavar="CMD",
        nargs=argparse.REMAINDER,
        help="the program and its arguments; options go before IMAGE",
    )
    _add_options(parser)
    parser.set_defaults(function=lambda arguments: _run(arguments, _command(parser, arguments)))


def add_shell(commands: Commands) -> None:
    """Add the parser of ``shell``."""
    parser = commands.add_parser(
        "shell",
        help="open a shell in a crate",
        description=_SHELL,
        epilog=_RUN_STATUS,
        usage="%(prog)s [options] IMAGE",
        failure_status=OUR_FAILURE,
    )
    parser.add_argument("image", metavar="IMAGE", help=_IMAGE_HELP)
    _add_options(parser)
    parser.set_defaults(function=lambda arguments: _run(arguments, None))


def _add_options(parser: Parser) -> None:
    parser.add_argument("--usage", action="store_true", help="say at the end, on standard error, what the crate used")
    add_crate_options(parser)


def _command(parser: Parser, arguments: argparse.Namespace) -> list[str]:
    command: list[str] = arguments.command
    if command[:1] == ["--"]:
        command = command[1:]
    elif command and command[0].startswith("-"):
        parser.error(f"{command[0]} stands after IMAGE; options go before it")
    if not command:
        parser.error("there is no program to run; 'pytest-crate shell' opens a shell")
    return command


def _run(arguments: argparse.Namespace, command: Sequence[str] | None) -> int:
    """Run a command, or (None) a shell.

    :raises CrateError: there can't be a crate.
    """
    reference, path = (None, None) if arguments.image == HOST else find_image(arguments.image, os.getcwd())
    spec = spec_of(arguments, reference)
    host_view.verify(spec, origin="the command line")
    with contextlib.ExitStack() as stack:
        engine = Engine(cgroup_parent=arguments.cgroup_parent, id_map=arguments.id_map)
        stack.callback(engine.close)
        rootless, overlay = engine.enforcement.rootless, engine.enforcement.overlay
        if reference is None or path is None:
            directory = None
            view = host_view.program_view(os.getcwd(), rootless=rootless, overlay=overlay, environ=os.environ)
        else:
            # An image is all that there is: the host's project and interpreter have no business there.
            directory = open_store(arguments).open(path, reference, progress=say_progress).rootfs
            view = rootfs.HostView(mounts=(), rootless=rootless, overlay=overlay)
        sandbox = engine.create(spec, rootfs.plan_root(spec, view, rootfs=directory), timed=True)
        stack.callback(sandbox.release)
        crate = CrateSandbox(sandbox, spec, name="run")
        stack.callback(_end, crate)
        argv = command if command is not None else [_shell(crate)]
        try:
            ended = run_in_foreground(crate, sandbox, argv)
        except SandboxError as error:
            if error.syscall != "execve":
                raise
            if isinstance(error, ProgramNotFound):
                say(f"{arguments.prog}: {error.path}: {error.detail}")
                return NOT_FOUND
            say(f"{arguments.prog}: {error}")
            return NOT_EXECUTABLE
        status = _status(ended)
        result = dataclasses.replace(crate.close(), exit=ended)
    _tell(arguments, spec, result)
    return status


def _end(crate: CrateSandbox) -> None:
    with contextlib.suppress(LauncherEnded):  # what is raised already has said so
        crate.close()


def _shell(crate: CrateSandbox) -> str:
    user = crate.spec.user or ("0" if crate.spec.image is not None else str(os.geteuid()))
    try:
        text = crate.read_bytes("/etc/passwd").decode(errors="surrogateescape")
    except SandboxError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise
        text = ""
    return identity.login_shell(user, text)


def _tell(arguments: argparse.Namespace, spec: CrateSpec, result: CrateResult) -> None:
    if arguments.usage:
        say(failure_section(result, spec)[1])
        return
    for limit in result.exceeded:
        say(f"{arguments.prog}: {failure_message(limit, spec, result.usage)}")


def _status(ended: Exit) -> int:
    if ended.signal is not None:
        return SIGNALLED + ended.signal
    if ended.code is None:
        raise SandboxError("run a program", detail="the launcher ended before it, and the crate with it")
    return ended.code
