"""A crate's lifecycle as pytest sees it: create, enter, watch, kill, account, remove."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import select
import signal
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NoReturn, cast

from pytest_crate.errors import HostError, SandboxError
from pytest_crate.kernel import capabilities, cgroup, host, libc, monotonic, namespaces
from pytest_crate.result import Limit
from pytest_crate.sandbox import child, mounts, wire
from pytest_crate.sandbox.design import Order
from pytest_crate.sandbox.launcher import CONTROL_FD
from pytest_crate.sandbox.programs import INIT_KILLED
from pytest_crate.sandbox.steps import OFF, Clock
from pytest_crate.spec import CrateSpec
from pytest_crate.usage import Usage

# -I -S: no site, no environment, no user directory; the launcher needs the standard library and us.
_LAUNCH = "import sys; sys.path.insert(0, sys.argv.pop(1)); from pytest_crate.sandbox.launcher import main; main()"

# Whoever kills the launcher may kill those that are to clear up behind it, too: to no end, if it is the OOM killer.
_MOST_CLEARING = 5

# Their handlers may raise. In the midst of a request that would cost the launcher, for its answer would still come.
_HELD_SECONDS = 2.0
HELD = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, signal.SIGUSR1, signal.SIGUSR2})
"""Signals whose handlers are not to raise where that would lose a process, or an answer."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Enforcement:
    """What enforces crates in this run.

    :ivar cgroups: what their control groups can enforce.
    :ivar rootless: crates are made in a user namespace, without the rights of root.
    :ivar user_namespace: payloads run in a user namespace, so that their root is nobody outside.
    :ivar overlay: roots are copy-on-write; else images are copied, and the host's root is read-only.
    """

    cgroups: cgroup.CgroupOffer
    rootless: bool
    user_namespace: bool
    overlay: bool


class Unsupported(HostError):
    """The host can't enforce a limit that a spec asks for."""


ENDED = "it ended, and every crate with it"


class LauncherEnded(SandboxError):
    """The launcher ended before its time, and with it every crate it had made."""


