"""The crates that a launcher is making: from a request's design to a crate whose root is ready.

A crate gets its cgroup first, then its init, then its root; the launcher answers other requests while one of these
takes its time. What has been made of a crate that fails is undone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import select
import socket
import time
from collections.abc import Collection, Iterator, Mapping, Sequence

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import calls, capabilities, cgroup, id_range, identity, libc, namespaces, processes
from pytest_crate.sandbox import child, steps, wire
from pytest_crate.sandbox.builder import Builder
from pytest_crate.sandbox.crate import Crate
from pytest_crate.sandbox.design import Design
from pytest_crate.sandbox.init import (
    BUILD,
    EndedEarly,
    become_init,
    begin_init,
    has_spoken,
    hear,
    init_ended,
    raise_told,
)
from pytest_crate.sandbox.remains import Remains

READY_SECONDS = 30
"""So long a process may take to get ready, be it a crate's init or who enters one."""
NOT_READY = f"its process did not get ready within {READY_SECONDS} s"

_LAST_WORD_SECONDS = 0.1
# What a kernel says that allows none (clone(2), ERRORS; user_namespaces(7)), or a filter or module (EPERM, EACCES).
_NO_USER_NAMESPACES = (errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EUSERS, errno.EINVAL, errno.ENOSYS)


