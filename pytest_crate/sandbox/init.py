"""The life of *init*, pid 1 of a crate: it has a root furnished, or does so itself, says so, and waits for its end."""

from __future__ import annotations

import errno
import functools
import operator
import os
import select
import signal
import socket

from pytest_crate.errors import HostError, SandboxError
from pytest_crate.kernel import calls, id_range, libc, namespaces, processes
from pytest_crate.result import Exit
from pytest_crate.sandbox import child, steps, wire
from pytest_crate.sandbox.design import Design
from pytest_crate.sandbox.furnishing import furnish, prepare_base

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


def begin_init(design: Design, birth: calls.Birth, kinds: frozenset[str]) -> None:
    """Have the birth of an *init* begun, by a process of few pages, up to where its root is to be furnished.

    It lives as :func:`become_init` does, but that a builder furnishes the root. When it is born
    (:meth:`calls.Birth.born`), :meth:`calls.Birth.hear` tells when it is ready.

    :raises SandboxError: nothing can be started.
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
    birth.begin([])


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
