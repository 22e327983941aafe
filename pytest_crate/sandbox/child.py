"""One straight line from a fresh fork to the payload: join the cgroup, enter the namespaces, give up power.

The *payload* is a test's body, forked from pytest, or a program, forked from the launcher. Its life:
it is born in the crate's PID namespace, joins the measured cgroup before it allocates anything of
its own, enters the other namespaces, drops what it may not have, and becomes the user's code.
"""

from __future__ import annotations

import dataclasses
import fcntl
import itertools
import json
import os
import signal
import stat
import termios
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import capabilities, identity, libc, namespaces, seccomp
from pytest_crate.sandbox import steps

_MAX_TEXT_CHARACTERS = 4 << 20
_NULL = os.makedev(1, 3)  # admin-guide/devices.txt
# Set aside in the launcher, by itself or (SIGPIPE, SIGXFSZ) by Python.
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What a payload needs to enter a crate, prepared before the fork.

    :ivar enter_files: files of the cgroup; writing ``0`` to each joins it (cgroups(7)).
    :ivar cgroup: its directory, where a process can be born in it; None where not.
    :ivar namespaces: the crate's namespaces.
    :ivar keep: numbers of the capabilities that the crate's root keeps.
    :ivar last_capability: the highest number that the running kernel knows.
    :ivar seccomp: the filter program; empty for none.
    :ivar user_namespace: descriptor of a user namespace in which the payload's root is nobody outside; None for none.
    :ivar one_user: the crate has a user namespace of one user, in which setgroups(2) is denied.
    """

    enter_files: tuple[str, ...]
    cgroup: str | None
    namespaces: namespaces.NamespaceHandles
    keep: frozenset[int]
    last_capability: int
    seccomp: bytes
    user_namespace: int | None
    one_user: bool


def hide() -> None:
    """Keep the crate's other processes from tracing the calling one, or opening its program, until it executes another.

    Between giving up its capabilities and execve(2) it is their equal, without the filter yet, and still runs the
    host's interpreter from the host's own mount (CVE-2016-9962, CVE-2019-5736). execve(2) takes this back.
    """
    libc.prctl("hide from the crate's processes", libc.PR_SET_DUMPABLE, 0)


def enter(entry: Entry, clock: steps.Clock = steps.OFF, *, joined: bool) -> None:
    """Move the calling process, just born by :func:`namespaces.fork_inside`, into the crate.

    :param joined: it was born in the crate's cgroup.
    :raises SandboxError: a step is refused; the process must then end without running the payload.
    """
    for path in () if joined else entry.enter_files:
        libc.write_file("join the crate's cgroup", path, "0")
    clock.done("join the cgroup")
    entry.namespaces.enter(skip=frozenset({"user"}))
    # After joining, so that the crate's own cgroup is the root of what /proc/self/cgroup shows.
    libc.unshare("make a cgroup namespace", libc.CLONE_NEWCGROUP)
    clock.done("enter the namespaces")


def confine(entry: Entry, who: identity.Identity | None, clock: steps.Clock = steps.OFF) -> None:
    """Give up every right that a payload may not have; the last step before the user's code.

    :param who: the user to become; None stays who it is.
    :raises SandboxError: a step is refused; the process must then end without running the payload.
    """
    root = (os.geteuid() if who is None else who.uid) == 0
    if entry.user_namespace is not None:
        # The same ids, so that files stay reachable, without any power over what the host owns: the
        # crate's mounts, network and devices among it. It gives every capability, to be dropped below.
        libc.setns("enter the payload's user namespace", entry.user_namespace, libc.CLONE_NEWUSER, "user")
    clock.done("enter the user namespace")
    # The bounding set first: dropping from it needs CAP_SETPCAP. Capabilities that root keeps are
    # of no use to another user, and a fork (unlike an exec) would carry them over.
    capabilities.limit_bounding_set(entry.keep, entry.last_capability)
    clock.done("drop the bounding set")
    if who is not None:
        identity.become(who, keep_groups=entry.one_user)
    capabilities.set_capabilities(capabilities.capability_mask(entry.keep) if root else 0)
    capabilities.no_new_privs()
    clock.done("drop capabilities")
    if entry.seccomp:
        seccomp.install(entry.seccomp)
    clock.done("install the system call filter")


def use_own_null() -> None:
    """Put the crate's own ``/dev/null`` in the place of the host's, where that is standard input, output or error.

    By a descriptor of the host's mount, the crate's root could change the machine's: its mode, its owner.
    """
    for number in range(3):
        try:
            status = os.fstat(number)
        except OSError:  # closed
            continue
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == _NULL:
            with libc.os_step("open the crate's /dev/null", "open", "/dev/null"):
                own = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
                os.dup2(own, number)
                os.close(own)


def read_text_inside(path: str) -> str:
    """Return the text of a file of the crate's, empty if there is none.

    An image, or a program before, may have put anything there: a pipe to wait on, a device, a file without end. A
    terminal does not become that of the session that a payload leads.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with open(descriptor, encoding="utf-8", errors="surrogateescape") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return ""
            return stream.read(_MAX_TEXT_CHARACTERS)
    except OSError:
        return ""