@dataclasses.dataclass(slots=True, kw_only=True)
class Making:
    """A crate that is not ready yet.

    :ivar design_data: its design, as it came.
    :ivar deadline: until when it has to be.
    :ivar undo: removes what has been made so far.
    :ivar clock: notes the steps.
    :ivar birth: of its init, until that says that it is ready for a root; None where it was forked.
    :ivar init: the pid of its init; 0 until it is born.
    :ivar handles: its namespaces, where they are open already.
    :ivar builder: who mounts its root; None where its init does.
    :ivar channel: on which init, or the builder, says that its root is ready.
    """

    design: Design
    design_data: Mapping[str, object]
    cgroup: cgroup.Cgroup
    kinds: frozenset[str]
    deadline: float
    undo: contextlib.ExitStack
    clock: steps.Clock
    birth: calls.Birth | None = None
    init: int = 0
    handles: namespaces.NamespaceHandles | None = None
    builder: Builder | None = None
    channel: socket.socket | None = None

    def fileno(self) -> int:
        """Return the descriptor on which is told what it waits for."""
        if self.birth is not None:
            return self.birth.reading
        assert self.channel is not None
        return self.channel.fileno()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A crate that is ready.

    :ivar spent: what the steps of making it took, in the launcher and of who furnished its root; empty if not noted.
    """

    crate: Crate
    spent: Mapping[str, object]


class Maker:
    """Makes the crates of one launcher."""

    def __init__(
        self,
        parent: cgroup.CgroupParent,
        poll: select.poll,
        remains: Remains,
        *,
        recorded: bool,
        rootless: bool,
        ranged: bool,
    ) -> None:
        """
        :param poll: where what crates wait for is registered; see :meth:`told`.
        :param remains: where goes what can't be undone at once.
        :param recorded: root's inits are born by :mod:`pytest_crate.kernel.calls`; else forked.
        :param ranged: an image's user namespace has a range of ids, where we have not the rights of root.
        """
        self._parent = parent
        self._poll = poll
        self._remains = remains
        self._rootless = rootless
        self._recorded = recorded and not rootless
        self._ranged = rootless and ranged
        self._ids: id_range.IdRange | None = None
        self._own_pidfd = os.pidfd_open(os.getpid())
        self._last_capability = capabilities.last_capability()
        self.user_namespace = None if rootless else _payload_user_namespace()
        self._design: Design | None = None
        self._design_data: Mapping[str, object] = {}  # the same, as it came
        self._builder: Builder | None = None
        self._making: dict[int, Making] = {}

    def deadlines(self) -> list[float]:
        """Return until when the crates have to be ready, of the monotonic clock."""
        return [making.deadline for making in self._making.values()]

    def late(self, now: float) -> list[int]:
        """Return the crates that are not ready in time: to :meth:`give_up`."""
        return [number for number, making in self._making.items() if making.deadline <= now]

    def told(self, ready: Collection[int]) -> list[int]:
        """Return the crates that have been told what they wait for: to :meth:`go_on`.

        :param ready: descriptors that can be read.
        """
        return [number for number, making in self._making.items() if making.fileno() in ready]

    def childless(self) -> list[int]:
        """Return the crates whose init was never born, and will not be: to :meth:`go_on`, which says why."""
        return [
            number
            for number, making in self._making.items()
            if making.birth is not None and not making.init and making.birth.is_over()
        ]

    def begin(self, number: int, message: wire.Message) -> Sequence[cgroup.MissingLimit]:
        """Begin a crate: make its cgroup and have its init begun. Without a design it is another of the last one's.

        :returns: limits that can't be set here: then nothing was begun.
        :raises SandboxError: it could not be begun.
        """
        if "design" in message:
            self._design = None  # if it can't be read, no later crate is made of an earlier one
            self._design = Design.from_json(message["design"])
            self._design_data = message["design"]
        design = self._design
        if design is None:
            raise SandboxError("make a crate", detail="its design could not be read")
        missing = self._parent.missing(design.limits)
        if missing:
            return missing
        clock = steps.Running() if message.get("steps") else steps.OFF
        with contextlib.ExitStack() as undo:
            group = self._parent.create(f"{number}")
            undo.callback(self._remains.remove, group)
            clock.done("make its cgroup")
            group.limit(design.limits)
            clock.done("write its limits")
            kinds = {"mnt", "uts", "ipc"}
            if design.network == "none":
                kinds.add("net")
            if self._rootless:
                kinds.add("user")
            making = Making(
                design=design,
                design_data=self._design_data,
                cgroup=group,
                kinds=frozenset(kinds),
                deadline=time.monotonic() + READY_SECONDS,
                undo=undo,
                clock=clock,
            )
            if self._recorded:
                making.birth = undo.enter_context(calls.Birth("make the crate's namespaces", "crate-init"))
                begin_init(design, making.birth, making.kinds)
            else:
                self._fork_init(making)
            clock.done("clone its init")
            self._poll.register(making, select.POLLIN)
            making.undo = undo.pop_all()
            self._making[number] = making
        return ()

    def go_on(self, number: int) -> Made | None:
        """Do what comes next for a crate, now that what it waited for has been told; return it if it is ready.

        :raises SandboxError: it could not be made.
        """
        making = self._making[number]
        if making.birth is None:
            return self._finish(number)
        with self._undone_if_it_fails(number):
            if making.init:
                self._have_furnished(making, making.birth)
            else:
                making.init = making.birth.born()
                making.undo.callback(processes.end, making.init)
        return None

    def _have_furnished(self, making: Making, birth: calls.Birth) -> None:
        """Have a root furnished by the builder, now that init has made its base, or told what it can't do."""
        if birth.hear() is None:
            raise init_ended(making.init)
        making.handles = namespaces.NamespaceHandles.of_process(making.init, making.kinds)
        making.undo.callback(making.handles.close)
        if self._builder is None or processes.has_ended(self._builder.pid):
            self._end_builder(self._builder)
            self._builder = Builder.start(self._own_pidfd)
        making.channel = self._builder.begin(making.design_data, making.handles)
        making.undo.callback(making.channel.close)
        making.builder = self._builder
        self._poll.register(making.channel, select.POLLIN)
        self._poll.unregister(birth.reading)
        making.birth = None
        birth.close()

    def _end_builder(self, which: Builder | None) -> None:
        """Kill a builder, whatever it is at, if no other has its place yet; it is collected when it has ended."""
        if self._builder is not None and self._builder is which:
            self._remains.end(self._builder.pid)
            self._builder.channel.close()
            self._builder = None
            self._remains.collect()

    def _fork_init(self, making: Making) -> None:
        design = making.design
        ours, inits = socket.socketpair()
        making.channel = ours
        making.undo.callback(ours.close)
        with inits:
            flags = libc.CLONE_NEWPID
            for kind in making.kinds:
                flags |= namespaces.KINDS[kind]
            pid = namespaces.fork_into("make the crate's namespaces", flags)
            if pid == 0:
                become_init(
                    design,
                    inits,
                    making.kinds,
                    launcher=self._own_pidfd,
                    rootless=self._rootless,
                    one_user=self._rootless and not self._has_range(design),
                )
        making.init = pid
        making.undo.callback(processes.end, pid)
        if self._has_range(design):
            if self._ids is None:
                self._ids = id_range.find_id_range()
            self._ids.map_into(pid)
        elif self._rootless:
            uid, gid = os.geteuid(), os.getegid()
            inside = (0, 0) if design.as_root else (uid, gid)
            try:
                identity.write_id_maps(pid, *identity.single_id_map(uid, gid, *inside), deny_setgroups=True)
            except SandboxError:
                # Of a process that is ending the kernel refuses it, too: that one has said why it is, or its end does.
                if has_spoken(ours, _LAST_WORD_SECONDS):
                    with contextlib.suppress(EndedEarly):
                        raise_told(hear(ours))
                    raise init_ended(pid) from None
                raise
        # Init waits for its maps. If it is dead itself, the end of its stream says so.
        with libc.os_step("tell the crate's init", "sendmsg"), contextlib.suppress(BrokenPipeError):
            wire.send(ours, {"go": True})

    def _has_range(self, design: Design) -> bool:
        """Tell whether a crate's user namespace knows more than one user: on the host's root all files are others'."""
        return self._ranged and design.as_root

    def give_up(self, number: int) -> None:
        """Undo a crate that does not get ready.

        :raises SandboxError: that says so.
        """
        with self._undone_if_it_fails(number) as making:
            if making.builder is not None:
                self._end_builder(making.builder)  # it hangs, and what else was asked of it is lost
            raise SandboxError(BUILD, detail=NOT_READY)

    @contextlib.contextmanager
    def _undone_if_it_fails(self, number: int) -> Iterator[Making]:
        """Give a crate that is not ready yet; if the block raises, what has been made of it is undone."""
        try:
            yield self._making[number]
        except BaseException:
            self._forget(number).undo.close()
            raise

    def _forget(self, number: int) -> Making:
        making = self._making.pop(number)
        self._poll.unregister(making)
        return making

    def _hear(self, making: Making) -> object:
        """Take the word of who furnishes a crate's root; return what its steps took.

        :raises SandboxError: it is not ready; with the reason.
        """
        built = making.builder is not None
        assert making.channel is not None
        try:
            told = hear(making.channel)
        except EndedEarly:
            if not built or _ends(making.init):
                raise init_ended(making.init) from None
            self._end_builder(making.builder)
            raise SandboxError(BUILD, detail="the builder was killed") from None
        if told.get("last"):
            self._end_builder(making.builder)  # it ends itself, and would leave undone what it is asked for now
        if "error" in told and built and _ends(making.init):
            raise init_ended(making.init)  # whoever furnishes its root only sees what that leads to
        raise_told(told)
        return told["steps"]

    def _finish(self, number: int) -> Made:
        """Return a crate whose root is ready, or say why it isn't."""
        with self._undone_if_it_fails(number) as making, contextlib.ExitStack() as undo:
            of_root = self._hear(making)
            making.clock.done("wait for its root")
            handles = making.handles
            if handles is None:
                handles = namespaces.NamespaceHandles.of_process(making.init, making.kinds)
                undo.callback(handles.close)
            try:
                with libc.os_step("open the crate's root", "open"):
                    root = os.open(f"/proc/{making.init}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            except SandboxError as error:
                raise init_ended(making.init) if _ends(making.init) else error from None
            design = making.design
            entry = child.Entry(
                enter_files=making.cgroup.enter_files,
                cgroup=making.cgroup.directory,
                namespaces=handles,
                keep=design.keep,
                last_capability=self._last_capability,
                seccomp=design.seccomp,
                # A capability that is asked for by name is wanted over the crate itself.
                user_namespace=None if design.cap_add else self.user_namespace,
                root=os.geteuid() == 0 or (self._rootless and design.as_root),
                one_user=self._rootless and not self._has_range(design),
            )
            undo.pop_all()
        self._forget(number)
        making.undo.pop_all()
        if making.channel is not None:
            making.channel.close()
        making.clock.done("open its namespaces")
        of_launcher = making.clock.spent()
        crate = Crate(cgroup=making.cgroup, init=making.init, handles=handles, root=root, entry=entry)
        spent = {"launcher": of_launcher, "root": of_root} if of_launcher else {}
        return Made(crate=crate, spent=spent)

    def drop(self, number: int) -> bool:
        """Undo a crate; return False if it is none of those that are being made."""
        if number not in self._making:
            return False
        self._forget(number).undo.close()
        return True

    def end(self) -> None:
        """Undo all of them, and make no more."""
        for making in self._making.values():
            with contextlib.suppress(Exception):
                making.undo.close()
        self._making.clear()
        self._end_builder(self._builder)


def _ends(init: int) -> bool:
    """Tell whether an init has ended, or is about to: its namespaces go, and what it holds open, before it does."""
    pidfd = os.pidfd_open(init)
    try:
        return processes.pidfd_has_ended(pidfd, within_sec=_LAST_WORD_SECONDS)
    finally:
        os.close(pidfd)


def _payload_user_namespace() -> int | None:
    """Make the user namespace of payloads that root starts; None where the host allows none.

    :raises SandboxError: it would allow one, and something else stands in the way: a crate is not to be less of one.
    """
    step = "make the payloads' user namespace"
    texts = []
    for path in ("/proc/self/uid_map", "/proc/self/gid_map"):
        with libc.os_step(step, "open", path), open(path, encoding="ascii") as file:
            texts.append(file.read())
    maps = identity.whole_id_map(texts[0], texts[1])
    try:
        return namespaces.make_user_namespace(*maps)
    except SandboxError as error:
        # Refused is the clone, or the maps, by a security module.
        if error.syscall not in ("clone", "write") or error.errno not in _NO_USER_NAMESPACES:
            raise
        return None
