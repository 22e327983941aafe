"""One straight line from a new process to the payload: join the cgroup, enter the namespaces, give up power.

The *payload* is a test's body, forked from pytest, or a program, started by the launcher. Its life:
it is born in the crate's PID namespace, joins the measured cgroup before it allocates anything of
its own, enters the other namespaces, drops what it may not have, and becomes the user's code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import json
import os
import signal
import stat
import termios
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import calls, capabilities, identity, libc, namespaces, seccomp
from pytest_crate.sandbox import steps

_MAX_TEXT_CHARACTERS = 4 << 20
_STEP_USER = "look for the crate's user"
# Nothing, a link that leads nowhere, a socket, a device on a mount that has none.
_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EACCES)
_NULL = os.makedev(1, 3)  # admin-guide/devices.txt
# Set aside in the launcher, by itself or (SIGPIPE, SIGXFSZ) by Python.
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ)


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
    :ivar root: whoever enters is its root, unless it becomes another user.
    :ivar one_user: the crate has a user namespace of one user, in which setgroups(2) is denied.
    """

    enter_files: tuple[str, ...]
    cgroup: str | None
    namespaces: namespaces.NamespaceHandles
    keep: frozenset[int]
    last_capability: int
    seccomp: bytes
    user_namespace: int | None
    root: bool
    one_user: bool

    @contextlib.contextmanager
    def opened(self) -> Iterator[tuple[int, ...]]:
        """Open ``enter_files``, for a process that will not see their paths any more; closed at the end.

        :raises SandboxError: one can't be opened.
        """
        with contextlib.ExitStack() as opened:
            files = []
            for path in self.enter_files:
                with libc.os_step("join the crate's cgroup", "open", path):
                    files.append(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
                opened.callback(os.close, files[-1])
            yield tuple(files)


def hide(*, call: libc.Caller = libc.syscall) -> None:
    """Keep the crate's other processes from tracing the calling one, or opening its program, until it executes another.

    Between giving up its capabilities and execve(2) it is their equal, without the filter yet, and still runs the
    host's interpreter from the host's own mount (CVE-2016-9962, CVE-2019-5736). execve(2) takes this back.
    """
    call("hide from the crate's processes", "prctl", libc.PR_SET_DUMPABLE, 0, 0, 0, 0, path="PR_SET_DUMPABLE")


def enter(
    entry: Entry,
    files: Sequence[int],
    clock: steps.Clock = steps.OFF,
    *,
    joined: bool,
    whole: bool,
    call: libc.Caller = libc.syscall,
) -> None:
    """Move the calling process, just born by :func:`namespaces.fork_inside`, into the crate.

    :param files: :meth:`Entry.opened`.
    :param joined: it was born in the crate's cgroup.
    :param whole: it was born in all of the crate's namespaces.
    :raises SandboxError: a step is refused; the process must then end without running the payload.
    """
    for file, path in () if joined else zip(files, entry.enter_files, strict=True):
        call("join the crate's cgroup", "write", file, b"0", 1, path=path)
    clock.done("join the cgroup")
    if not whole:
        entry.namespaces.enter(call=call)
    # After joining, so that the crate's own cgroup is the root of what /proc/self/cgroup shows.
    libc.unshare("make a cgroup namespace", libc.CLONE_NEWCGROUP, call=call)
    clock.done("enter the namespaces")


def confine(
    entry: Entry,
    who: identity.Identity | None,
    clock: steps.Clock = steps.OFF,
    *,
    hidden: bool = False,
    call: libc.Caller = libc.syscall,
) -> None:
    """Give up every right that a payload may not have; the last step before the user's code.

    :param who: the user to become; None stays who it is.
    :param hidden: the process is hidden (:func:`hide`), and is to stay so.
    :raises SandboxError: a step is refused; the process must then end without running the payload.
    """
    root = entry.root if who is None else who.uid == 0
    if entry.user_namespace is not None:
        # The same ids, so that files stay reachable, without any power over what the host owns: the
        # crate's mounts, network and devices among it. It gives every capability, to be dropped below.
        libc.setns("enter the payload's user namespace", entry.user_namespace, libc.CLONE_NEWUSER, "user", call=call)
    clock.done("enter the user namespace")
    # The bounding set first: dropping from it needs CAP_SETPCAP. Capabilities that root keeps are
    # of no use to another user, and a fork (unlike an exec) would carry them over.
    capabilities.limit_bounding_set(entry.keep, entry.last_capability, call=call)
    clock.done("drop the bounding set")
    if who is not None:
        if hidden:
            # With fs.suid_dumpable=1 a change of ids takes back what hides it (commit_creds() in kernel/cred.c). Until
            # it is hidden again it keeps the capabilities that no other process in the crate has, and so can't be
            # traced by one (cap_ptrace_access_check() in security/commoncap.c).
            capabilities.keep_over_change_of_ids(call=call)
        identity.become(who, keep_groups=entry.one_user, call=call)
        if hidden:
            hide(call=call)
    capabilities.set_capabilities(capabilities.capability_mask(entry.keep) if root else 0, call=call)
    capabilities.no_new_privs(call=call)
    clock.done("drop capabilities")
    if entry.seccomp:
        seccomp.install(entry.seccomp, call=call)
    clock.done("install the system call filter")


def enter_directory(path: str) -> None:
    """Make a path in the crate, where the calling process is, its working directory.

    What procfs shows of open descriptors is not followed: an image could make its directory a link to one of pytest's,
    which may be of another crate, or of the host (CVE-2024-21626).

    :raises SandboxError: it can't be.
    """
    step = "enter the working directory"
    with libc.os_step(step, "open", "/"):
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        place = libc.open_in_root(step, root, path, os.O_PATH | os.O_DIRECTORY)
    finally:
        os.close(root)
    try:
        with libc.os_step(step, "fchdir", path):
            os.fchdir(place)
    finally:
        os.close(place)


def is_null(descriptor: int) -> bool:
    """Tell whether a descriptor is of ``/dev/null``."""
    try:
        status = os.fstat(descriptor)
    except OSError:  # closed
        return False
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == _NULL


def use_own_null(numbers: Iterable[int], *, call: libc.Caller = libc.syscall) -> None:
    """Put the crate's own ``/dev/null`` in the place of the host's, where that is standard input, output or error.

    By a descriptor of the host's mount, the crate's root could change the machine's: its mode, its owner.

    :param numbers: the descriptors that are of the host's.
    """
    step, path = "open the crate's /dev/null", "/dev/null"
    for number in numbers:
        own = call(step, "openat", libc.AT_FDCWD, path.encode(), os.O_RDWR | os.O_CLOEXEC, path=path)
        call(step, "dup3", own, number, 0, path=path)
        call(step, "close", own)


def _read_text(descriptor: int, path: str) -> str:
    """Return the text of a file of the crate's, and close it; none of what is no file.

    An image, or a program before, may have put anything there: a pipe to wait on, a device, a file without end. A
    terminal does not become that of the session that a payload leads.

    :raises SandboxError: it can't be read, or is too long: whose groups are not known may not have others' instead.
    """
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)  # open() would refuse a directory, and leave it open
        return ""
    with (
        libc.os_step(_STEP_USER, "read", path),
        open(descriptor, encoding="utf-8", errors="surrogateescape") as stream,
    ):
        text = stream.read(_MAX_TEXT_CHARACTERS + 1)
    if len(text) > _MAX_TEXT_CHARACTERS:
        raise SandboxError(_STEP_USER, path=path, detail=f"it has more than {_MAX_TEXT_CHARACTERS >> 20} MiB")
    return text