def who_is(user: str | None) -> identity.Identity | None:
    """Look a user up in the crate's own user database; None if no user is asked for."""
    if user is None:
        return None
    return identity.parse_user(user, read_text_inside("/etc/passwd"), read_text_inside("/etc/group"))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program to run in a crate.

    :ivar argv: its name, looked for in the crate's PATH if it has no slash, and arguments.
    :ivar env: the whole of its environment.
    :ivar cwd: its working directory in the crate.
    :ivar terminal: descriptor 0 is a terminal, to become its controlling terminal.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    user: str | None
    terminal: bool

    def to_json(self) -> dict[str, object]:
        """Return it as builtins."""
        # Not asdict(), whose deep copies of the environment take as long as all else that pytest does for a program.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Program:
        """Rebuild a program that :meth:`to_json` wrote."""
        return cls(
            argv=tuple(data["argv"]),
            env=data["env"],
            cwd=data["cwd"],
            user=data["user"],
            terminal=data["terminal"],
        )


def become_program(program: Program, entry: Entry, stdio: Sequence[int], failing: int, *, joined: bool) -> None:
    """Live as a program's payload: enter the crate, take the given descriptors as 0, 1, 2, and execute."""
    try:
        signal.set_wakeup_fd(-1)
        try:
            hide()
            enter(entry, joined=joined)
            with libc.os_step("begin a session", "setsid"):
                os.setsid()
            for number, descriptor in enumerate(stdio):
                with libc.os_step("give the program its streams", "dup2", str(number)):
                    os.dup2(descriptor, number)
            use_own_null()
            if program.terminal:
                with libc.os_step("take the terminal", "ioctl", "TIOCSCTTY"):
                    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            # Both are close-on-exec; the namespace is entered on the way there.
            needed = {failing} if entry.user_namespace is None else {failing, entry.user_namespace}
            for below, above in itertools.pairwise([2, *sorted(needed), 1 << 20]):
                os.closerange(below + 1, above)
            # An exec keeps what is ignored (signal(7)); the program starts with the defaults.
            for number in _IGNORED:
                signal.signal(number, signal.SIG_DFL)
            error = _execute(program, entry)
        except SandboxError as failure:
            error = failure
        except OSError as failure:
            error = SandboxError(f"run {program.argv[0]}", path=str(failure.filename or ""), errno=failure.errno)
        except Exception as failure:  # noqa: BLE001 - whatever it is, it must not look like the program's own end
            error = SandboxError(f"run {program.argv[0]}", detail=repr(failure))
        os.write(failing, json.dumps(error.to_json()).encode())
    finally:
        os._exit(127)


def _execute(program: Program, entry: Entry) -> SandboxError:
    """Become the program; return only with the reason why not."""
    step = f"run {program.argv[0]}"
    try:
        who = who_is(program.user)
        env = dict(program.env)
        if who is not None:
            env.setdefault("HOME", who.home)
            env.setdefault("USER", who.name)
        # As root still: the crate's root may enter a directory that the user may not.
        with libc.os_step(f"{step}: enter its working directory", "chdir", program.cwd):
            os.chdir(program.cwd)
        if program.terminal and who is not None:
            # For a program that opens its terminal by name; the one who made it is its owner (runc does likewise).
            with libc.os_step(f"{step}: give the user the terminal", "fchown", "0"):
                os.fchown(0, who.uid, -1)
        confine(entry, who)
        with libc.os_step(step, "execve", program.argv[0]):
            os.execvpe(program.argv[0], list(program.argv), env)
    except SandboxError as error:
        return error
    raise AssertionError("execve(2) returned without an error")
