"""A program in a crate, from its start to what came of it, with the habits of :mod:`subprocess`."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import math
import operator
import os
import selectors
import signal
import stat
import subprocess
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import IO, Any, Self

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import monotonic, read_only, status_flags
from pytest_crate.result import Exit, Limit
from pytest_crate.sandbox import child, wire
from pytest_crate.sandbox.sandbox import Sandbox
from pytest_crate.spec import format_size, parse_size
from pytest_crate.usage import Usage

_PIPE_BYTES = 2 << 20  # more than two pipes hold (pipe(7): 64 KiB each, or fs.pipe-max-size, 1 MiB)
_PAGE_BYTES = 4 << 10
TAIL_BYTES = 16 << 10
_LAST_ID = 2**32 - 2  # the next one is "no id" (chown(2))
"""So much of what a program wrote last is kept for a report."""

MAX_OUTPUT = "32m"
"""The most that a program may write, or a file be that is read, unless a test says otherwise."""

# A killed process ends at once, but for the time that giving back its memory takes.
_KILLED_SECONDS = 3.0

# The longest of one wait: poll(2) takes an int of milliseconds. Who waits longer waits again.
_LONGEST_WAIT_SEC = 86_400.0


# A test's author is shown the test's line, not ours, where the mistake or the refusal is the test's (pytest's
# documentation, "Writing well integrated assertion helpers"); a fault of ours keeps its whole traceback.
__tracebackhide__ = operator.methodcaller(
    "errisinstance", (SandboxError, subprocess.SubprocessError, TypeError, ValueError)
)


class ProgramNotFound(SandboxError):
    """A program, or the interpreter that it needs, is not in the crate."""

    def __init__(self, argument: str, reason: str) -> None:
        super().__init__(f"run {argument}", detail=reason)
        self.syscall = "execve"
        self.path = argument
        self.errno = errno.ENOENT


class OutputTooLong(SandboxError):
    """A program wrote more than ``max_output``, and was killed: what it wrote is not known as a whole.

    :ivar stdout: the last of what was read of its standard output, as bytes; likewise ``stderr``.
    """

    def __init__(self, argument: str, most_bytes: int, stdout: bytes, stderr: bytes) -> None:
        self.stdout, self.stderr = stdout, stderr
        told = f"it wrote more than max_output={format_size(most_bytes)} and was killed; give run() a larger max_output"
        super().__init__(f"run {argument}", detail=f"{told}, or have the program write to a file")


class ProgramFailed(subprocess.CalledProcessError):
    """A program run with ``check=True`` ended with another status than 0, or went over a limit.

    :ivar run: the :class:`CompletedRun`.
    """

    def __init__(self, run: CompletedRun) -> None:
        super().__init__(run.returncode, list(run.args), run.stdout, run.stderr)
        self.run = run

    def __str__(self) -> str:
        lines = [super().__str__()]
        if self.run.exceeded:
            lines.append(f"limits exceeded: {', '.join(self.run.exceeded)}")
        text = (
            self.run.stderr if isinstance(self.run.stderr, str) else (self.run.stderr or b"").decode(errors="replace")
        )
        lines += text.splitlines()[-20:]
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CompletedRun:
    """A program that has ended in a crate.

    :ivar returncode: its exit status; negative for a signal, as in :class:`subprocess.CompletedProcess`.
    :ivar stdout: what it wrote to standard output; text or bytes, as asked for.
    :ivar usage: what the crate used while it ran. The kernel keeps one peak for a crate's whole life:
        a peak is None if the run did not raise it.
    :ivar exceeded: the limits exceeded while it ran.
    """

    args: tuple[str, ...]
    returncode: int
    stdout: Any
    stderr: Any
    # Not shown: what a failed assertion says about a run shall fit on a line.
    usage: Usage = dataclasses.field(repr=False)
    exceeded: tuple[Limit, ...] = ()

    def check_returncode(self) -> None:
        """Raise :class:`ProgramFailed` unless the status is 0 and no limit was exceeded."""
        if self.returncode != 0 or self.exceeded:
            raise ProgramFailed(self)


class CratePopen:
    """A program that runs in a crate; used like :class:`subprocess.Popen`.

    :ivar pid: its pid on the host.
    :ivar returncode: None until it has ended and :meth:`poll` or :meth:`wait` has noticed.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        program: child.Program,
        *,
        stdin: int | IO[Any] | None,
        stdout: int | IO[Any] | None,
        stderr: int | IO[Any] | None,
        text: bool,
        lent: status_flags.KeptOpen,
    ) -> None:
        """
        :param lent: takes pytest's own streams that it is given, until the crate has ended, and all that has them.
        """
        self.args = program.argv
        self.returncode: int | None = None
        self.exit = Exit()
        self.stdin: IO[Any] | None = None
        self.stdout: IO[Any] | None = None
        self.stderr: IO[Any] | None = None
        self._sandbox = sandbox
        self._frames = wire.FrameReader()
        # Several threads may wait; and a signal's handler may ask in the midst of it.
        self._noting = threading.RLock()
        self._text = text
        self._lent = lent
        self._reopened: list[read_only.Reopened] = []
        theirs: list[int] = []
        try:
            for name, number, given in (("stdin", 0, stdin), ("stdout", 1, stdout), ("stderr", 2, stderr)):
                theirs.append(self._connect(name, number, given, theirs))
                if given is None:
                    lent.keep(theirs[-1])
            if program.terminal and not os.isatty(theirs[0]):
                raise ValueError("terminal=True wants a terminal as stdin, and what it got is none")
            self.pid, self._status = sandbox.spawn(program, (theirs[0], theirs[1], theirs[2]))
        except BaseException:
            self._close_streams()
            self._take_back()
            raise
        finally:
            for descriptor in theirs:
                os.close(descriptor)

    def _connect(self, name: str, number: int, given: int | IO[Any] | None, theirs: Sequence[int]) -> int:
        """Return the program's end of one of its three streams; keep ours, if there is one."""
        if given is None:
            return self._lend(_descriptor(name, number))
        if given == subprocess.DEVNULL:
            return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        if given == subprocess.STDOUT:
            if name != "stderr":
                raise ValueError(f"{name} can't be STDOUT: only stderr can be where stdout is")
            return os.dup(theirs[1])
        if given != subprocess.PIPE:
            return self._lend(_descriptor(name, given))
        reading, writing = os.pipe2(os.O_CLOEXEC)
        ours, other = (writing, reading) if name == "stdin" else (reading, writing)
        stream: IO[Any] = open(ours, "wb" if name == "stdin" else "rb", buffering=-1)  # noqa: SIM115
        if self._text:
            stream = io.TextIOWrapper(stream, write_through=name == "stdin")
        setattr(self, name, stream)
        return other

    def _lend(self, descriptor: int) -> int:
        """Return a descriptor of a file, for the program to have."""
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise ValueError("a directory can't be a program's stream: all that is below it could be reached by it")
        reopened = read_only.Reopened.of(descriptor)
        if reopened is None:
            return os.dup(descriptor)
        self._reopened.append(reopened)
        return os.dup(reopened.descriptor)

    def _take_back(self) -> None:
        """Have what was lent as it would be if it had been given itself: pytest may go on with it."""
        self._lent.restore()
        while self._reopened:
            self._reopened.pop().close()

    def _end(self, exit_: Exit) -> None:
        self._take_back()
        self.exit = exit_
        self.returncode = exit_.returncode if exit_.returncode is not None else -signal.SIGKILL
        os.close(self._status)

    def _note_exit(self) -> None:
        """Read the status pipe, which is readable, unless another thread has read it meanwhile."""
        with self._noting:
            if self.returncode is not None:
                return
            data = os.read(self._status, 1 << 16)
            if not data:
                self._end(Exit())  # the launcher is gone, and the crate with it
                return
            for message in self._frames.feed(data):
                self._end(Exit(**message.get("exit", {})))
                if "stuck" in message:
                    detail = f"it has not ended {message['stuck']:g} s after SIGKILL"
                    raise SandboxError(f"end {self.args[0]}", detail=detail)

    @contextlib.contextmanager
    def _own_status(self) -> Iterator[int | None]:
        """Give a descriptor of the status pipe that no other thread closes; None if the end has been noted.

        Who waits at one that another closes is not told of it, and waits for ever (select(2), "NOTES").
        """
        with self._noting:
            status = None if self.returncode is not None else os.dup(self._status)
        try:
            yield status
        finally:
            if status is not None:
                os.close(status)

    def fileno(self) -> int:
        """Return a descriptor that is readable once the program has ended, for :mod:`select`; -1 afterwards."""
        return self._status if self.returncode is None else -1

    def poll(self) -> int | None:
        """Return the return code, or None while the program runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the program's end and return its return code.

        :raises subprocess.TimeoutExpired: it still runs after so many seconds.
        :raises SandboxError: the kernel does not end it, a minute after its crate was killed.
        """
        end = end_after(timeout)
        while self.returncode is None:
            left = None if end is None else min(max(0.0, end - monotonic.seconds()), _LONGEST_WAIT_SEC)
            with self._own_status() as status, selectors.DefaultSelector() as selector:
                if status is None:
                    continue
                selector.register(status, selectors.EVENT_READ)
                ready = selector.select(left)
            if ready:
                self._note_exit()
            elif end is not None and monotonic.seconds() >= end:
                raise subprocess.TimeoutExpired(list(self.args), timeout or 0.0)
        return self.returncode

    def communicate(
        self,
        input: Any = None,  # noqa: A002 - as in subprocess
        timeout: float | None = None,
        *,
        max_output: str | int | None = None,
    ) -> tuple[Any, Any]:
        """Send input, read standard output and error until the program has ended, and return them.

        Unlike :mod:`subprocess`, it does not wait for what a daemon left behind may write later.

        :param max_output: the most that may be written to both, a size such as ``"64m"``; None for no limit.
        :raises subprocess.TimeoutExpired: it still runs after so many seconds; the exception has what it wrote.
        :raises OutputTooLong: it wrote more, and has been killed.
        :raises SandboxError: as :meth:`wait`.
        """
        most_bytes = parse_most(max_output)
        end = end_after(timeout)
        found = {name: bytearray() for name in ("stdout", "stderr")}
        try:
            self._exchange(to_bytes(input), found, end, most_bytes)
        except OverflowError:
            self.kill_group()  # before it gets a SIGPIPE
            self._close_streams()
            self.end()
            tails = (bytes(found[name][-TAIL_BYTES:]) for name in ("stdout", "stderr"))
            raise OutputTooLong(self.args[0], most_bytes or 0, *tails) from None
        except TimeoutError:
            raise subprocess.TimeoutExpired(
                list(self.args), timeout or 0.0, bytes(found["stdout"]), bytes(found["stderr"])
            ) from None
        self._close_streams()
        return self._result(self.stdout, found["stdout"]), self._result(self.stderr, found["stderr"])

    def _exchange(self, data: bytes, found: Mapping[str, bytearray], end: float | None, most_bytes: int | None) -> None:
        with self._own_status() as status, selectors.DefaultSelector() as selector:
            pending = memoryview(data)
            if self.stdin is not None and not self.stdin.closed:
                # The program may have ended, or closed it: that is no error, as in subprocess.
                with contextlib.suppress(BrokenPipeError):
                    self.stdin.flush()
                if pending:
                    os.set_blocking(self.stdin.fileno(), False)
                    selector.register(self.stdin.fileno(), selectors.EVENT_WRITE, "stdin")
                else:
                    _close(self.stdin)
            for name, stream in (("stdout", self.stdout), ("stderr", self.stderr)):
                if stream is not None and not stream.closed:
                    os.set_blocking(stream.fileno(), False)
                    selector.register(stream.fileno(), selectors.EVENT_READ, name)
            if status is not None:
                selector.register(status, selectors.EVENT_READ, "status")
            # What was in the pipes at the program's end is its own; what daemons write later is not waited for.
            rest = _PIPE_BYTES
            while selector.get_map():
                ended = self.returncode is not None
                if ended and rest <= 0:
                    return
                left = 0.0 if ended else None if end is None else end - monotonic.seconds()
                if left is not None and left < 0:
                    raise TimeoutError
                ready = selector.select(None if left is None else min(left, _LONGEST_WAIT_SEC))
                if not ready and ended:
                    return
                for key, _ in ready:
                    if key.data == "status":
                        selector.unregister(key.fd)
                        self._note_exit()
                        if self.returncode is None:
                            selector.register(key.fd, selectors.EVENT_READ, "status")
                    elif key.data == "stdin":
                        try:
                            pending = pending[os.write(key.fd, pending[: 1 << 16]) :]
                        except BlockingIOError:  # the program can open that end, too (/proc/self/fd), and has filled it
                            rest -= _PAGE_BYTES if ended else 0
                            continue
                        except BrokenPipeError:
                            pending = pending[:0]
                        if not pending:
                            selector.unregister(key.fd)
                            assert self.stdin is not None
                            _close(self.stdin)
                    else:
                        try:
                            chunk = os.read(key.fd, 1 << 16)
                        except BlockingIOError:  # likewise, and has taken back what it wrote
                            rest -= _PAGE_BYTES if ended else 0
                            continue
                        found[key.data].extend(chunk)
                        if most_bytes is not None and sum(map(len, found.values())) > most_bytes:
                            raise OverflowError
                        if ended:
                            rest -= len(chunk)
                        if not chunk:
                            selector.unregister(key.fd)

    def _result(self, stream: IO[Any] | None, data: bytearray) -> Any:
        if stream is None:
            return None
        return data.decode(errors="replace").replace("\r\n", "\n") if self._text else bytes(data)

    def send_signal(self, number: int) -> None:
        """Send a signal to the program; nothing happens if it has ended."""
        if self.poll() is None:
            self._sandbox.signal(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL.

        A program that another process traces has not ended for :meth:`wait` before that one lets it go, or ends.
        """
        self.send_signal(signal.SIGKILL)

    def kill_group(self) -> None:
        """Send SIGKILL to the program and to what it started in its own process group."""
        if self.poll() is None:
            self._sandbox.signal(self.pid, signal.SIGKILL, group=True)

    def end(self) -> None:
        """Kill the program and its process group, and wait for its end.

        If it has not ended in :data:`_KILLED_SECONDS`, because another one in the crate traces it, the whole crate is
        killed.

        :raises SandboxError: the kernel does not end it.
        """
        self.kill_group()
        try:
            self.wait(_KILLED_SECONDS)
        except subprocess.TimeoutExpired:
            self._sandbox.kill()
            self.wait()

    def _close_streams(self) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                _close(stream)

    def close(self) -> None:
        """Close the streams; the program, if it still runs, ends with its crate."""
        self._close_streams()
        self._take_back()
        with self._noting:
            if self.returncode is None:
                self._end(Exit())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_streams()
        if kind is None:
            self.wait()


def _close(stream: IO[Any]) -> None:
    """Close a stream, also where nobody is there to read what is left in its buffer."""
    with contextlib.suppress(BrokenPipeError):
        stream.close()


def _descriptor(name: str, given: int | IO[Any]) -> int:
    """Return the descriptor that is given as one of a program's streams."""
    try:
        descriptor = given if isinstance(given, int) else given.fileno()
    except (AttributeError, io.UnsupportedOperation):
        raise TypeError(
            f"{name} must be PIPE, DEVNULL, a file with a descriptor, a descriptor or None, not {given!r}"
        ) from None
    try:
        os.fstat(descriptor)
    except OSError:
        raise ValueError(f"{name}: descriptor {descriptor} is not open") from None
    return descriptor


def end_after(timeout: float | None) -> float | None:
    """Return the time of :func:`monotonic.seconds` that is so many seconds ahead; None for no end."""
    if timeout is None:
        return None
    if not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout must be a number of seconds or None, not {timeout!r}")
    if math.isnan(timeout):
        raise ValueError("timeout must be a number of seconds or None, not NaN")
    return monotonic.seconds() + timeout


def parse_most(most: str | int | None, name: str = "max_output") -> int | None:
    """Return the bytes of a ``max_output``, or of another limit of that kind."""
    if most is None:
        return None
    try:
        return parse_size(most)
    except ValueError:
        raise ValueError(f"{name} must be a size such as '64m', or None for no limit, not {most!r}") from None


def verify_arguments(argv: Sequence[str | os.PathLike[str]]) -> tuple[str, ...]:
    if not isinstance(argv, Iterable) or isinstance(argv, (str, bytes)) or not argv:
        raise TypeError(f"argv must be a non-empty list of strings, not {argv!r}")
    arguments = tuple(os.fspath(each) if isinstance(each, os.PathLike) else each for each in argv)
    for argument in arguments:
        if not isinstance(argument, str):
            raise TypeError(f"argv must be a list of strings, and {argument!r} is none")
        if "\0" in argument:  # execve(2) takes strings that end with it
            raise ValueError(f"argv: a null character in {argument!r}")
        _verify_encodes("argv", argument)
    if not arguments[0]:
        raise ProgramNotFound("''", "the program's name is empty")
    return arguments


def _verify_encodes(name: str, text: str) -> None:
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:  # one half of a surrogate pair is no text
        raise ValueError(f"{name}: {text!r} can't be written as {error.encoding}: {error.reason}") from None


def verify_variables(env: Mapping[str, str | None]) -> None:
    if not isinstance(env, Mapping):
        raise TypeError(f"env must be a dictionary of variables, not {env!r}")
    for name, value in env.items():
        if not isinstance(name, str):
            raise TypeError(f"env: a variable's name must be a string, not {name!r}")
        if value is not None and not isinstance(value, str):
            raise TypeError(f"env: the value of {name} must be a string or None, not {value!r}")
        if not name or "=" in name or "\0" in name + (value or ""):
            raise ValueError(f"env: {name}={value!r} can't be a variable: empty, '=' in its name, or a null character")
        _verify_encodes("env", name + (value or ""))


def verify_path(name: str, path: str | os.PathLike[str]) -> str:
    """Return a path as text.

    :raises ValueError: the kernel would take a part of it for the whole, or it can't be written.
    """
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a string or a path of one, not {text!r}")
    if "\0" in text:
        raise ValueError(f"{name}: a null character in {text!r}")
    _verify_encodes(name, text)
    return text


def verify_user(user: str | int | None) -> None:
    if user is not None and (isinstance(user, bool) or not isinstance(user, (str, int))):
        raise TypeError(f"user must be a name or an id, not {user!r}")
    if isinstance(user, int) and not 0 <= user <= _LAST_ID:
        raise ValueError(f"user must be an id from 0 to {_LAST_ID}, not {user}")


def to_bytes(data: str | bytes | None) -> bytes:
    if data is not None and not isinstance(data, (str, bytes, bytearray, memoryview)):
        raise TypeError(f"input must be text or bytes, not {data!r}")
    try:
        return data.encode() if isinstance(data, str) else bytes(data or b"")
    except UnicodeEncodeError as error:
        raise ValueError(f"input: can't be written as {error.encoding}: {error.reason}") from None