def who_is(user: str | None, root: int | None = None) -> identity.Identity | None:
    """Look a user up in the crate's own user database; None if no user is asked for.

    :param root: descriptor of the crate's root; None for who is in it.
    :raises SandboxError: there is no such user, or that can't be told.
    """
    if user is None:
        return None
    with libc.os_step(_STEP_USER, *(("open", "/") if root is None else ("dup", str(root)))):
        within = os.open("/", os.O_PATH | os.O_CLOEXEC) if root is None else os.dup(root)
    try:
        return identity.parse_user(user, *(_text_within(within, path) for path in ("/etc/passwd", "/etc/group")))
    finally:
        os.close(within)


def _text_within(root: int, path: str) -> str:
    """Return the text of a file below a root; none where there is no file that can be read."""
    try:
        found = libc.open_in_root(_STEP_USER, root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except SandboxError as error:
        if error.errno in _NO_FILE:
            return ""
        raise
    return _read_text(found, path)


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

    def env_of(self, who: identity.Identity | None) -> dict[str, str]:
        """Return its environment as that user."""
        env = dict(self.env)
        if who is not None:
            env.setdefault("HOME", who.home)
            env.setdefault("USER", who.name)
        return env


def become_program(
    program: Program,
    entry: Entry,
    who: identity.Identity | None,
    files: Sequence[int],
    stdio: Sequence[int],
    failing: int,
    *,
    joined: bool,
) -> None:
    """Live as a program's payload, born in the crate's namespaces: enter, take these descriptors as 0, 1, 2, execute.

    :param files: :meth:`Entry.opened`.
    :param failing: descriptor on which it tells why it could not.
    """
    step = f"run {program.argv[0]}"
    try:
        signal.set_wakeup_fd(-1)
        try:
            hide()
            # Before a path is followed: by a link to /proc/self/fd it would lead to what the launcher holds of other
            # crates (CVE-2024-21626). What is needed is close-on-exec.
            needed = {failing, *files, *stdio}
            if entry.user_namespace is not None:
                needed.add(entry.user_namespace)
            for below, above in itertools.pairwise([2, *sorted(needed), 1 << 20]):
                os.closerange(below + 1, above)
            enter_as(program, entry, who, files, stdio, joined=joined)
            # An exec keeps what is ignored (signal(7)); the program starts with the defaults.
            for number in IGNORED:
                signal.signal(number, signal.SIG_DFL)
            with libc.os_step(step, "execve", program.argv[0]):
                os.execvpe(program.argv[0], list(program.argv), program.env_of(who))
        except SandboxError as failure:
            error = failure
        except OSError as failure:
            error = SandboxError(step, path=str(failure.filename or ""), errno=failure.errno)
        except Exception as failure:  # noqa: BLE001 - whatever it is, it must not look like the program's own end
            error = SandboxError(step, detail=repr(failure))
        os.write(failing, json.dumps(error.to_json()).encode())
    finally:
        os._exit(127)


def bear_program(
    program: Program, entry: Entry, who: identity.Identity | None, stdio: Sequence[int], birth: calls.Birth
) -> int:
    """Have a program's payload born by a process of few pages; return its pid.

    Its calls are those of :func:`become_program`. The birth's :meth:`calls.Birth.hear` tells its failure, and None
    when it has executed.

    :raises SandboxError: it was not born.
    """
    table, handles = birth.table, entry.namespaces
    hide(call=table.add)
    with contextlib.ExitStack() as opened:
        directory = None
        files: tuple[int, ...] = ()
        if entry.cgroup is None:
            files = opened.enter_context(entry.opened())
        else:
            with libc.os_step(birth.step, "open", entry.cgroup):
                directory = os.open(entry.cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            opened.callback(os.close, directory)
        needed = [*files, *stdio, handles.pid, *handles.others.values()]
        if entry.user_namespace is not None:
            needed.append(entry.user_namespace)
        birth.close_on_exec(needed)
        # All before it is born: what lives in the crate could look through it at the network and the mounts of the
        # host's, for as long as it is in the crate's PID namespace only.
        handles.enter(call=table.add)
        libc.setns(birth.step, handles.pid, libc.CLONE_NEWPID, "pid", call=table.add)
        if directory is not None:
            needed.append(directory)
        birth.split(0, directory)
        enter_as(program, entry, who, files, stdio, joined=directory is not None, call=table.add)
        env, name = program.env_of(who), program.argv[0]
        argv = libc.Words([*map(os.fsencode, program.argv), 0])
        environment = libc.Words([*(os.fsencode(f"{name}={value}") for name, value in env.items()), 0])
        paths = [name] if "/" in name else [os.path.join(place, name) for place in os.get_exec_path(env)]
        attempts = [(os.fsencode(path), argv, environment) for path in paths]
        table.try_each(f"run {name}", "execve", attempts, path=name)
        return birth.give(needed, default_signals=IGNORED)


def enter_as(
    program: Program,
    entry: Entry,
    who: identity.Identity | None,
    files: Sequence[int],
    stdio: Sequence[int],
    *,
    joined: bool,
    call: libc.Caller = libc.syscall,
) -> None:
    """Do all that a program's payload, born in the crate's namespaces, does before it executes."""
    step = f"run {program.argv[0]}"
    enter(entry, files, joined=joined, whole=True, call=call)
    call("begin a session", "setsid")
    nulls = [number for number, descriptor in enumerate(stdio) if is_null(descriptor)]
    for number, descriptor in enumerate(stdio):
        call("give the program its streams", "dup3", descriptor, number, 0, path=str(number))
    use_own_null(nulls, call=call)
    if program.terminal:
        call("take the terminal", "ioctl", 0, termios.TIOCSCTTY, 0, path="TIOCSCTTY")
    # As root still: the crate's root may enter a directory that the user may not.
    call(f"{step}: enter its working directory", "chdir", os.fsencode(program.cwd), path=program.cwd)
    if program.terminal and who is not None:
        # For a program that opens its terminal by name; the one who made it is its owner (runc does likewise).
        call(f"{step}: give the user the terminal", "fchown", 0, who.uid, -1, path="0")
    confine(entry, who, hidden=True, call=call)