class Engine:
    """The launcher process as seen by its owner; started at the first use.

    Requests may come from several threads; each is answered before the next is sent.
    """

    def __init__(self, *, cgroup_parent: str | None = None, id_map: str = "single", steps: bool = False) -> None:
        """
        :param id_map: which ids the user namespace of an image's crate has where we have not the rights of root:
            ``single``, our own as root's, or ``range``, those that subuid(5) gives us, too.
        :param steps: have the launcher tell what the steps of making a crate took.
        """
        self._steps = steps
        self._cgroup_parent = cgroup_parent
        self._id_map = id_map
        self._lock = threading.Lock()
        self._channel: socket.socket | None = None
        self._pid = 0
        self._getpid = os.getpid  # a test may replace it
        self._owner = 0
        self._enforcement: Enforcement | None = None
        # A launcher was killed, and no other has begun since.
        self._lost = False
        self._count = 0
        self._highest: int | None = None
        # What the next crate is made of if nothing else is said, here and in the launcher.
        self._design: Order | None = None
        self._prepared: list[_Prepared] = []  # in the order in which they are begun, all of one design
        # Answers that come when a crate is ready, by its number; None where it is to come yet.
        self._answers: dict[int, tuple[wire.Message, list[int]] | None] = {}

    @property
    def enforcement(self) -> Enforcement:
        """What enforces crates here; starts the launcher if it has not been asked before.

        :raises SandboxError: the launcher can't be started.
        :raises HostError: the configured cgroup parent can't be used.
        """
        if self._enforcement is None:
            with self._lock:
                if self._enforcement is None:
                    self._start()
        return cast("Enforcement", self._enforcement)

    def _start(self) -> socket.socket:
        if self._channel is not None and self._has_ended(self._channel):
            self._forget()  # a suite ended every child process of pytest's
        if self._channel is not None:
            return self._channel
        with libc.os_step("start the launcher", "socketpair"):
            ours, theirs = socket.socketpair()
        configuration = {"pytest": os.getpid(), "cgroup_parent": self._cgroup_parent, "id_map": self._id_map}
        package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        argv = [sys.executable, "-I", "-S", "-c", _LAUNCH, package, json.dumps(configuration)]
        # posix_spawn doesn't copy pytest's page tables: its cost doesn't grow with pytest's memory.
        # A session of its own keeps the terminal's signals away.
        with contextlib.ExitStack() as undo, theirs, libc.os_step("start the launcher", "posix_spawn", sys.executable):
            undo.callback(ours.close)
            self._pid = os.posix_spawn(
                sys.executable,
                argv,
                {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_DUP2, theirs.fileno(), CONTROL_FD),
                ],
                setsid=True,
                setsigmask=(),
            )
            undo.pop_all()
        self._owner = self._getpid()
        self._channel = ours
        try:
            answer, _ = self._receive()
        except BaseException:
            # A handler raised: what the launcher says of itself may still come, and would be taken for an answer.
            self._forget()
            raise
        if "error" in answer:
            self._forget()
            raise HostError(answer["error"], feature="cgroups")
        if "sandbox_error" in answer:
            self._forget()
            raise SandboxError.from_json(answer["sandbox_error"])
        self._lost = False
        self._enforcement = Enforcement(
            cgroups=cgroup.CgroupOffer.from_json(answer["cgroups"]),
            rootless=answer["rootless"],
            user_namespace=answer["user_namespace"],
            overlay=answer["overlay"],
        )
        return ours

    def _has_ended(self, channel: socket.socket) -> bool:
        """Return whether the launcher has ended: its socket may be open in an init that it has just forked."""
        with libc.os_step("ask the launcher", "waitid", str(self._pid)):
            try:
                ended = os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:  # a test suite that waits for any child
                ended = None
        return ended is not None or _hung_up(channel)

    def _receive(self) -> tuple[wire.Message, list[int]]:
        try:
            received = wire.receive(cast("socket.socket", self._channel))
        except (wire.WireError, OSError) as error:
            received = None
            reason = str(error)
        else:
            reason = "it ended"
        if received is None:
            self._forget()
            raise LauncherEnded("ask the launcher", detail=f"no answer: {reason}")
        return received

    def _forget(self) -> None:
        """Give the launcher up; the next use starts another."""
        if self._channel is not None:
            # Not just closed: whatever was forked from this process has the socket, too.
            with contextlib.suppress(OSError):
                self._channel.shutdown(socket.SHUT_RDWR)
            self._channel.close()
            self._channel = None
            self._design = None
            self._prepared.clear()
            self._close_answers()
            try:
                _, status = os.waitpid(self._pid, 0)
            except ChildProcessError:
                status = None  # somebody else has waited for it, and how it ended is not known
            if status != 0:
                self._lost = True

    def ask(self, message: Mapping[str, object], descriptors: Iterable[int] = (), *, launcher: int) -> wire.Message:
        """Send a request on a crate to its launcher and return the answer.

        :param launcher: its pid.
        :raises SandboxError: the kernel refused a step of it, or the launcher has ended.
        """
        with self._asking() as mask:
            channel = self._verify_alive(launcher)
            frame = wire.encode(message)
            answer = None
            try:
                self._send(channel, frame, descriptors)
                while answer is None:
                    answer = self._next_answer(channel, mask)
            except SandboxError:
                raise  # the stream is in order, or given up already
            except BaseException:
                # Another of pytest's threads got the signal that this one holds: its handler runs in here all the same.
                # The answer may still come, and would be taken for the next request's.
                self._forget()
                raise
        if "sandbox_error" in answer:
            raise SandboxError.from_json(answer["sandbox_error"])
        return answer

    def tell(self, message: Mapping[str, object], *, launcher: int) -> None:
        """Send a word on a crate that needs no answer to its launcher.

        :raises LauncherEnded: there is nobody to hear it.
        """
        with self._asking():
            self._send(self._verify_alive(launcher), wire.encode(message))

    def verify_alive(self, launcher: int) -> None:
        """
        :raises LauncherEnded: a launcher has ended, and with it every crate it had made.
        """
        with self._asking():
            self._verify_alive(launcher)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[set[int]]:
        """Let no other thread ask in the block, and hold signals; give the mask of before.

        :raises SandboxError: the launcher is another process's.
        """
        # Before all else: whoever had the lock at the fork gives it back in that process only.
        if self._owner not in (0, self._getpid()):
            # It has the same socket: each would get answers to what the other has asked.
            detail = "the crate belongs to the process that this one was forked from, and only that one can use it"
            raise SandboxError("ask the launcher", detail=detail)
        with self._lock, _signals_held() as mask:
            yield mask

    def _verify_alive(self, launcher: int) -> socket.socket:
        # A new launcher knows nothing of another's crates.
        if self._channel is None or self._pid != launcher or self._has_ended(self._channel):
            raise LauncherEnded("ask the launcher", detail=ENDED)
        return self._channel

    def _send(self, channel: socket.socket, frame: bytes, descriptors: Iterable[int] = ()) -> None:
        try:
            wire.send_frame(channel, frame, descriptors)
        except wire.WireError as error:
            raise SandboxError("ask the launcher", detail=str(error)) from None
        except (BrokenPipeError, ConnectionResetError) as error:
            self._forget()
            raise LauncherEnded("ask the launcher", detail=ENDED) from error
        except OSError as error:
            # A part of the message may have gone: the stream is of no more use.
            self._forget()
            raise SandboxError("ask the launcher", syscall="sendmsg", errno=error.errno) from error
        except BaseException:  # a signal's handler raised: likewise
            self._forget()
            raise

    def _next_answer(self, channel: socket.socket, mask: set[int]) -> wire.Message | None:
        """Wait for a message: return an answer to what was asked; keep one on a crate for who wants that."""
        try:
            _await(channel, mask)
            message, descriptors = self._receive()
        except BaseException:
            # A signal's handler raised: the answer may still come, and would be taken for the next request's.
            self._forget()
            raise
        if "of" not in message:
            return message
        if message["of"] in self._answers:
            self._answers[message["of"]] = message, descriptors
        else:  # nobody wants that crate any more
            _close(descriptors)
        return None

    def prepare(self, spec: CrateSpec, operations: Sequence[mounts.Operation], *, count: int = 1) -> None:
        """Have crates begun that will probably be asked for next; each is handed out only if it is what is asked for.

        What stands in their way is not said here: :meth:`create` will meet it again.

        :param count: how many there shall be, with those that there are.
        """
        with self._asking():
            design = self._design_of(spec, operations)
            sources = _identities(operations)
            if not all(prepared.is_of(design, sources) for prepared in self._prepared):
                self._drop()
            while len(self._prepared) < count:
                try:
                    number = self._begin(self._start(), design)
                except (SandboxError, HostError):
                    return
                self._prepared.append(_Prepared(number=number, design=design, sources=sources))

    def _design_of(self, spec: CrateSpec, operations: Sequence[mounts.Operation]) -> Order:
        last = self._design
        if last is not None and last.is_of(spec, operations):
            return last
        return Order.of(spec, operations)

    def _begin(self, channel: socket.socket, design: Order) -> int:
        """Have a crate begun; return its number."""
        self._count += 1
        number = self._count
        message: dict[str, object] = {"request": "create", "crate": number}
        if self._steps:
            message["steps"] = True
        if self._design is not design:
            message["design"] = design.data
        self._send(channel, wire.encode(message))
        self._design = design
        self._answers[number] = None
        return number

    def _drop(self) -> None:
        while self._prepared:
            self._discard(self._prepared.pop().number)

    def _discard(self, number: int) -> None:
        answer = self._answers.pop(number, None)
        if answer is not None:
            _close(answer[1])
        if self._channel is not None:
            with contextlib.suppress(LauncherEnded):
                self._send(self._channel, wire.encode({"request": "remove", "crate": number}))

    def _take_prepared(self, design: Order) -> int | None:
        """Return the number of a prepared crate if it is what is asked for now; None, and none prepared, if not."""
        if self._channel is not None and self._has_ended(self._channel):
            self._forget()  # and with the launcher what it has prepared
        if not self._prepared:
            return None
        # A source may have been replaced meanwhile, by another file of the same name.
        if not self._prepared[0].is_of(design, _identities(design.operations)):
            self._drop()
            return None
        return self._prepared.pop(0).number

    def _answer_of(self, number: int, mask: set[int]) -> tuple[wire.Message, list[int]]:
        """Wait until a crate that was begun is ready, or is not to be had."""
        channel = cast("socket.socket", self._channel)
        while (answer := self._answers[number]) is None:
            self._next_answer(channel, mask)
        del self._answers[number]
        return answer

    def create(self, spec: CrateSpec, operations: Sequence[mounts.Operation], *, timed: bool = False) -> Sandbox:
        """Make a crate: its cgroup, namespaces and root; nothing of the user's runs in it yet.

        :param timed: the launcher kills the crate at the spec's timeout, counted from now on.
        :raises Unsupported: the host can't enforce one of the spec's limits.
        :raises HostError: the host refuses a step; with the doctor's reason and remedy.
        :raises SandboxError: the kernel refuses a step for a reason that the doctor does not know.
        """
        try:
            return self._create(spec, operations, timed=timed)
        except SandboxError as error:
            explained = host.explain(error)
            if explained is not None:
                raise explained from error
            raise

    def _create(self, spec: CrateSpec, operations: Sequence[mounts.Operation], *, timed: bool) -> Sandbox:
        number: int | None = None
        descriptors: list[int] = []
        try:
            with self._asking() as mask:
                design = self._design_of(spec, operations)
                number = self._take_prepared(design)
                if number is not None:
                    answer, descriptors = self._answer_of(number, mask)
                # What stood in the way of one made ahead may be gone.
                if number is None or "init" not in answer:
                    number = self._begin(self._start(), design)
                    answer, descriptors = self._answer_of(number, mask)
                launcher = self._pid
        except BaseException:
            # The handler of a signal that was held has raised, or the launcher can't be heard: nobody knows the crate.
            _close(descriptors)
            if number is not None:
                self._give_up(number)
            raise
        if "sandbox_error" in answer:
            raise SandboxError.from_json(answer["sandbox_error"])
        if "host_error" in answer:
            raise HostError(**answer["host_error"])
        if "missing" in answer:
            raise _unsupported(answer["missing"])
        group = cgroup.from_json(answer["cgroup"])
        root, pid, *others = descriptors
        # One more than kinds: the user namespace that the payload enters last.
        user_namespace = others.pop() if len(others) > len(answer["kinds"]) else None
        sandbox = Sandbox(
            engine=self,
            launcher=launcher,
            number=number,
            init=answer["init"],
            root=root,
            group=group,
            steps=answer.get("steps", {}),
            entry=child.Entry(
                enter_files=group.enter_files,
                cgroup=group.directory,
                namespaces=namespaces.NamespaceHandles(pid=pid, others=dict(zip(answer["kinds"], others, strict=True))),
                keep=design.keep,
                last_capability=self._last_capability(),
                seccomp=design.seccomp,
                user_namespace=user_namespace,
                root=os.geteuid() == 0 or (self._is_rootless() and spec.image is not None),
                one_user=self._has_one_user(spec),
            ),
        )
        if timed and spec.timeout_usec is not None:
            try:
                sandbox.set_deadline(monotonic.seconds() + spec.timeout_usec / 1e6)
            except BaseException:
                sandbox.release()
                self._give_up(number)  # nobody else knows it
                raise
        return sandbox

    def _give_up(self, number: int) -> None:
        with self._asking():
            self._discard(number)

    def _is_rootless(self) -> bool:
        return self._enforcement is not None and self._enforcement.rootless

    def _has_one_user(self, spec: CrateSpec) -> bool:
        """Tell whether a crate's user namespace knows our own ids only."""
        return self._is_rootless() and not (self._id_map == "range" and spec.image is not None)

    def _last_capability(self) -> int:
        if self._highest is None:
            self._highest = capabilities.last_capability()
        return self._highest

    def close(self) -> None:
        """End the launcher, and with it every crate; idempotent."""
        with self._lock:
            self._forget()
            self._clear_away()
            self._lost = False

    def _clear_away(self) -> None:
        """Have what killed launchers have left removed by another one: who knows when there is a next run."""
        for _ in range(_MOST_CLEARING):
            if not self._lost:
                return
            try:
                self._start()
            except LauncherEnded:
                continue
            except (SandboxError, HostError):
                return
            self._forget()

    def disown(self) -> None:
        """In a forked child: close what is the parent's, the socket without ending the launcher."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
            self._close_answers()

    def _close_answers(self) -> None:
        for answer in self._answers.values():
            if answer is not None:
                _close(answer[1])
        self._answers.clear()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """A crate that has been begun ahead of its time."""

    number: int
    design: Order
    sources: tuple[object, ...]

    def is_of(self, design: Order, sources: tuple[object, ...]) -> bool:
        """Tell whether it is what is asked for, made of what is there."""
        return self.sources == sources and (self.design is design or self.design.data == design.data)


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _identities(operations: Sequence[mounts.Operation]) -> tuple[object, ...]:
    """Return what tells whether the paths that a root is made of are still the same files."""
    found: list[object] = []
    for path in dict.fromkeys(path for operation in operations for path in operation.sources()):
        try:
            status = os.stat(path)
        except OSError as error:
            found.append(error.errno)
        else:
            # Of a directory only which it is; what is in it is seen as it is.
            changed = None if stat.S_ISDIR(status.st_mode) else status.st_mtime_ns
            found.append((status.st_dev, status.st_ino, changed))
    return tuple(found)


@contextlib.contextmanager
def _signals_held() -> Iterator[set[int]]:
    # Asked for before anything is held: who holds signals may be told, by a handler that raises, of one that had come.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
        yield {int(number) for number in mask}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _await(channel: socket.socket, mask: set[int]) -> None:
    """Wait for an answer: for a while with signals held, then, if the launcher may be stuck, with the caller's mask."""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    if not poll.poll(_HELD_SECONDS * 1e3):
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        poll.poll()


