"""The life of *init*, pid 1 of a crate: it builds the root, says that it is ready, and waits for its end."""

from __future__ import annotations

import errno
import functools
import operator
import os
import select
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from pytest_crate.errors import HostError, SandboxError
from pytest_crate.kernel import calls, id_range, libc, namespaces, network, processes
from pytest_crate.result import Exit
from pytest_crate.sandbox import child, steps, wire
from pytest_crate.sandbox.design import Design
from pytest_crate.sandbox.workshop import HOST, PRIVATE, PROC, ROOT, Workshop
from pytest_crate.spec import format_size

BUILD = "build the crate"

# Ended by neither; and its orphans' ends are nobody's business (become_init).
IGNORED = (signal.SIGCHLD, signal.SIGTERM)


def become_init(
    design: Design,
    channel: socket.socket,
    kinds: frozenset[str],
    *,
    launcher: int,
    rootless: bool,
    one_user: bool,
) -> None:
    """Live as *init*: build the root, tell so, then wait for the kill that ends the crate.

    Pid 1 adopts the crate's orphans. SIGCHLD is ignored, so the kernel reaps them without waking
    init (wait(2), "if the disposition of SIGCHLD is set to SIG_IGN").
    """
    clock = steps.Running()
    try:
        try:
            signal.set_wakeup_fd(-1)
            for number in IGNORED:
                signal.signal(number, signal.SIG_IGN)
            libc.name_process("crate-init")
            # Its arguments, the launcher's, are the host's affair.
            libc.set_title("crate-init")
            libc.prctl("end with the launcher", libc.PR_SET_PDEATHSIG, signal.SIGKILL)
            # A signal that is asked for when its sender has ended never comes (prctl(2), PR_SET_PDEATHSIG), whose word
            # to go on may be waiting; and getppid(2) knows nobody outside of the own PID namespace.
            if processes.pidfd_has_ended(launcher):
                os._exit(1)
            with libc.os_step("hear from the launcher", "recvmsg"):
                if wire.receive(channel) is None:
                    os._exit(1)
            with libc.os_step("begin a session", "setsid"):
                os.setsid()
            clock.done("wait for its turn")
            prepare_base(design.tmpfs_bytes)
            clock.done("mount the root")
            furnish(design, kinds, clock, rootless=rootless, one_user=one_user)
            if one_user:
                _verify_own(design.user, as_root=design.as_root)
            with libc.os_step("tell the launcher", "sendmsg"):
                wire.send(channel, {"steps": clock.spent()})
        except HostError as error:
            wire.send(channel, {"host_error": error.to_json()})
            os._exit(1)
        except SandboxError as error:
            wire.send(channel, {"error": error.to_json()})
            os._exit(1)
        except OSError as error:
            failed = SandboxError(BUILD, path=str(error.filename or ""), errno=error.errno)
            wire.send(channel, {"error": failed.to_json()})
            os._exit(1)
        except Exception as error:  # noqa: BLE001 - what an image made us meet is told, too
            wire.send(channel, {"error": SandboxError(BUILD, detail=repr(error)).to_json()})
            os._exit(1)
        os.closerange(0, 1 << 20)
        while True:
            signal.pause()
    finally:
        os._exit(70)


