"""The life of the *builder*: it furnishes the roots of crates, one after another, in the namespaces of their inits.

A process that was forked to build one root would copy the pages of the launcher's that it writes to, 700 of them, and
the launcher those that it writes to meanwhile. This one has copied them when the first root is done.
It has the rights of root, as an init has that is forked: there is none for ordinary users, whose user namespace a
process can't leave again. Where it can't leave a crate's namespaces, that is its end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
from collections.abc import Iterator, Mapping

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import libc, namespaces, processes
from pytest_crate.sandbox import steps, wire
from pytest_crate.sandbox.design import Design
from pytest_crate.sandbox.furnishing import furnish
from pytest_crate.sandbox.init import BUILD

_STEP = "start the builder"


@dataclasses.dataclass(kw_only=True)
class Builder:
    """The builder as the launcher holds it.

    :ivar known: the design that it was sent last.
    """

    pid: int
    channel: socket.socket
    known: Mapping[str, object] | None = None

    @classmethod
    def start(cls, launcher: int) -> Builder:
        """Fork it from the launcher.

        :param launcher: its pidfd.
        :raises SandboxError: it can't be forked.
        """
        with libc.os_step(_STEP, "socketpair"):
            ours, builders = socket.socketpair()
        with contextlib.ExitStack() as undo:
            undo.callback(ours.close)
            with builders:
                with libc.os_step(_STEP, "fork"):
                    pid = namespaces.fork()
                if pid == 0:
                    _live(builders, launcher)
            undo.pop_all()
        return cls(pid=pid, channel=ours)

    def begin(self, design: Mapping[str, object], handles: namespaces.NamespaceHandles) -> socket.socket:
        """Have it furnish a root; return where it tells that it has, as the init does that furnishes its own.

        :raises SandboxError: it has ended.
        """
        with libc.os_step(BUILD, "socketpair"):
            ours, builders = socket.socketpair()
        with contextlib.ExitStack() as undo, builders:
            undo.callback(ours.close)
            message: dict[str, object] = {"kinds": list(handles.others), "sent": steps.now()}
            if design is not self.known:
                message["design"] = design
            with libc.os_step(BUILD, "sendmsg"):
                wire.send(self.channel, message, [builders.fileno(), *handles.others.values()])
            self.known = design
            undo.pop_all()
        return ours


def _live(channel: socket.socket, launcher: int) -> None:
    """Live as the builder: furnish roots as the launcher asks, until a crate can't be left, or the launcher ends."""
    try:
        signal.set_wakeup_fd(-1)
        libc.name_process("crate-builder")
        libc.set_title("crate-builder")
        libc.prctl("end with the launcher", libc.PR_SET_PDEATHSIG, signal.SIGKILL)
        if processes.pidfd_has_ended(launcher):
            return
        os.closerange(3, channel.fileno())
        os.closerange(channel.fileno() + 1, 1 << 20)
        way_back = _WayBack.here()
        design = None
        while True:
            received = wire.receive(channel)
            if received is None:
                return
            message, descriptors = received
            if "design" in message:
                design = Design.from_json(message["design"])
            assert design is not None
            answer, *others = descriptors
            handles = dict(zip(message["kinds"], others, strict=True))
            with socket.socket(fileno=answer) as told:
                if not _build(told, design, handles, way_back, steps.Running(message["sent"])):
                    return
    finally:
        os._exit(0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _WayBack:
    """Descriptors of where the builder was born."""

    namespaces: Mapping[str, int]
    root: int

    @classmethod
    def here(cls) -> _WayBack:
        kinds = [kind for kind in namespaces.KINDS if kind != "user"]
        opened = {kind: os.open(f"/proc/self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in kinds}
        return cls(namespaces=opened, root=os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))

    def take(self, kinds: Mapping[str, int]) -> None:
        for kind in kinds:
            libc.setns(f"leave the crate's {kind} namespace", self.namespaces[kind], namespaces.KINDS[kind], kind)
        # The mount namespace gave us its own root (setns(2)); pytest's may be another (chroot(2)).
        step = "leave the crate's root"
        with libc.os_step(step, "fchdir", "/"):
            os.fchdir(self.root)
        with libc.os_step(step, "chroot", "/"):
            os.chroot(".")


def _build(
    told: socket.socket, design: Design, handles: Mapping[str, int], way_back: _WayBack, clock: steps.Clock
) -> bool:
    """Furnish a root, and tell what that took, or why it can't be; return whether the builder can build another."""
    answer: dict[str, object] = {}
    with _told_as(answer):
        clock.done("wait for its turn")
        try:
            for kind, descriptor in handles.items():
                libc.setns(f"enter the crate's {kind} namespace", descriptor, namespaces.KINDS[kind], kind)
        finally:
            for descriptor in handles.values():
                os.close(descriptor)
        furnish(design, frozenset(handles), clock, rootless=False)
        answer["steps"] = clock.spent()
    back: dict[str, object] = {}
    with _told_as(back):
        way_back.take(handles)
    if back:
        answer |= {**back, "last": True}
    # Nobody listens to what is not wanted any more.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        wire.send(told, answer)
    return not back


@contextlib.contextmanager
def _told_as(answer: dict[str, object]) -> Iterator[None]:
    """Put the error of a block into an answer."""
    try:
        yield
    except SandboxError as error:
        answer["error"] = error.to_json()
    except OSError as error:
        answer["error"] = SandboxError(BUILD, path=str(error.filename or ""), errno=error.errno).to_json()
    except Exception as error:  # noqa: BLE001 - what an image made us meet is told, too
        answer["error"] = SandboxError(BUILD, detail=repr(error)).to_json()
