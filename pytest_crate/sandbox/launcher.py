"""The launcher process: makes crates, runs programs in them, and removes them, whatever happens to pytest.

Theory of operation. pytest starts one *launcher*, the first time that it needs a crate, and asks it
for crates over a socket. The launcher is small and has one thread, and does not grow with pytest's
memory. For each crate it makes a cgroup and an *init*, pid 1 of new namespaces, in which a *builder*
mounts the root; or the init does so itself, where it is a fork of the launcher's (an ordinary user's, and
where the package was built without a compiler). A *payload*, forked from pytest (a body) or born of
the launcher (a program), enters them. Killing init kills all that lives in the crate, daemons
included (pid_namespaces(7)). When pytest ends, even by SIGKILL, the launcher sees it, kills every
init and removes every cgroup; when the launcher ends, each init gets SIGKILL from the kernel.

Three requests don't hold pytest up. A crate is asked for by a number of pytest's choice, and its
answer comes when its init is ready, maybe after answers to later requests. A crate is given its
deadline, and removed, without an answer: what it used has been read by then, and the kernel takes
its time over the rest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pytest_crate.errors import HostError, SandboxError
from pytest_crate.kernel import calls, capabilities, cgroup, id_range, identity, libc, namespaces, overlay, processes
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
from pytest_crate.sandbox.programs import Programs

CONTROL_FD = 3
"""The descriptor on which a launcher finds its socket."""

_READY_SECONDS = 30
_NOT_READY = f"its process did not get ready within {_READY_SECONDS} s"
_TOO_MANY = "it has too many files open, for crates and programs that live at once; close some, or raise ulimit -n"
_PATIENCE_SECONDS = 2.0
_LOOK_SECONDS = 0.1
_MOST_STOPS = 30
# What a kernel says that allows none (clone(2), ERRORS; user_namespaces(7)), or a filter or module (EPERM, EACCES).
_NO_USER_NAMESPACES = (errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EUSERS, errno.EINVAL, errno.ENOSYS)


@dataclasses.dataclass(slots=True, kw_only=True)
class Building:
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


class Launcher:
    """Answers the requests of one pytest process."""

    def __init__(
        self, channel: socket.socket, parent: cgroup.CgroupParent, pytest_pidfd: int, *, rootless: bool, ranged: bool
    ) -> None:
        """
        :param ranged: an image's user namespace has a range of ids, where we have not the rights of root.
        """
        self.channel = channel
        self.pytest_pidfd = pytest_pidfd
        self.parent = parent
        self.rootless = rootless
        self.ranged = rootless and ranged
        self.ids: id_range.IdRange | None = None
        self.calls = calls.works()
        self.own_pidfd = os.pidfd_open(os.getpid())
        self.last_capability = capabilities.last_capability()
        self.user_namespace = None if rootless else _payload_user_namespace()
        self.design: Design | None = None
        self.design_data: Mapping[str, object] = {}  # the same, as it came
        self.builder: Builder | None = None
        self.crates: dict[int, Crate] = {}
        self.building: dict[int, Building] = {}
        self.programs = Programs(self._wait_entered, recorded=self.calls)
        self.ending: set[int] = set()  # inits of crates that are removed
        self.unremoved: list[cgroup.Cgroup] = []  # what could not be removed yet
        self._poll = select.poll()
        self._requests: Mapping[str, Callable[[wire.Message, list[int]], None]] = {
            "create": self._create,
            "spawn": self._spawn,
            "signal": self._signal,
            "kill": self._kill,
            "late": self._late,
            "end": self._end,
        }

    def serve(self) -> None:
        """Answer until pytest closes the socket or ends, or a suite terminates all of its child processes."""
        # A signal's handler only has to exist: the byte on the wake-up pipe ends the poll.
        reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for descriptor in (self.channel.fileno(), self.pytest_pidfd, reading):
            self._poll.register(descriptor, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in self._poll.poll(self._milliseconds_left())}
            self._kill_late()
            for crate, building in list(self.building.items()):
                if building.fileno() in ready:
                    self._told(crate, functools.partial(self._go_on, crate))
            if reading in ready:
                if signal.SIGTERM in os.read(reading, 4096):
                    return  # the next crate gets another launcher
                self._reap()
            if self.channel.fileno() in ready:
                try:
                    received = wire.receive(self.channel, sender=self.pytest_pidfd)
                except wire.DescriptorsLost:
                    # Only who asks for a program sends any, and waits for the answer.
                    self._reply({"sandbox_error": SandboxError("ask the launcher", detail=_TOO_MANY).to_json()})
                    continue
                except (wire.WireError, ConnectionError):
                    return
                if received is None:
                    return
                self._answer(*received)
            elif self.pytest_pidfd in ready:
                return

    def _milliseconds_left(self) -> float | None:
        deadlines = [crate.deadline for crate in self.crates.values() if crate.deadline is not None]
        deadlines += [building.deadline for building in self.building.values()]
        # poll(2) takes an int of milliseconds; the loop comes round again.
        return min(max(0.0, (min(deadlines) - time.monotonic()) * 1e3), 1e9) if deadlines else None

    def _kill_late(self) -> None:
        """Kill the crates whose time is over, and give up those that don't get ready."""
        now = time.monotonic()
        for crate in self.crates.values():
            if crate.deadline is not None and crate.deadline <= now:
                crate.deadline, crate.timed_out = None, True
                os.kill(crate.init, signal.SIGKILL)
        for number, building in list(self.building.items()):
            if building.deadline <= now:
                self._told(number, functools.partial(self._give_up, number))

    def _wait_entered(self, pid: int, descriptor: int, step: str) -> None:
        """Wait for the word of a process that is entering a crate, or its first: bounded, not beyond pytest's end.

        The other crates' time runs meanwhile. Where a program lives already, it may send signals to who enters.

        :raises SandboxError: it did not come.
        """
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.register(self.pytest_pidfd, select.POLLIN)
        end = time.monotonic() + _READY_SECONDS
        stops = 0
        while time.monotonic() < end:
            left = self._milliseconds_left()
            look = _LOOK_SECONDS * 1e3
            ready = {found for found, _ in poll.poll(look if left is None else min(look, left))}
            if descriptor in ready:
                return
            if ready:
                break
            self._kill_late()
            if processes.is_stopped(pid):
                stops += 1
                if stops > _MOST_STOPS:
                    raise SandboxError(step, detail="a process in the crate stops it (SIGSTOP) whenever it enters")
                os.kill(pid, signal.SIGCONT)
        raise SandboxError(step, detail=_NOT_READY)

    def _answer(self, message: wire.Message, descriptors: list[int]) -> None:
        number = message["crate"] if message["request"] == "create" else None
        try:
            # Nobody waits for an answer to these two.
            if message["request"] == "remove":
                self._remove(message["crate"])
            elif message["request"] == "time":
                self.crates[message["crate"]].deadline = message["deadline"]
            else:
                self._told(number, functools.partial(self._requests[message["request"]], message, descriptors))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _told(self, number: int | None, work: Callable[[], None]) -> None:
        """Do a part of what was asked for; what goes wrong is the answer.

        :param number: of the crate that is being made; None if something else was asked for.
        """
        of = {} if number is None else {"of": number}
        try:
            work()
        except HostError as error:
            self._reply({**of, "host_error": error.to_json()})
        except SandboxError as error:
            self._reply({**of, "sandbox_error": error.to_json()})
        except OSError as error:
            failed = SandboxError("ask the launcher", path=str(error.filename or ""), errno=error.errno)
            self._reply({**of, "sandbox_error": failed.to_json()})
        except Exception as error:  # noqa: BLE001 - whatever one request meets, the other crates live on
            self._reply({**of, "sandbox_error": SandboxError("ask the launcher", detail=repr(error)).to_json()})

    def _reply(self, message: Mapping[str, object], descriptors: Sequence[int] = ()) -> None:
        # pytest may be gone; the loop then finds the socket closed.
        with libc.os_step("answer pytest", "sendmsg"), contextlib.suppress(BrokenPipeError, ConnectionResetError):
            wire.send(self.channel, message, descriptors)

    def _reap(self) -> None:
        """Collect ended programs and tell how each ended; collect the inits of crates that are removed."""
        self.programs.reap()
        self._end_inits()
        for number, building in list(self.building.items()):
            # One that has not told of an init never will.
            if building.birth is not None and not building.init and building.birth.is_over():
                self._told(number, functools.partial(self._go_on, number))

    # -- requests --------------------------------------------------------------------------------

    def _create(self, message: wire.Message, _: list[int]) -> None:
        """Begin a crate: make its cgroup and have its init begun, and answer other requests until its root is ready.

        Without a design of its own it is another of the last one's.
        """
        number = message["crate"]
        if "design" in message:
            self.design = None  # if it can't be read, no later crate is made of an earlier one
            self.design = Design.from_json(message["design"])
            self.design_data = message["design"]
        design = self.design
        if design is None:
            raise SandboxError("make a crate", detail="its design could not be read")
        missing = self.parent.missing(design.limits)
        if missing:
            self._reply({"of": number, "missing": [dataclasses.asdict(limit) for limit in missing]})
            return
        clock = steps.Running() if message.get("steps") else steps.OFF
        with contextlib.ExitStack() as undo:
            group = self.parent.create(f"{number}")
            undo.callback(self._remove_group, group)
            clock.done("make its cgroup")
            group.limit(design.limits)
            clock.done("write its limits")
            kinds = {"mnt", "uts", "ipc"}
            if design.network == "none":
                kinds.add("net")
            if self.rootless:
                kinds.add("user")
            building = Building(
                design=design,
                design_data=self.design_data,
                cgroup=group,
                kinds=frozenset(kinds),
                deadline=time.monotonic() + _READY_SECONDS,
                undo=undo,
                clock=clock,
            )
            if self.rootless or not self.calls:
                self._fork_init(building)
            else:
                building.birth = undo.enter_context(calls.Birth("make the crate's namespaces", "crate-init"))
                begin_init(design, building.birth, building.kinds)
            clock.done("clone its init")
            self._poll.register(building, select.POLLIN)
            building.undo = undo.pop_all()
            self.building[number] = building

    def _go_on(self, number: int) -> None:
        """Do what comes next for a crate, now that what it waited for has been told."""
        building = self.building[number]
        if building.birth is None:
            self._hand_out(number)
            return
        with self._undone_if_it_fails(number):
            if building.init:
                self._have_furnished(building, building.birth)
            else:
                building.init = building.birth.born()
                building.undo.callback(processes.end, building.init)

    def _have_furnished(self, building: Building, birth: calls.Birth) -> None:
        """Have a root furnished by the builder, now that init has made its base, or told what it can't do."""
        if birth.hear() is None:
            raise init_ended(building.init)
        building.handles = namespaces.NamespaceHandles.of_process(building.init, building.kinds)
        building.undo.callback(building.handles.close)
        if self.builder is None or processes.has_ended(self.builder.pid):
            self._end_builder(self.builder)
            self.builder = Builder.start(self.own_pidfd)
        building.channel = self.builder.begin(building.design_data, building.handles)
        building.undo.callback(building.channel.close)
        building.builder = self.builder
        self._poll.register(building.channel, select.POLLIN)
        self._poll.unregister(birth.reading)
        building.birth = None
        birth.close()

    def _end_builder(self, which: Builder | None) -> None:
        """Kill a builder, whatever it is at, if no other has its place yet; it is collected when it has ended."""
        if self.builder is not None and self.builder is which:
            self.ending.add(self.builder.pid)
            self.builder.channel.close()
            self.builder = None
            self._end_inits()

    def _fork_init(self, building: Building) -> None:
        design = building.design
        ours, inits = socket.socketpair()
        building.channel = ours
        building.undo.callback(ours.close)
        with inits:
            flags = libc.CLONE_NEWPID
            for kind in building.kinds:
                flags |= namespaces.KINDS[kind]
            pid = namespaces.fork_into("make the crate's namespaces", flags)
            if pid == 0:
                become_init(
                    design,
                    inits,
                    building.kinds,
                    launcher=self.own_pidfd,
                    rootless=self.rootless,
                    one_user=self.rootless and not self._has_range(design),
                )
        building.init = pid
        building.undo.callback(processes.end, pid)
        if self._has_range(design):
            if self.ids is None:
                self.ids = id_range.find_id_range()
            self.ids.map_into(pid)
        elif self.rootless:
            uid, gid = os.geteuid(), os.getegid()
            inside = (0, 0) if design.as_root else (uid, gid)
            try:
                identity.write_id_maps(pid, *identity.single_id_map(uid, gid, *inside), deny_setgroups=True)
            except SandboxError:
                # Of a process that is ending the kernel refuses it, too: that one has said why it is, or its end does.
                if has_spoken(ours, _LOOK_SECONDS):
                    with contextlib.suppress(EndedEarly):
                        raise_told(hear(ours))
                    raise init_ended(pid) from None
                raise
        # Init waits for its maps. If it is dead itself, the end of its stream says so.
        with libc.os_step("tell the crate's init", "sendmsg"), contextlib.suppress(BrokenPipeError):
            wire.send(ours, {"go": True})

    def _has_range(self, design: Design) -> bool:
        """Tell whether a crate's user namespace knows more than one user: on the host's root all files are others'."""
        return self.ranged and design.as_root

    def _give_up(self, number: int) -> None:
        with self._undone_if_it_fails(number) as building:
            if building.builder is not None:
                self._end_builder(building.builder)  # it hangs, and what else was asked of it is lost
            raise SandboxError(BUILD, detail=_NOT_READY)

    @contextlib.contextmanager
    def _undone_if_it_fails(self, number: int) -> Iterator[Building]:
        """Give a crate that is not ready yet; if the block raises, what has been made of it is undone."""
        try:
            yield self.building[number]
        except BaseException:
            self._no_longer_built(number).undo.close()
            raise

    def _no_longer_built(self, number: int) -> Building:
        building = self.building.pop(number)
        self._poll.unregister(building)
        return building

    def _hear(self, building: Building) -> object:
        """Take the word of who furnishes a crate's root; return what its steps took.

        :raises SandboxError: it is not ready; with the reason.
        """
        built = building.builder is not None
        assert building.channel is not None
        try:
            told = hear(building.channel)
        except EndedEarly:
            if not built or self._ends(building.init):
                raise init_ended(building.init) from None
            self._end_builder(building.builder)
            raise SandboxError(BUILD, detail="the builder was killed") from None
        if told.get("last"):
            self._end_builder(building.builder)  # it ends itself, and would leave undone what it is asked for now
        if "error" in told and built and self._ends(building.init):
            raise init_ended(building.init)  # whoever furnishes its root only sees what that leads to
        raise_told(told)
        return told["steps"]

    @staticmethod
    def _ends(init: int) -> bool:
        """Tell whether an init has ended, or is about to: its namespaces go, and what it holds open, before it does."""
        pidfd = os.pidfd_open(init)
        try:
            return processes.pidfd_has_ended(pidfd, within_sec=_LOOK_SECONDS)
        finally:
            os.close(pidfd)

    def _hand_out(self, number: int) -> None:
        """Answer with a crate whose init has said that it is ready, or why it isn't."""
        with self._undone_if_it_fails(number) as building, contextlib.ExitStack() as undo:
            of_root = self._hear(building)
            building.clock.done("wait for its root")
            handles = building.handles
            if handles is None:
                handles = namespaces.NamespaceHandles.of_process(building.init, building.kinds)
                undo.callback(handles.close)
            try:
                with libc.os_step("open the crate's root", "open"):
                    root = os.open(f"/proc/{building.init}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            except SandboxError as error:
                raise init_ended(building.init) if self._ends(building.init) else error from None
            design = building.design
            entry = child.Entry(
                enter_files=building.cgroup.enter_files,
                cgroup=building.cgroup.directory,
                namespaces=handles,
                keep=design.keep,
                last_capability=self.last_capability,
                seccomp=design.seccomp,
                # A capability that is asked for by name is wanted over the crate itself.
                user_namespace=None if design.cap_add else self.user_namespace,
                root=os.geteuid() == 0 or (self.rootless and design.as_root),
                one_user=self.rootless and not self._has_range(design),
            )
            undo.pop_all()
        self._no_longer_built(number)
        building.undo.pop_all()
        if building.channel is not None:
            building.channel.close()
        building.clock.done("open its namespaces")
        of_launcher = building.clock.spent()
        crate = Crate(
            cgroup=building.cgroup,
            init=building.init,
            handles=handles,
            root=root,
            entry=entry,
        )
        self.crates[number] = crate
        own = [] if entry.user_namespace is None else [entry.user_namespace]
        answer = {
            "of": number,
            "init": building.init,
            "cgroup": building.cgroup.to_json(),
            "kinds": list(handles.others),
            **({"steps": {"launcher": of_launcher, "root": of_root}} if of_launcher else {}),
        }
        try:
            self._reply(answer, [root, handles.pid, *handles.others.values(), *own])
        except BaseException:
            self._remove(number)  # nobody knows it
            raise

    def _spawn(self, message: wire.Message, descriptors: list[int]) -> None:
        program = child.Program.from_json(message["program"])
        pid = self.programs.start(self._crate(message), program, descriptors[:3], descriptors[3])
        descriptors.pop(3)
        self._reply({"pid": pid})

    def _signal(self, message: wire.Message, _: list[int]) -> None:
        alive = self.programs.signal(message["pid"], message["signal"], group=message["group"])
        self._reply({"signalled": alive})

    def _kill(self, message: wire.Message, _: list[int]) -> None:
        crate = self._crate(message)
        if not crate.ended:
            os.kill(crate.init, signal.SIGKILL)
        self._reply({"killed": True})

    def _late(self, message: wire.Message, _: list[int]) -> None:
        self._reply({"timed_out": self._crate(message).timed_out})

    def _end(self, message: wire.Message, _: list[int]) -> None:
        self._end_crate(self._crate(message))
        self._reply({"ended": True})

    def _end_crate(self, crate: Crate) -> None:
        """Kill what is left in a crate, and wait until nothing is, while pytest lives; idempotent.

        :raises SandboxError: the kernel does not end it: it is left, and not waited for again.
        """
        if crate.stuck:
            return
        # While pytest lives: its own children, such as a body, it may have yet to reap.
        self._end_within(crate, processes.KILL_SECONDS, while_alive=self.pytest_pidfd)
        if not (crate.ended or processes.pidfd_has_ended(self.pytest_pidfd)):
            crate.stuck = True
            detail = f"a process in it has not ended {processes.KILL_SECONDS:g} s after SIGKILL"
            raise SandboxError("end the crate", detail=detail)

    def _end_within(self, crate: Crate, patience_sec: float, *, while_alive: int | None = None) -> None:
        """Kill what is left in a crate, and wait for its end, as :func:`processes.wait_for`."""
        if crate.ended:
            return
        os.kill(crate.init, signal.SIGKILL)
        # The kernel kills and waits for every process of the namespace before init itself has ended
        # (pid_namespaces(7)); the programs are the launcher's children, so it is the one to reap them.
        until = time.monotonic() + patience_sec
        self.programs.reap_all_of(crate, until, while_alive)
        left_sec = until - time.monotonic()
        crate.ended = processes.wait_for(crate.init, left_sec, while_alive=while_alive) is not None
        if crate.ended:
            crate.deadline = None  # init's pid is nobody's now, or somebody else's

    def _remove(self, number: int) -> None:
        """Remove a crate, or what there is of one that is being made; one that is not there is removed already.

        Nobody waits for an answer: what can't be removed now is removed with the next crate, or at the end.
        """
        with contextlib.suppress(SandboxError, OSError):
            self._remove_now(number)
        for group in self.unremoved[:]:
            with contextlib.suppress(SandboxError):
                group.remove()
                self.unremoved.remove(group)

    def _remove_now(self, number: int) -> None:
        if number in self.building:
            self._no_longer_built(number).undo.close()
            return
        crate = self.crates.pop(number, None)
        if crate is None:
            return
        crate.release()
        try:
            if crate.programs:
                self._end_crate(crate)
        finally:
            if not crate.ended:
                # Its end is waited for by nobody: nothing is left in the cgroup, which init is not in.
                self.ending.add(crate.init)
            self._remove_group(crate.cgroup)
        # One that was killed before has ended before: the signal that tells of it may have come already.
        self._end_inits()

    def _end_inits(self) -> None:
        """Kill the inits of crates that are removed, and collect those that have ended."""
        for pid in list(self.ending):
            os.kill(pid, signal.SIGKILL)
            if os.waitpid(pid, os.WNOHANG)[0]:
                self.ending.discard(pid)

    def _remove_group(self, group: cgroup.Cgroup) -> None:
        try:
            group.remove()
        except SandboxError:
            self.unremoved.append(group)

    def _crate(self, message: wire.Message) -> Crate:
        crate = self.crates.get(message["crate"])
        if crate is None:
            raise SandboxError("use a crate", detail="it is closed already")
        return crate

    # -- the end ---------------------------------------------------------------------------------

    def end(self) -> None:
        """Remove every crate, and the run's own cgroup."""
        for building in self.building.values():
            with contextlib.suppress(Exception):
                building.undo.close()
        self.building.clear()
        for crate in self.crates.values():
            with contextlib.suppress(Exception):  # one crate that can't be removed does not keep the others
                # A body is pytest's child. Where pytest is gone, and whoever adopted the body doesn't reap it (a
                # container whose pid 1 is no init), the crate's init never ends. But zombies are in no cgroup.
                self._end_within(crate, _PATIENCE_SECONDS)
                crate.release()
                crate.cgroup.remove()
        self.crates.clear()
        self._end_builder(self.builder)
        for pid in self.ending:
            processes.wait_for(pid, _PATIENCE_SECONDS)
        self.ending.clear()
        try:
            self.parent.remove()
        except SandboxError as error:
            sys.stderr.write(f"pytest-crate: {error}\n")


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


def _begin(configuration: Mapping[str, Any], channel: socket.socket, pytest_pidfd: int) -> Launcher | None:
    """Find out what there is to make crates of, and tell pytest; None if there is nothing to be a launcher with."""
    with contextlib.ExitStack() as undo:
        try:
            rootless = not capabilities.can_mount()
            parent = cgroup.find_parent(
                run_name=cgroup.run_name(),
                configured=configuration["cgroup_parent"],
                entering=[configuration["pytest"]],
            )
            undo.callback(parent.remove)
            offer = cgroup.CgroupOffer.of(parent)
            launcher = Launcher(
                channel, parent, pytest_pidfd, rootless=rootless, ranged=configuration["id_map"] == "range"
            )
            has_overlay = not overlay.is_refused(rootless=rootless)
        except HostError as error:
            wire.send(channel, {"error": str(error)})
            return None
        except SandboxError as error:
            wire.send(channel, {"sandbox_error": error.to_json()})
            return None
        except OSError as error:
            step = SandboxError("start the launcher", path=str(error.filename or ""), errno=error.errno)
            wire.send(channel, {"sandbox_error": step.to_json()})
            return None
        wire.send(
            channel,
            {
                "cgroups": offer.to_json(),
                "rootless": rootless,
                "user_namespace": rootless or launcher.user_namespace is not None,
                "overlay": has_overlay,
            },
        )
        undo.pop_all()
    return launcher


def main() -> None:
    """Be the launcher: configuration in ``argv[1]`` as JSON, the socket on :data:`CONTROL_FD`."""
    configuration = json.loads(sys.argv[1])
    os.closerange(CONTROL_FD + 1, 1 << 20)
    libc.name_process("crate-launcher")
    # Ctrl-C is pytest's to handle; the launcher ends when pytest does.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    channel = socket.socket(fileno=CONTROL_FD)
    os.set_inheritable(CONTROL_FD, False)
    try:
        pidfd = os.pidfd_open(configuration["pytest"])
    except ProcessLookupError:
        return
    if os.getppid() != configuration["pytest"]:
        return
    launcher = _begin(configuration, channel, pidfd)
    if launcher is None:
        return
    try:
        launcher.serve()
    finally:
        launcher.end()