def bear_init(design: Design, birth: calls.Birth, kinds: frozenset[str]) -> int:
    """Have an *init* born by a process of few pages, up to where its root is to be furnished; return its pid.

    It lives as :func:`become_init` does, but that a builder furnishes the root. The birth's :meth:`calls.Birth.hear`
    tells when it is ready.

    :raises SandboxError: it was not born.
    """
    call = birth.table.add
    birth.split(functools.reduce(operator.or_, (namespaces.KINDS[kind] for kind in kinds), libc.CLONE_NEWPID))
    libc.name_process("crate-init", call=call)
    call("end with the launcher", "prctl", libc.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    call("begin a session", "setsid")
    for number in IGNORED:
        ignored = libc.Words((signal.SIG_IGN, 0, 0, 0))  # struct sigaction
        call("ignore signals", "rt_sigaction", number, ignored, None, 8, path=str(number))
    prepare_base(design.tmpfs_bytes, call=call)
    # That is refused, and its end, if the launcher has ended before it was asked for a signal then.
    birth.say_ready()
    birth.close_all()
    call("wait for the end", "ppoll", None, 0, None, None, 0)
    return birth.give([])


def prepare_base(size_bytes: int | None, *, call: libc.Caller = libc.syscall) -> None:
    """Make a private layer the root of the calling process's own, new mount namespace, with the host's tree in it.

    :param size_bytes: of the layer; None is the kernel's default, half of the memory.
    :raises SandboxError: the kernel refuses a step.
    """
    step = "prepare the private layer"
    libc.mount("make mounts private", "none", "/", flags=libc.MS_REC | libc.MS_PRIVATE, call=call)
    base = next((path for path in ("/tmp", "/run", "/mnt", "/var") if os.path.isdir(path)), None)
    if base is None:
        raise SandboxError(step, path="/tmp", errno=errno.ENOENT)
    options = "mode=0755" + (f",size={size_bytes}" if size_bytes is not None else "")
    libc.mount(step, "crate", base, "tmpfs", libc.MS_NOSUID | libc.MS_NODEV, options, call=call)
    full = {} if size_bytes is None else {errno.ENOSPC: _too_small(size_bytes)}
    for name in (HOST, ROOT, PROC, PRIVATE):
        mode = 0o700 if name == PRIVATE else 0o755
        path = base + name
        call(step, "mkdirat", libc.AT_FDCWD, path.encode(), mode, path=path, details=full)
    # It shows the PID namespace of who mounts it: the crate's, in which no builder lives.
    flags = libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC
    libc.mount("mount /proc", "proc", base + PROC, "proc", flags, call=call)
    libc.pivot_root(step, base, base + HOST, call=call)
    call(step, "chdir", b"/", path="/")


def furnish(
    design: Design, kinds: frozenset[str], clock: steps.Clock, *, rootless: bool, one_user: bool = False
) -> None:
    """Set up what is a crate's own in the namespaces that the calling process is in, its root at last.

    Afterwards the host's tree isn't reachable: the old root is detached, not just covered.

    :param rootless: in a user namespace.
    :param one_user: that knows one user only, to whom nobody else's file can be given.
    :raises SandboxError: the kernel refuses a step.
    """
    if "net" in kinds:
        network.loopback_up()
        network.add_addresses()
        if not rootless:
            # A payload's root has no power over the network: ports below 1024 are open to all in it.
            network.allow_low_ports()
    clock.done("set up the network")
    with libc.os_step("set the host name", "sethostname", design.hostname):
        socket.sethostname(design.hostname)
    clock.done("set the host name")
    os.umask(0o022)
    shop = Workshop(rootless=rootless, one_user=one_user)
    try:
        with _named_when_full(design.tmpfs_bytes):
            for operation in design.operations:
                try:
                    operation.perform(shop)
                except OSError as error:  # of what has no step of its own
                    described = " ".join(operation.describe().split())
                    step = f"build the crate's root: {described}"
                    raise SandboxError(step, path=str(error.filename or ""), errno=error.errno) from error
    finally:
        shop.close()
    step = "enter the new root"
    libc.umount(step, HOST, libc.MNT_DETACH)
    with libc.os_step(step, "chdir", ROOT):
        os.chdir(ROOT)
    # With both paths the same, the old root is stacked under the new one, and detached from there
    # (pivot_root(2), "pivot_root(".", ".")").
    libc.pivot_root(step, ".", ".")
    libc.umount(step, ".", libc.MNT_DETACH)
    with libc.os_step(step, "chdir", "/"):
        os.chdir("/")
    clock.done("mount the root")


def _too_small(size_bytes: int) -> str:
    return f"the private layer is full: tmpfs={format_size(size_bytes)} is too small to build the crate"


@contextmanager
def _named_when_full(size_bytes: int | None) -> Iterator[None]:
    """Name the spec's key where the private layer is too small for what a root needs."""
    try:
        yield
    except SandboxError as error:
        if error.errno != errno.ENOSPC or size_bytes is None:
            raise
        raise SandboxError(error.step, path=error.path, errno=error.errno, detail=_too_small(size_bytes)) from error


def _verify_own(user: str | None, *, as_root: bool) -> None:
    """Refuse a user that a user namespace of one user does not know, before anything of a test's begins.

    :param as_root: of an image: there, that namespace could have more users.
    :raises HostError: it is another user than the one there is, in name or in group.
    :raises SandboxError: the crate's user database has none of that name.
    """
    who = child.who_is(user)
    if who is None or (who.uid, who.gid) == (os.geteuid(), os.getegid()):
        return
    # What a range is for is an image: on the host's root its ids are nobody's.
    message = f"no user {user} ({who.uid}:{who.gid}): an ordinary user's crate has that user's own ids only"
    if as_root:
        raise HostError(message, feature=id_range.FEATURE, hint="crate_id_map = range (--id-map range)")
    raise HostError(message, hint="run pytest as root")


class EndedEarly(Exception):
    """Whoever furnishes a root has ended without a word."""


def hear(channel: socket.socket) -> wire.Message:
    """Take the word of who furnishes a root, which is what its steps took, or the error.

    :raises EndedEarly: it ended without a word.
    """
    try:
        with libc.os_step("hear from the crate's init", "recvmsg"):
            received = wire.receive(channel)
    except SandboxError as error:
        if error.errno != errno.ECONNRESET:  # it ended with our word unread
            raise
        received = None
    if received is None:
        raise EndedEarly
    return received[0]


def init_ended(init: int) -> SandboxError:
    """Wait for the end of an init whose root is not ready, and return how it ended."""
    status = os.waitid(os.P_PID, init, os.WEXITED | os.WNOWAIT)
    assert status is not None
    exited = status.si_code == os.CLD_EXITED
    ended = Exit(code=status.si_status) if exited else Exit(signal=status.si_status)
    return SandboxError(BUILD, detail=f"init ended early, {ended}")


def raise_told(told: wire.Message) -> None:
    """Raise what an init, or a builder, has said stands in the way.

    :raises HostError: the host can't give what the crate needs.
    :raises SandboxError: the root could not be built.
    """
    if "host_error" in told:
        raise HostError(**told["host_error"])
    if "error" in told:
        raise SandboxError.from_json(told["error"])


def has_spoken(channel: socket.socket, seconds: float) -> bool:
    """Return whether there is something to read, or the end of the stream, within so many seconds."""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    return bool(poll.poll(seconds * 1e3))
