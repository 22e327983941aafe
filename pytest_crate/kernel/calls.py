"""System calls made by another process: recorded as a table here, carried out there by a program of a few pages."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Self

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import libc, namespaces

PROGRAM = os.path.join(os.path.dirname(__file__), "calls")
"""The program, where the package was built with a C compiler; its source lies beside this file."""

# How a call's arguments and its result are meant; calls.c has the same numbers.
_IS_OFFSET = 1 << 0
_IS_RESULT = 1 << 6
_MAY_FAIL = 1 << 12
_NOT_ZERO = 1 << 13
_SPLIT = 1 << 14
_FAIL = 1 << 15
_REFUSED = 0xFFFFFFFF

_HEADER = struct.Struct("=IIIi")
_CALL = struct.Struct("=II6Q")
_TOLD = struct.Struct("=ii")
_PID = -1
_READY = -2
_MASK = (1 << 64) - 1

_MFD_EXEC = 1 << 4  # linux/memfd.h, kernel 6.3
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class _Recorded(NamedTuple):  # made faster than a frozen dataclass, a hundred times for each program
    step: str
    name: str
    path: str
    details: Mapping[int, str]
    arguments: Sequence[libc.Argument]
    flags: int


class Table:
    """System calls in the order in which they are to be made."""

    def __init__(self) -> None:
        self._calls: list[_Recorded] = []

    def add(
        self,
        step: str,
        name: str,
        /,
        *args: libc.Argument,
        path: str = "",
        details: Mapping[int, str] = libc.NO_DETAILS,
        flags: int = 0,
    ) -> libc.Result:
        """Record a call: the process ends where it fails, having told which, and its errno."""
        self._calls.append(_Recorded(step, name, path, details, args, flags))
        return libc.Result(len(self._calls) - 1)

    def try_each(self, step: str, name: str, attempts: Sequence[Sequence[libc.Argument]], *, path: str) -> None:
        """Record calls of which one is to succeed and not return; the error is the first that isn't "not found"."""
        for arguments in attempts:
            self.add(step, name, *arguments, path=path, flags=_MAY_FAIL)
        self.add(step, name, path=path, flags=_FAIL)

    def encode(self, telling: int) -> bytes:
        """Return the table as the program reads it.

        :param telling: the descriptor on which it tells.
        :raises SandboxError: a call's number is not known on this machine.
        """
        blob = _Blob(_HEADER.size + _CALL.size * len(self._calls))
        rows, pack = bytearray(), _CALL.pack
        for recorded in self._calls:
            flags, values = recorded.flags, [0, 0, 0, 0, 0, 0]
            for place, argument in enumerate(recorded.arguments):
                if type(argument) is int:
                    values[place] = argument & _MASK
                elif isinstance(argument, libc.Result):
                    flags |= _IS_RESULT << place
                    values[place] = argument
                elif isinstance(argument, (bytes, libc.Words)):
                    flags |= _IS_OFFSET << place
                    values[place] = blob.put(argument)
                else:
                    values[place] = int(argument or 0) & _MASK
            rows += pack(_REFUSED if flags & _FAIL else _number(recorded), flags, *values)
        header = _HEADER.pack(len(self._calls), len(blob.pointers), blob.start + len(blob.data), telling)
        return b"".join((header, rows, blob.data, struct.pack(f"={len(blob.pointers)}Q", *blob.pointers)))

    def error(self, index: int, number: int) -> SandboxError:
        """Return the error of the call of that index, which failed with that errno."""
        failed = self._calls[index]
        detail = failed.details.get(number, "")
        return SandboxError(failed.step, syscall=failed.name, path=failed.path, errno=number, detail=detail)


def _number(recorded: _Recorded) -> int:
    number = libc.NUMBERS.get(recorded.name)
    if number is None:
        detail = "its number is not known on this machine"
        raise SandboxError(recorded.step, syscall=recorded.name, path=recorded.path, detail=detail)
    return number


