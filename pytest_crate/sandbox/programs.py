"""The programs that a launcher has started: born in crates, signalled, and waited for.

They are the launcher's children. So it is the one to reap them, and nobody else can send a signal without the risk of
hitting a later process of that number.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import calls, identity, libc, namespaces, processes
from pytest_crate.result import Exit
from pytest_crate.sandbox import child, wire
from pytest_crate.sandbox.crate import Crate

INIT_KILLED = "the crate's init was killed"
"""Why nothing can be born in a crate."""
FULL = "the crate has as many tasks as its pids limit allows"
"""Why nothing more can be."""

_END_SECONDS = 1.0

WaitEntered = Callable[[int, int, str], None]
"""Waits for the word of a process that enters a crate: its pid, the descriptor that it comes on, the step."""


class Programs:
    """Those of one launcher.

    :param wait_entered: how to wait for one that enters.
    :param recorded: they are born by :mod:`pytest_crate.kernel.calls`; else forked.
    """

    def __init__(self, wait_entered: WaitEntered, *, recorded: bool) -> None:
        self._wait_entered = wait_entered
        self._begin = self._bear if recorded else self._fork
        # pid → its crate, and the descriptor on which its end is told, if it is
        self._alive: dict[int, tuple[Crate, int | None]] = {}

    def start(self, crate: Crate, program: child.Program, stdio: Sequence[int], telling: int) -> int:
        """Start a program in a crate; return its pid.

        :param stdio: what it gets as 0, 1 and 2.
        :param telling: descriptor on which its end is told, and which is closed then; ours once it has been started.
        :raises SandboxError: it was not born, could not enter, or could not be executed.
        """
        step = f"run {program.argv[0]}"
        if crate.timed_out:
            raise SandboxError(step, detail="the crate was killed at its timeout")
        if crate.cgroup.full():  # the kernel lets in who moves there, as a program does where it can't be born there
            raise SandboxError(step, detail=FULL)
        pid = self._begin(crate, step, program, child.who_is(program.user, crate.root), stdio)
        self._keep(crate, pid, telling)
        return pid

    def _keep(self, crate: Crate, pid: int, telling: int | None) -> None:
        self._alive[pid] = crate, telling
        crate.programs.add(pid)

    def _give_up(self, crate: Crate, pid: int) -> None:
        """End one that did not enter. If another in the crate traces it, it is collected when that one has ended."""
        os.kill(pid, signal.SIGKILL)
        if processes.wait_for(pid, _END_SECONDS) is None:
            self._keep(crate, pid, None)

    def _bear(
        self, crate: Crate, step: str, program: child.Program, who: identity.Identity | None, stdio: Sequence[int]
    ) -> int:
        """Have a program born in a crate by a process of few pages; return its pid."""
        with calls.Birth(f"{step}: fork into the crate", "crate-program") as birth:
            try:
                pid = child.bear_program(program, crate.entry, who, stdio, birth)
            except SandboxError as error:
                if error.syscall == "clone3" and error.errno != errno.EAGAIN:
                    # It can't be born in its control group, and enters it as it does where there is no clone3.
                    crate.entry = dataclasses.replace(crate.entry, cgroup=None)
                    return self._bear(crate, step, program, who, stdio)
                raise _no_birth(error, crate, step) from None
            try:
                self._wait_entered(pid, birth.reading, step)
                birth.hear()
            except BaseException:
                self._give_up(crate, pid)
                raise
        return pid

    def _fork(
        self, crate: Crate, step: str, program: child.Program, who: identity.Identity | None, stdio: Sequence[int]
    ) -> int:
        """Fork a program in a crate; return its pid."""
        # Closed by a successful exec; before that, it carries the reason of a failed one.
        with libc.os_step(step, "pipe2"):
            reading, writing = os.pipe2(os.O_CLOEXEC)
        with contextlib.ExitStack() as ours:
            ours.callback(os.close, reading)
            try:
                with crate.entry.opened() as files:
                    fork = _fork_inside(crate, step)
                    if fork.pid == 0:
                        child.become_program(program, crate.entry, who, files, stdio, writing, joined=fork.joined)
                pid = fork.pid
            finally:
                os.close(writing)
            try:
                self._wait_entered(pid, reading, step)
                with libc.os_step(step, "read"):
                    failure = _read_whole(reading)
            except BaseException:
                self._give_up(crate, pid)
                raise
        if failure:
            self._give_up(crate, pid)
            raise SandboxError.from_json(wire.decode(failure))
        return pid

    def signal(self, pid: int, number: int, *, group: bool) -> bool:
        """Send a signal to a program, or to its process group; return whether the program has not been reaped yet."""
        if pid not in self._alive:
            return False
        # A program is the leader of a session, and so of a process group, of its own.
        with libc.os_step("send a signal", "kill", str(number)):
            (os.killpg if group else os.kill)(pid, number)
        return True

    def reap(self) -> None:
        """Collect those that have ended, and tell how each did."""
        for pid in list(self._alive):
            self._tell_end(pid, processes.collect(pid))

    def reap_all_of(self, crate: Crate, until: float, while_alive: int | None) -> None:
        """Wait for the ends of a crate's programs, whose init has been killed, as :func:`processes.wait_for` does.

        :param until: not beyond this time of the monotonic clock, for all of them.
        """
        for pid in list(crate.programs):
            self._tell_end(pid, processes.wait_for(pid, until - time.monotonic(), while_alive=while_alive))

    def _tell_end(self, pid: int, status: int | None) -> None:
        if status is None:
            return
        crate, telling = self._alive.pop(pid)
        crate.programs.discard(pid)  # the next that has this pid may be another crate's
        if telling is not None:
            _tell(telling, {"exit": dataclasses.asdict(Exit.from_wait_status(status))})

    def are_waited_for(self, crate: Crate) -> bool:
        """Return whether an end of a crate's programs is still to be told."""
        return any(self._alive[pid][1] is not None for pid in crate.programs)

    def tell_stuck(self, crate: Crate) -> None:
        """Tell of a crate's programs, which have been killed, that the kernel does not end them."""
        for pid in crate.programs:
            _, telling = self._alive[pid]
            self._alive[pid] = crate, None
            if telling is not None:
                _tell(telling, {"stuck": processes.KILL_SECONDS})


def _tell(descriptor: int, message: Mapping[str, object]) -> None:
    """Tell what there is to tell of a program, and no more."""
    try:
        with contextlib.suppress(BrokenPipeError):
            wire.write_frame(descriptor, message)
    finally:
        os.close(descriptor)


def _fork_inside(crate: Crate, step: str) -> namespaces.Fork:
    """Fork a child into a crate's namespaces, as :func:`namespaces.fork_inside` does."""
    try:
        with libc.os_step(f"{step}: fork into the crate", "fork"):
            return namespaces.fork_inside(crate.handles, crate.entry.cgroup, whole=True)
    except SandboxError as error:
        raise _no_birth(error, crate, step) from None


def _no_birth(error: SandboxError, crate: Crate, step: str) -> SandboxError:
    """Return why nothing was born in a crate."""
    if error.errno == errno.EAGAIN and crate.cgroup.full():
        return SandboxError(step, detail=FULL)
    # ENOMEM if the crate's init has ended: nothing can be born in its namespace (pid_namespaces(7)).
    if error.errno == errno.ENOMEM and processes.has_ended(crate.init):
        return SandboxError(step, syscall="fork", errno=error.errno, detail=INIT_KILLED)
    return error


def _read_whole(descriptor: int) -> bytes:
    data = b""
    while chunk := os.read(descriptor, 1 << 16):
        data += chunk
    return data
