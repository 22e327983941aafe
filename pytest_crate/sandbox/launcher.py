"""The launcher process: makes crates, runs programs in them, and removes them, whatever happens to pytest.

Theory of operation. pytest starts one *launcher*, the first time that it needs a crate, and asks it
for crates over a socket. The launcher is small and has one thread, and does not grow with pytest's
memory. For each crate it makes a cgroup and an *init*, pid 1 of new namespaces, in which a *builder*
mounts the root; or the init does so itself, where it is a fork of the launcher's (an ordinary user's, and
where the package was built without a compiler): :mod:`pytest_crate.sandbox.making`. A *payload*, forked from
pytest (a body) or born of the launcher (a program), enters them. Killing init kills all that lives in the crate,
daemons included (pid_namespaces(7)). When pytest ends, even by SIGKILL, the launcher sees it, kills every
init and removes every cgroup; when the launcher ends, each init gets SIGKILL from the kernel.

Three requests don't hold pytest up. A crate is asked for by a number of pytest's choice, and its
answer comes when its init is ready, maybe after answers to later requests. A crate is given its
deadline, and removed, without an answer: what it used has been read by then, and the kernel takes
its time over the rest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pytest_crate.errors import HostError, SandboxError
from pytest_crate.kernel import calls, capabilities, cgroup, libc, overlay, processes
from pytest_crate.sandbox import child, wire
from pytest_crate.sandbox.crate import Crate
from pytest_crate.sandbox.making import NOT_READY, READY_SECONDS, Maker
from pytest_crate.sandbox.programs import Programs
from pytest_crate.sandbox.remains import Remains

CONTROL_FD = 3
"""The descriptor on which a launcher finds its socket."""

_TOO_MANY = "it has too many files open, for crates and programs that live at once; close some, or raise ulimit -n"
_PATIENCE_SECONDS = 2.0
_LOOK_SECONDS = 0.1
_MOST_STOPS = 30


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
        self.crates: dict[int, Crate] = {}
        self.remains = Remains()
        self._poll = select.poll()
        recorded = calls.works()
        self.maker = Maker(parent, self._poll, self.remains, recorded=recorded, rootless=rootless, ranged=ranged)
        self.programs = Programs(self._wait_entered, recorded=recorded)
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
        for each in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(each, lambda *_: None)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for descriptor in (self.channel.fileno(), self.pytest_pidfd, reading):
            self._poll.register(descriptor, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in self._poll.poll(self._milliseconds_left())}
            self._keep_time()
            for number in self.maker.told(ready):
                self._told(number, functools.partial(self._go_on, number))
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
        deadlines = self.maker.deadlines()
        deadlines += [crate.deadline for crate in self.crates.values() if crate.deadline is not None]
        deadlines += [given_up_at for given_up_at, _ in self._awaited()]
        # poll(2) takes an int of milliseconds; the loop comes round again.
        return min(max(0.0, (min(deadlines) - time.monotonic()) * 1e3), 1e9) if deadlines else None

    def _awaited(self) -> list[tuple[float, Crate]]:
        """Return the crates that have been killed, with a program whose end is awaited, and until when that is."""
        killed = ((crate.given_up_at, crate) for crate in self.crates.values() if self.programs.are_waited_for(crate))
        return [(given_up_at, crate) for given_up_at, crate in killed if given_up_at is not None]

    def _keep_time(self) -> None:
        """Kill the crates whose time is over, and give up those that don't get ready, or don't end."""
        now = time.monotonic()
        for crate in self.crates.values():
            if crate.deadline is not None and crate.deadline <= now:
                crate.deadline, crate.timed_out = None, True
                crate.kill()
        for given_up_at, crate in self._awaited():
            if given_up_at <= now:
                self.programs.reap()  # some may have ended since anybody looked: the launcher may have been held up
                self.programs.tell_stuck(crate)
        for number in self.maker.late(now):
            self._told(number, functools.partial(self.maker.give_up, number))

    def _wait_entered(self, pid: int, descriptor: int, step: str) -> None:
        """Wait for the word of a process that is entering a crate, or its first: bounded, not beyond pytest's end.

        The other crates' time runs meanwhile. Where a program lives already, it may send signals to who enters.

        :raises SandboxError: it did not come.
        """
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.register(self.pytest_pidfd, select.POLLIN)
        end = time.monotonic() + READY_SECONDS
        stops = 0
        while time.monotonic() < end:
            left = self._milliseconds_left()
            look = _LOOK_SECONDS * 1e3
            ready = {found for found, _ in poll.poll(look if left is None else min(look, left))}
            if descriptor in ready:
                return
            if ready:
                break
            self._keep_time()
            if processes.is_stopped(pid):
                stops += 1
                if stops > _MOST_STOPS:
                    raise SandboxError(step, detail="a process in the crate stops it (SIGSTOP) whenever it enters")
                os.kill(pid, signal.SIGCONT)
        raise SandboxError(step, detail=NOT_READY)

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
        self.remains.collect()
        for number in self.maker.childless():
            self._told(number, functools.partial(self._go_on, number))

    # -- requests --------------------------------------------------------------------------------

    def _create(self, message: wire.Message, _: list[int]) -> None:
        """Begin a crate, and answer other requests until its root is ready."""
        number = message["crate"]
        missing = self.maker.begin(number, message)
        if missing:
            self._reply({"of": number, "missing": [dataclasses.asdict(limit) for limit in missing]})

    def _go_on(self, number: int) -> None:
        """Go on with a crate that was begun; answer with it if it is ready."""
        made = self.maker.go_on(number)
        if made is None:
            return
        crate = self.crates[number] = made.crate
        handles, own = crate.handles, crate.entry.user_namespace
        answer = {
            "of": number,
            "init": crate.init,
            "cgroup": crate.cgroup.to_json(),
            "kinds": list(handles.others),
            **({"steps": made.spent} if made.spent else {}),
        }
        try:
            self._reply(answer, [crate.root, handles.pid, *handles.others.values(), *([] if own is None else [own])])
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
            crate.kill()
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
        if not crate.ended:
            crate.kill()
            assert crate.given_up_at is not None
            # While pytest lives: its own children, such as a body, it may have yet to reap, or has just reaped.
            until = max(crate.given_up_at, time.monotonic() + _PATIENCE_SECONDS)
            self._await_end(crate, until, while_alive=self.pytest_pidfd)
        if not (crate.ended or processes.pidfd_has_ended(self.pytest_pidfd)):
            crate.stuck = True
            detail = f"a process in it has not ended {processes.KILL_SECONDS:g} s after SIGKILL"
            raise SandboxError("end the crate", detail=detail)

    def _await_end(self, crate: Crate, until: float, *, while_alive: int | None = None) -> None:
        """Wait for the end of a crate that has been killed, as :func:`processes.wait_for`.

        :param until: not beyond this time of the monotonic clock.
        """
        # The kernel kills and waits for every process of the namespace before init itself has ended
        # (pid_namespaces(7)); the programs are the launcher's children, so it is the one to reap them.
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
        self.remains.remove_again()

    def _remove_now(self, number: int) -> None:
        if self.maker.drop(number):
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
                self.remains.end(crate.init)
            self.remains.remove(crate.cgroup)
        # One that was killed before has ended before: the signal that tells of it may have come already.
        self.remains.collect()

    def _crate(self, message: wire.Message) -> Crate:
        crate = self.crates.get(message["crate"])
        if crate is None:
            raise SandboxError("use a crate", detail="it is closed already")
        return crate

    # -- the end ---------------------------------------------------------------------------------

    def end(self) -> None:
        """Remove every crate, and the run's own cgroup."""
        self.maker.end()
        for crate in self.crates.values():
            with contextlib.suppress(Exception):  # one crate that can't be removed does not keep the others
                # A body is pytest's child. Where pytest is gone, and whoever adopted the body doesn't reap it (a
                # container whose pid 1 is no init), the crate's init never ends. But zombies are in no cgroup.
                if not crate.ended:
                    crate.kill()
                    self._await_end(crate, time.monotonic() + _PATIENCE_SECONDS)
                crate.release()
                crate.cgroup.remove()
        self.crates.clear()
        self.remains.wait(_PATIENCE_SECONDS)
        try:
            self.parent.remove()
        except SandboxError as error:
            sys.stderr.write(f"pytest-crate: {error}\n")


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
                "user_namespace": rootless or launcher.maker.user_namespace is not None,
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