class _Blob:
    """What the calls of a table point to."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.data = bytearray()
        self.pointers: list[int] = []
        self._arrays: dict[int, int] = {}

    def put(self, what: bytes | libc.Words) -> int:
        """Add something; return its offset in the table. An array that is there already is not added again."""
        if isinstance(what, bytes):
            return self._put_bytes(what + bytes(8 - len(what) % 8))
        offset = self._arrays.get(id(what))
        if offset is None:
            words = [self.put(word) if isinstance(word, bytes) else word & _MASK for word in what.words]
            offset = self._put_bytes(struct.pack(f"={len(words)}Q", *words))
            self.pointers += [offset + 8 * place for place, word in enumerate(what.words) if isinstance(word, bytes)]
            self._arrays[id(what)] = offset
        return offset

    def _put_bytes(self, data: bytes) -> int:
        offset = self.start + len(self.data)
        self.data += data
        return offset


def works() -> bool:
    """Tell whether the program is there, and runs here."""
    try:
        pid = _start("try the program of calls", "crate-calls", Table().encode(-1), (), ())
    except SandboxError:
        return False
    return os.waitpid(pid, 0)[1] == 0


def _in_memory(step: str, name: str, content: bytes, flags: int = 0) -> int:
    """Return a descriptor, close-on-exec, of a file of no directory's (memfd_create(2))."""
    with libc.os_step(step, "memfd_create"):
        memory = os.memfd_create(name, os.MFD_CLOEXEC | flags)
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, memory)
        with libc.os_step(step, "ftruncate", name):
            # Where a limit on files' sizes is below that, write(2) would write a part, and say nothing.
            os.ftruncate(memory, len(content))
        with libc.os_step(step, "write"):
            os.write(memory, content)
        undo.pop_all()
    return memory


