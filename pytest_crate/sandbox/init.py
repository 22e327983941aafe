"""The life of *init*, pid 1 of a crate: it builds the root, says that it is ready, and waits for its end."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pytest_crate.errors import HostError, SandboxError
from pytest_crate.kernel import id_range, libc, network, processes
from pytest_crate.result import Exit
from pytest_crate.sandbox import child, steps, wire
from pytest_crate.sandbox.design import Design
from pytest_crate.sandbox.mounts import Operation
from pytest_crate.sandbox.workshop import HOST, PRIVATE, ROOT, Workshop
from pytest_crate.spec import format_size

BUILD = "build the crate"


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
            for number in (signal.SIGCHLD, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            libc.set_name("crate-init")
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
            clock.done("wait for the launcher")
            if "net" in kinds:
                network.loopback_up()
                network.add_addresses()
                if not rootless:
                    # A payload's root has no power over the network: ports below 1024 are open to all in it.
                    network.allow_low_ports()
            clock.done("set up the network")
            build_root(design.operations, size_bytes=design.tmpfs_bytes, rootless=rootless, one_user=one_user)
            clock.done("mount the root")
            if one_user:
                _verify_own(design.user, as_root=design.as_root)
            with libc.os_step("set the host name", "sethostname", design.hostname):
                socket.sethostname(design.hostname)
            clock.done("set the host name")
            with libc.os_step("tell the launcher", "sendmsg"):
                wire.send(channel, {"ready": True, "steps": clock.spent()})
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


def build_root(
    operations: Iterable[Operation], *, size_bytes: int | None, rootless: bool, one_user: bool = False
) -> None:
    """Build a root in the calling process's own, new mount namespace and make it `/`.

    Afterwards the host's tree isn't reachable: the old root is detached, not just covered.

    :param size_bytes: size of the private layer; None is the kernel's default, half of the memory.
    :param rootless: in a user namespace.
    :param one_user: that knows one user only, to whom nobody else's file can be given.
    :raises SandboxError: the kernel refuses a step.
    """
    step = "prepare the private layer"
    libc.mount("make mounts private", "none", "/", flags=libc.MS_REC | libc.MS_PRIVATE)
    base = next((path for path in ("/tmp", "/run", "/mnt", "/var") if os.path.isdir(path)), None)
    if base is None:
        raise SandboxError(step, path="/tmp", errno=errno.ENOENT)
    options = "mode=0755" + (f",size={size_bytes}" if size_bytes is not None else "")
    libc.mount(step, "crate", base, "tmpfs", libc.MS_NOSUID | libc.MS_NODEV, options)
    with _named_when_full(size_bytes), libc.os_step(step, "mkdir", base):
        for path in (HOST, ROOT, PRIVATE):
            os.mkdir(base + path, 0o700 if path == PRIVATE else 0o755)
    libc.pivot_root(step, base, base + HOST)
    os.chdir("/")
    os.umask(0o022)
    shop = Workshop(rootless=rootless, one_user=one_user)
    try:
        with _named_when_full(size_bytes):
            for operation in operations:
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


@contextmanager
def _named_when_full(size_bytes: int | None) -> Iterator[None]:
    """Name the spec's key where the private layer is too small for what a root needs."""
    try:
        yield
    except SandboxError as error:
        if error.errno != errno.ENOSPC or size_bytes is None:
            raise
        detail = f"the private layer is full: tmpfs={format_size(size_bytes)} is too small to build the crate"
        raise SandboxError(error.step, path=error.path, errno=error.errno, detail=detail) from error


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


def verify_ready(channel: socket.socket, init: int) -> object:
    """Take the word of an init; return what its steps took.

    :raises HostError: the host can't give what the crate needs.
    :raises SandboxError: it is not ready; with the reason.
    """
    try:
        with libc.os_step("hear from the crate's init", "recvmsg"):
            received = wire.receive(channel)
    except SandboxError as error:
        if error.errno != errno.ECONNRESET:  # it ended with our word unread
            raise
        received = None
    if received is None:
        status = os.waitid(os.P_PID, init, os.WEXITED | os.WNOWAIT)
        assert status is not None
        exited = status.si_code == os.CLD_EXITED
        ended = Exit(code=status.si_status) if exited else Exit(signal=status.si_status)
        raise SandboxError(BUILD, detail=f"init ended early, {ended}")
    if "host_error" in received[0]:
        raise HostError(**received[0]["host_error"])
    if "error" in received[0]:
        raise SandboxError.from_json(received[0]["error"])
    return received[0]["steps"]


def has_spoken(channel: socket.socket, seconds: float) -> bool:
    """Return whether there is something to read, or the end of the stream, within so many seconds."""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    return bool(poll.poll(seconds * 1e3))