def _hung_up(channel: socket.socket) -> bool:
    """Return whether nobody is at the other end of a socket any more (poll(2), POLLHUP)."""
    poll = select.poll()
    poll.register(channel, 0)
    return bool(poll.poll(0))


def _unsupported(missing: Sequence[Mapping[str, str]]) -> Unsupported:
    keys: dict[str, list[str]] = {}
    for limit in missing:
        keys.setdefault(limit["reason"], []).append(limit["key"])
    reasons = "; ".join(f"no limit on {' and '.join(names)}: {reason}" for reason, names in keys.items())
    return Unsupported(reasons, feature=f"{missing[0]['key']} limit", hint=missing[0]["hint"])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What has happened at a crate's limits; a count is None where the kernel can't tell.

    :ivar oom_kills: processes killed for memory.
    :ivar pids_max: forks refused.
    :ivar timed_out: the launcher killed the crate, its time being over.
    """

    oom_kills: int | None
    pids_max: int | None
    timed_out: bool

    def limits_since(self, earlier: Watched) -> tuple[Limit, ...]:
        """Return the limits that were exceeded between an earlier watch and this one."""
        found: list[Limit] = []
        if (self.oom_kills or 0) > (earlier.oom_kills or 0):
            found.append("memory")
        if (self.pids_max or 0) > (earlier.pids_max or 0):
            found.append("pids")
        if self.timed_out and not earlier.timed_out:
            found.append("timeout")
        return tuple(found)


NOTHING_YET = Watched(oom_kills=0, pids_max=0, timed_out=False)


class Sandbox:
    """One crate, alive until :meth:`close`."""

    def __init__(
        self,
        *,
        engine: Engine,
        launcher: int,
        number: int,
        init: int,
        root: int,
        group: cgroup.Cgroup,
        steps: Mapping[str, Mapping[str, int]],
        entry: child.Entry,
    ) -> None:
        self._engine = engine
        self._launcher = launcher
        self._number = number
        self._group = group
        self._deadline: float | None = None
        self._levels: cgroup.MemoryLevels | None = None
        self._killed = False
        self._closed: Usage | None = None
        self.init = init
        """Host pid of the crate's pid 1."""
        self.root = root
        """Descriptor of the crate's root directory."""
        self.entry = entry
        self.steps = steps
        """What the steps of its making took, by process, in microseconds."""
        self.started = monotonic.nanoseconds()

    def fork(self, refuse: Callable[[SandboxError], NoReturn], clock: Clock = OFF) -> int:
        """Fork the calling process into the crate, where nothing lives yet: the pid in the parent, its own; 0 inside.

        In the child the calling thread is the only one; it is in the crate's cgroup and namespaces
        but not yet confined (:func:`child.confine`).

        :param refuse: called in the child if it can't enter; ends the process.
        :param clock: the child's.
        :raises SandboxError: a step is refused, in the parent.
        """
        self.started = monotonic.nanoseconds()
        with self.entry.opened() as files:
            fork = self._fork_inside()
            if fork.pid == 0:
                clock.done("be born")
                try:
                    child.enter(self.entry, files, clock, joined=fork.joined, whole=fork.whole)
                except SandboxError as error:
                    refuse(error)
        return fork.pid

    def _fork_inside(self) -> namespaces.Fork:
        try:
            with libc.os_step("fork into the crate", "fork"):
                return namespaces.fork_inside(self.entry.namespaces, self.entry.cgroup)
        except SandboxError as error:
            # What the kernel says where init has ended (pid_namespaces(7)), with the launcher perhaps.
            if error.errno == errno.ENOMEM:
                self.verify_alive()
                if cgroup.Owner.of_process(self.init) is None:
                    raise SandboxError(error.step, syscall="fork", errno=error.errno, detail=INIT_KILLED) from None
            raise

    def spawn(self, program: child.Program, stdio: tuple[int, int, int]) -> tuple[int, int]:
        """Start a program in the crate.

        :param stdio: the descriptors that become its 0, 1 and 2.
        :returns: its host pid, and a descriptor on which one frame tells how it ended.
        """
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            answer = self._ask("spawn", [*stdio, writing], program=program.to_json())
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        return int(answer["pid"]), reading

    def signal(self, pid: int, number: int, *, group: bool = False) -> bool:
        """Send a signal to a program of :meth:`spawn`, or to its whole process group; False if it has ended."""
        answer = self._ask("signal", pid=pid, signal=number, group=group)
        return bool(answer["signalled"])

    def set_deadline(self, deadline: float) -> None:
        """Have the launcher kill the crate at a time of :func:`monotonic.seconds`.

        :raises LauncherEnded: it is gone already.
        """
        self._engine.tell({"request": "time", "crate": self._number, "deadline": deadline}, launcher=self._launcher)
        self._deadline = deadline

    def watch(self) -> Watched:
        """Return what has happened so far at the crate's limits."""
        events = self._group.events()
        late = self._deadline is not None and monotonic.seconds() >= self._deadline
        timed_out = late and bool(self._ask("late")["timed_out"])
        return Watched(oom_kills=events.oom_kills, pids_max=events.pids_max, timed_out=timed_out)

    def verify_alive(self) -> None:
        """
        :raises LauncherEnded: the crate's processes were killed because the launcher has ended.
        """
        self._engine.verify_alive(self._launcher)

    def note_levels(self) -> None:
        """Let the levels of memory of this moment be those of the crate's usage: later its processes have gone."""
        self._levels = self._group.levels()

    def account(self) -> Usage:
        """Return what has been used so far."""
        return self._timed(self._group.usage())

    def kill(self) -> None:
        """Kill every process in the crate; a forked body must be waited for before :meth:`close`."""
        if not self._killed:  # later there is little left
            self._killed = True
            self.note_levels()
        with contextlib.suppress(LauncherEnded):  # then init has got SIGKILL already
            self._ask("kill")

    def close(self) -> Usage:
        """Kill what is left, remove the crate and return what it used; idempotent.

        What a crate used is unknown if the launcher has ended before. Its cgroup, mounts and namespaces go in a
        moment; no process of the user's is left when this returns.
        """
        if self._closed is None:
            self.release()
            if self._levels is None:
                self.note_levels()
            usage = Usage()
            try:
                with contextlib.suppress(LauncherEnded):
                    if not self._group.known_empty():
                        self._ask("end")
                    usage = self._group.usage()
                    self._engine.tell({"request": "remove", "crate": self._number}, launcher=self._launcher)
            finally:
                self._closed = self._timed(usage)
        return self._closed

    def release(self) -> None:
        """Close the descriptors of the crate, here or in a forked child."""
        if self.root >= 0:
            self.entry.namespaces.close()
            if self.entry.user_namespace is not None:
                os.close(self.entry.user_namespace)
            os.close(self.root)
            self.root = -1

    def disown(self) -> None:
        """In a forked child: give up every descriptor of the engine's; the crate goes on."""
        self.release()
        self._engine.disown()

    def _ask(self, request: str, descriptors: Iterable[int] = (), **values: object) -> wire.Message:
        message = {"request": request, "crate": self._number, **values}
        return self._engine.ask(message, descriptors, launcher=self._launcher)

    def _timed(self, usage: Usage) -> Usage:
        """Return a usage with what is known here: the time, and the levels that were noted."""
        wall_usec = (monotonic.nanoseconds() - self.started) // 1_000
        if self._levels is None:
            return dataclasses.replace(usage, wall_usec=wall_usec)
        return dataclasses.replace(
            usage,
            wall_usec=wall_usec,
            memory_anon_bytes=self._levels.anon_bytes,
            memory_file_bytes=self._levels.file_bytes,
            memory_shmem_bytes=self._levels.shmem_bytes,
        )