def _copy_of_program(step: str) -> int:
    """Return a descriptor of a copy of the program that is in no directory, and that nobody can change.

    Who enters a crate runs it until it executes what is named there; and that may be a link to /proc/self/exe. From
    then on the crate may open what it runs, and as its owner change that file of the host's: what is in it, or its
    mode (CVE-2019-5736). Each has a copy of its own, for a mode can't be sealed on every kernel.
    """
    with libc.os_step(step, "open", PROGRAM), open(PROGRAM, "rb") as file:
        content = file.read()
    try:
        copy = _in_memory(step, "calls", content, os.MFD_ALLOW_SEALING | _MFD_EXEC)
    except SandboxError as error:
        if error.errno != errno.EINVAL:  # an older kernel, where each can be executed
            raise
        copy = _in_memory(step, "calls", content, os.MFD_ALLOW_SEALING)
    try:
        with libc.os_step(step, "fcntl", "F_ADD_SEALS"):
            fcntl.fcntl(copy, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(copy)
        raise
    return copy


def _start(step: str, name: str, table: bytes, needed: Sequence[int], default_signals: Sequence[int] = ()) -> int:
    with contextlib.ExitStack() as ours:
        memory = _in_memory(step, name, table)
        ours.callback(os.close, memory)
        program = _copy_of_program(step)
        ours.callback(os.close, program)
        try:
            for descriptor in (memory, *needed):
                with libc.os_step(step, "ioctl", str(descriptor)):
                    os.set_inheritable(descriptor, True)
            with libc.os_step(step, "posix_spawn", PROGRAM):
                variables = {"TABLE": f"{memory} {len(table)}"}
                pid = os.posix_spawn(f"/proc/self/fd/{program}", [name], variables, setsigdef=default_signals)
            ours.callback(namespaces.end_both, pid)
        finally:
            # Whoever is started next has no business with them.
            for descriptor in needed:
                with libc.os_step(step, "ioctl", str(descriptor)):
                    os.set_inheritable(descriptor, False)
        ours.pop_all()
        os.close(memory)
        os.close(program)
    return pid


class Birth:
    """A process that is born to carry out a table, and what it tells: a context manager, and used once.

    A first one, started here, carries the table out up to its split, and ends. The child that it has borne is our
    own, too (CLONE_PARENT), and carries out the rest.
    """

    def __init__(self, step: str, name: str) -> None:
        """
        :param step: what it is for; it opens the errors' messages.
        :param name: what ps(1) shows as its command line.
        """
        self.step = step
        self.name = name
        self.table = Table()
        self._first = 0  # until it has been waited for
        self._own = contextlib.ExitStack()
        self._for_child = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:
            undo.enter_context(self._own)
            undo.enter_context(self._for_child)
            with libc.os_step(step, "pipe2"):
                self.reading, self.telling = os.pipe2(os.O_CLOEXEC)
                self._own.callback(os.close, self.reading)
                self._for_child.callback(os.close, self.telling)
                self._waiting, self._going = os.pipe2(os.O_CLOEXEC)
                self._own.callback(os.close, self._going)
                self._for_child.callback(os.close, self._waiting)
            undo.pop_all()
        # The child's group, too, by which it is found. The session is not the launcher's: what is to be seen of a
        # session is also to be set (proc(5), /proc/pid/autogroup).
        self.table.add(step, "setsid")
        self.close_on_exec((self.telling, self._waiting))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptors, and end who has begun to give birth; a child that is known lives on. Idempotent."""
        first, self._first = self._first, 0
        try:
            if first:
                namespaces.end_both(first)
        finally:
            self._for_child.close()
            self._own.close()

    def close_on_exec(self, descriptors: Iterable[int]) -> None:
        """Record that these descriptors close when the process executes, as they do here."""
        for descriptor in descriptors:
            self.table.add(self.step, "fcntl", descriptor, fcntl.F_SETFD, fcntl.FD_CLOEXEC, path="FD_CLOEXEC")

    def split(self, flags: int, cgroup: int | None = None) -> None:
        """Record that the child is born, and waits until it is known.

        :param flags: of clone(2).
        :param cgroup: descriptor of a control group of version 2 for it to be born in, which it then closes; None for
            the parent's.
        """
        flags |= libc.CLONE_PARENT
        if cgroup is None:
            self.table.add(self.step, "clone", flags | signal.SIGCHLD, 0, 0, 0, 0, path=hex(flags), flags=_SPLIT)
        else:
            arguments = namespaces.clone_arguments(flags | libc.CLONE_INTO_CGROUP, cgroup)
            self.table.add(self.step, "clone3", arguments, 8 * len(arguments.words), flags=_SPLIT)
        self.table.add(self.step, "read", self._waiting, b" ", 1, flags=_NOT_ZERO)
        if cgroup is not None:
            # It is a directory of the host's: a link to /proc/self/fd would lead there (CVE-2024-21626).
            self.table.add(self.step, "close", cgroup)

    def say_ready(self) -> None:
        """Record that the child says that it has come this far."""
        self.table.add("say that it is ready", "write", self.telling, _TOLD.pack(_READY, 0), _TOLD.size)

    def close_all(self) -> None:
        """Record that the child, which was given nothing, closes every descriptor."""
        # What it has is known. On kernels since 5.9 nothing unknown is left, either: close_range(2).
        for descriptor in (0, 1, 2, self.telling, self._waiting):
            self.table.add(self.step, "close", descriptor, flags=_MAY_FAIL)
        self.table.add(self.step, "close_range", 0, 0xFFFFFFFF, 0, flags=_MAY_FAIL)

    def give(self, needed: Sequence[int], *, default_signals: Sequence[int] = ()) -> int:
        """Give birth; return the child's pid. :meth:`begin`, and :meth:`born` when it has.

        :raises SandboxError: a call before the split is refused, or the split.
        """
        self.begin(needed, default_signals=default_signals)
        return self.born()

    def begin(self, needed: Sequence[int], *, default_signals: Sequence[int] = ()) -> None:
        """Begin to give birth.

        :param needed: the descriptors that the calls name, as they are numbered here.
        :param default_signals: the signals that are to have their defaults again.
        :raises SandboxError: nothing can be started.
        """
        needed = (*needed, self.telling, self._waiting)
        self._first = _start(self.step, self.name, self.table.encode(self.telling), needed, default_signals)
        self._for_child.close()

    def is_over(self) -> bool:
        """Return whether who has begun to give birth has ended, with success or without."""
        with libc.os_step(self.step, "waitid"):
            return os.waitid(os.P_PID, self._first, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None

    def born(self) -> int:
        """Wait until the child is born, and let it go on; return its pid. Its parent tells so, or ends.

        :raises SandboxError: a call before the split is refused, or the split.
        """
        first = self._first
        pid = None
        try:
            # If it is killed before it tells of a child, that one waits for ever, and keeps open what we would read.
            with libc.os_step(self.step, "waitid"):
                ended = os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
            if ended is not None and ended.si_code == os.CLD_EXITED:
                pid = self.hear()
        finally:
            self._first = 0
            if pid is None:
                namespaces.end_both(first)
        if pid is None:
            raise SandboxError(self.step, detail="the process that should fork died")
        try:
            with libc.os_step(self.step, "waitpid"):
                os.waitpid(first, 0)
            # It may have been killed.
            with libc.os_step(self.step, "write"), contextlib.suppress(BrokenPipeError):
                os.write(self._going, b"!")
        except BaseException:
            # Nobody else will know it.
            os.kill(pid, signal.SIGKILL)
            for which in (first, pid):
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(which, 0)
            raise
        return pid

    def hear(self) -> int | None:
        """Wait for what the processes tell: the child's pid, or 0 when it is ready; None if no more will come.

        :raises SandboxError: a call has failed.
        """
        with libc.os_step(self.step, "read"):
            data = os.read(self.reading, _TOLD.size)
        if not data:
            return None
        what, value = _TOLD.unpack(data)
        if what not in (_PID, _READY):
            raise self.table.error(what, value)
        return int(value)
