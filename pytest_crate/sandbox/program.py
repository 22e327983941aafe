"""Running programs in a crate: the object behind ``crate_sandbox``, with the habits of :mod:`subprocess`."""

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
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import psutil

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import libc, monotonic
from pytest_crate.result import CrateResult, Exit, Limit
from pytest_crate.sandbox import child, wire
from pytest_crate.sandbox.environment import program_environment
from pytest_crate.sandbox.sandbox import NOTHING_YET, Sandbox
from pytest_crate.spec import CrateSpec, format_size, parse_size
from pytest_crate.usage import Usage

_PIPE_BYTES = 2 << 20  # more than two pipes hold (pipe(7): 64 KiB each, or fs.pipe-max-size, 1 MiB)
_PAGE_BYTES = 4 << 10
_TAIL_BYTES = 16 << 10
_MAX_OUTPUT = "32m"
_HEAD_BYTES = 256
# The longest of one wait: poll(2) takes an int of milliseconds. Who waits longer waits again.
_LONGEST_WAIT_SEC = 86_400.0
_ORDER: tuple[Limit, ...] = ("memory", "pids", "timeout")


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
    ) -> None:
        self.args = program.argv
        self.returncode: int | None = None
        self.exit = Exit()
        self.stdin: IO[Any] | None = None
        self.stdout: IO[Any] | None = None
        self.stderr: IO[Any] | None = None
        self._sandbox = sandbox
        self._frames = wire.FrameReader()
        self._text = text
        theirs: list[int] = []
        try:
            for name, number, given in (("stdin", 0, stdin), ("stdout", 1, stdout), ("stderr", 2, stderr)):
                theirs.append(self._connect(name, number, given, theirs))
            if program.terminal and not os.isatty(theirs[0]):
                raise ValueError("terminal=True wants a terminal as stdin, and what it got is none")
            self.pid, self._status = sandbox.spawn(program, (theirs[0], theirs[1], theirs[2]))
        except BaseException:
            self._close_streams()
            raise
        finally:
            for descriptor in theirs:
                os.close(descriptor)

    def _connect(self, name: str, number: int, given: int | IO[Any] | None, theirs: Sequence[int]) -> int:
        """Return the program's end of one of its three streams; keep ours, if there is one."""
        if given is None:
            return os.dup(number)
        if given == subprocess.DEVNULL:
            return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        if given == subprocess.STDOUT:
            return os.dup(theirs[1])
        if given != subprocess.PIPE:
            return os.dup(given if isinstance(given, int) else given.fileno())
        reading, writing = os.pipe2(os.O_CLOEXEC)
        ours, other = (writing, reading) if name == "stdin" else (reading, writing)
        stream: IO[Any] = open(ours, "wb" if name == "stdin" else "rb", buffering=-1)  # noqa: SIM115
        if self._text:
            stream = io.TextIOWrapper(stream, write_through=name == "stdin")
        setattr(self, name, stream)
        return other

    def _end(self, exit_: Exit) -> None:
        self.exit = exit_
        self.returncode = exit_.returncode if exit_.returncode is not None else -signal.SIGKILL
        os.close(self._status)

    def _note_exit(self) -> None:
        """Read the status pipe, which is readable."""
        data = os.read(self._status, 1 << 16)
        if not data:
            self._end(Exit())  # the launcher is gone, and the crate with it
            return
        for message in self._frames.feed(data):
            self._end(Exit(**message["exit"]))

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
        """
        end = _deadline(timeout)
        while self.returncode is None:
            left = None if end is None else min(max(0.0, end - monotonic.seconds()), _LONGEST_WAIT_SEC)
            with selectors.DefaultSelector() as selector:
                selector.register(self._status, selectors.EVENT_READ)
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
        """
        most_bytes = _most_bytes(max_output)
        found = {name: bytearray() for name in ("stdout", "stderr")}
        try:
            self._exchange(_to_bytes(input), found, _deadline(timeout), most_bytes)
        except OverflowError:
            self.kill_group()
            self._close_streams()
            self.wait()
            tails = (bytes(found[name][-_TAIL_BYTES:]) for name in ("stdout", "stderr"))
            raise OutputTooLong(self.args[0], most_bytes or 0, *tails) from None
        except TimeoutError:
            raise subprocess.TimeoutExpired(
                list(self.args), timeout or 0.0, bytes(found["stdout"]), bytes(found["stderr"])
            ) from None
        self._close_streams()
        return self._result(self.stdout, found["stdout"]), self._result(self.stderr, found["stderr"])

    def _exchange(self, data: bytes, found: Mapping[str, bytearray], end: float | None, most_bytes: int | None) -> None:
        with selectors.DefaultSelector() as selector:
            pending = memoryview(data)
            if self.stdin is not None and not self.stdin.closed:
                self.stdin.flush()
                if pending:
                    os.set_blocking(self.stdin.fileno(), False)
                    selector.register(self.stdin.fileno(), selectors.EVENT_WRITE, "stdin")
                else:
                    self.stdin.close()
            for name, stream in (("stdout", self.stdout), ("stderr", self.stderr)):
                if stream is not None and not stream.closed:
                    os.set_blocking(stream.fileno(), False)
                    selector.register(stream.fileno(), selectors.EVENT_READ, name)
            if self.returncode is None:
                selector.register(self._status, selectors.EVENT_READ, "status")
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
                            self.stdin.close()
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
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def kill_group(self) -> None:
        """Send SIGKILL to the program and to what it started in its own process group."""
        if self.poll() is None:
            self._sandbox.signal(self.pid, signal.SIGKILL, group=True)

    def _close_streams(self) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def close(self) -> None:
        """Close the streams; the program, if it still runs, ends with its crate."""
        self._close_streams()
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


def _deadline(timeout: float | None) -> float | None:
    """Return the time of :func:`monotonic.seconds` that is so many seconds ahead; None for no end."""
    if timeout is None:
        return None
    if not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout must be a number of seconds or None, not {timeout!r}")
    if math.isnan(timeout):
        raise ValueError("timeout must be a number of seconds or None, not NaN")
    return monotonic.seconds() + timeout


def _most_bytes(most: str | int | None, name: str = "max_output") -> int | None:
    """Return the bytes of a ``max_output``, or of another limit of that kind."""
    if most is None:
        return None
    try:
        return parse_size(most)
    except ValueError:
        raise ValueError(f"{name} must be a size such as '64m', or None for no limit, not {most!r}") from None


def _verify_arguments(argv: Sequence[str | os.PathLike[str]]) -> tuple[str, ...]:
    if isinstance(argv, (str, bytes)) or not argv:
        raise TypeError(f"argv must be a non-empty list of strings, not {argv!r}")
    arguments = tuple(os.fspath(argument) for argument in argv)
    for argument in arguments:
        if not isinstance(argument, str):
            raise TypeError(f"argv must be a list of strings, and {argument!r} is none")
        if "\0" in argument:  # execve(2) takes strings that end with it
            raise ValueError(f"argv: a null character in {argument!r}")
    if not arguments[0]:
        raise ProgramNotFound("''", "the program's name is empty")
    return arguments


def _verify_variables(env: Mapping[str, str | None]) -> None:
    for name, value in env.items():
        if not isinstance(name, str):
            raise TypeError(f"env: a variable's name must be a string, not {name!r}")
        if value is not None and not isinstance(value, str):
            raise TypeError(f"env: the value of {name} must be a string or None, not {value!r}")
        if not name or "=" in name or "\0" in name + (value or ""):
            raise ValueError(f"env: {name}={value!r} can't be a variable: empty, '=' in its name, or a null character")


def _to_bytes(data: str | bytes | None) -> bytes:
    if data is not None and not isinstance(data, (str, bytes, bytearray, memoryview)):
        raise TypeError(f"input must be text or bytes, not {data!r}")
    return data.encode() if isinstance(data, str) else bytes(data or b"")


class CrateSandbox:
    """A crate to run programs in, and to look into, from the host."""

    def __init__(self, sandbox: Sandbox, spec: CrateSpec, *, name: str) -> None:
        self.spec = spec
        self.name = name
        self._sandbox = sandbox
        self._programs: list[CratePopen] = []
        self._exceeded: set[Limit] = set()
        self._stderr = b""
        self._exit = Exit()
        self._result: CrateResult | None = None

    # -- programs --------------------------------------------------------------------------------

    def popen(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        stdin: int | IO[Any] | None = None,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
        env: Mapping[str, str | None] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        user: str | int | None = None,
        text: bool = True,
        terminal: bool = False,
    ) -> CratePopen:
        """Start a program in the crate and return at once.

        :param argv: the program, looked for in the crate's PATH if it has no slash, and its arguments.
        :param stdin: as in :class:`subprocess.Popen`: None (pytest's own), ``PIPE``, ``DEVNULL``, a file; likewise
            ``stdout`` and ``stderr``, the latter ``STDOUT`` as well.
        :param env: variables on top of the crate's; a value of None removes the variable.
        :param cwd: working directory in the crate; by default the spec's ``workdir``, else ``/`` on an image and the
            current directory on the host's root.
        :param user: user id or name, ``user:group``; by default the spec's ``user``, else root (or, rootless, you).
        :param terminal: ``stdin`` is a terminal, to become the program's controlling one: see
            :func:`pytest_crate.sandbox.terminal.open_terminal`.
        :raises SandboxError: it can't be started: no such program, directory or user in the crate.
        :raises ValueError: ``stdin`` is to be a terminal, and is none.
        """
        arguments = _verify_arguments(argv)
        if self._result is not None:
            raise SandboxError(f"run {arguments[0]}", detail="the crate is closed")
        _verify_variables(env or {})
        variables = program_environment(self.spec, os.environ)
        for name, value in (env or {}).items():
            if value is None:
                variables.pop(name, None)
            else:
                variables[name] = value
        default = self.spec.workdir or ("/" if self.spec.image is not None else os.getcwd())
        if user is None:
            # An image's root is looked up in its user database like any other user: it has a home there.
            user = self.spec.user or (None if self.spec.image is None else "0")
        program = child.Program(
            argv=arguments,
            env=variables,
            cwd=os.fspath(cwd) if cwd is not None else default,
            user=None if user is None else str(user),
            terminal=terminal,
        )
        try:
            started = CratePopen(self._sandbox, program, stdin=stdin, stdout=stdout, stderr=stderr, text=text)
        except SandboxError as error:
            # Without the frames of the engine's, which asked the launcher.
            raise (self._not_found(program, error) or error.with_traceback(None)) from error.__cause__
        self._programs.append(started)
        return started

    def _not_found(self, program: child.Program, error: SandboxError) -> ProgramNotFound | None:
        """Return what is missing, if that is why a program could not be started.

        execve(2) says ENOENT both for a program that isn't there and for one whose interpreter isn't.
        """
        if error.syscall != "execve" or error.errno not in (errno.ENOENT, errno.ENOTDIR):
            return None
        argument = program.argv[0]
        directories = [""] if "/" in argument else os.get_exec_path(dict(program.env))
        for directory in directories:
            head = self._head(os.path.join(program.cwd, directory, argument))
            if head is None:
                continue
            if head.startswith(b"#!"):
                interpreter = b" ".join(head[2:].split(maxsplit=1)[:1])
                needed = f"the interpreter {interpreter.decode(errors='replace')!r}"
            else:
                needed = "the dynamic linker"
            return ProgramNotFound(argument, f"is there, but {needed} that it needs is not found {self._where}")
        if "/" in argument:
            return ProgramNotFound(argument, f"no such file {self._where}")
        return ProgramNotFound(argument, f"not found in the crate's PATH ({self._root_in_words})")

    @property
    def _where(self) -> str:
        return f"in the crate ({self._root_in_words})"

    @property
    def _root_in_words(self) -> str:
        return "the host's root" if self.spec.image is None else f"image {self.spec.image!r}"

    def _head(self, path: str) -> bytes | None:
        """Return the beginning of a file that may be executed; None if there is none."""
        try:
            descriptor = self._open(path, os.O_RDONLY | os.O_NONBLOCK)
        except SandboxError:
            return None
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            return file.read(_HEAD_BYTES) if stat.S_ISREG(status.st_mode) and status.st_mode & 0o111 else None

    def run(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        input: str | bytes | None = None,  # noqa: A002 - as in subprocess.run
        env: Mapping[str, str | None] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        user: str | int | None = None,
        timeout: float | None = None,
        check: bool = False,
        text: bool = True,
        max_output: str | int | None = _MAX_OUTPUT,
    ) -> CompletedRun:
        """Run a program in the crate to its end.

        Hitting a limit is a result: see :attr:`CompletedRun.exceeded`.

        :param input: sent to its standard input, which is empty otherwise.
        :param timeout: seconds after which it is killed; ``exceeded`` then has ``"timeout"``.
        :param check: raise :class:`ProgramFailed` unless it ended with status 0 within its limits.
        :param text: ``stdout`` and ``stderr`` are UTF-8 text instead of bytes.
        :param max_output: the most that it may write to both of them together: a size such as ``"64m"``, or None for
            no limit. A program may be hostile, and what it writes is kept in pytest's memory.
        :raises SandboxError: it can't be started: no such program, directory or user in the crate.
        :raises OutputTooLong: it wrote more, and was killed.
        """
        # What is no number, or no text, shall start nothing.
        _deadline(timeout)
        if timeout is not None and timeout <= 0:
            raise ValueError(f"timeout must be a number of seconds above 0 or None, not {timeout!r}")
        _to_bytes(input)
        _most_bytes(max_output)
        before = self._sandbox.account()
        watched = self._sandbox.watch()
        pipe = subprocess.PIPE
        program = self.popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, env=env, cwd=cwd, user=user, text=text)
        late = False
        try:
            stdout, stderr = program.communicate(input, timeout, max_output=max_output)
        except subprocess.TimeoutExpired as expired:
            late = True
            program.kill_group()
            stdout, stderr = program.communicate(max_output=max_output)
            stdout, stderr = (
                _joined(earlier, later) for earlier, later in ((expired.stdout, stdout), (expired.stderr, stderr))
            )
        except OutputTooLong as error:
            self._exceeded.update(self._sandbox.watch().limits_since(watched))
            self._exit, self._stderr = program.exit, error.stderr
            raise
        finally:
            program.close()
        if program.exit == Exit():
            self._sandbox.verify_alive()  # nobody was there to say how it ended
        after = self._sandbox.account()
        now = self._sandbox.watch()
        found = set(now.limits_since(watched)) | ({"timeout"} if late else set())
        exceeded = tuple(limit for limit in _ORDER if limit in found)
        self._exceeded.update(exceeded)
        self._exit = program.exit
        self._stderr = (self._stderr + _to_bytes(stderr))[-_TAIL_BYTES:]
        assert program.returncode is not None
        done = CompletedRun(
            args=program.args,
            returncode=program.returncode,
            stdout=stdout,
            stderr=stderr,
            usage=after.since(before),
            exceeded=exceeded,
        )
        if check:
            done.check_returncode()
        return done

    # -- files -----------------------------------------------------------------------------------

    @property
    def root(self) -> Path:
        """The crate's root directory, as a path on the host.

        The host resolves an absolute symlink below it against its own root: use the ``read_*`` and ``write_*`` methods
        where programs in the crate may have made one.
        """
        return Path(f"/proc/{self._sandbox.init}/root")

    def _open(self, path: str | os.PathLike[str], flags: int) -> int:
        if self._sandbox.root < 0:
            raise SandboxError("open a file in the crate", path=os.fspath(path), detail="the crate is closed")
        # Unlike open(2), openat2(2) wants a mode of 0 where it has no meaning.
        mode = 0o644 if flags & os.O_CREAT else 0
        step = "open a file in the crate"
        try:
            descriptor = libc.open_in_root(step, self._sandbox.root, os.fspath(path), flags | os.O_NONBLOCK, mode)
        except SandboxError as error:
            raise error.with_traceback(None) from None
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            os.close(descriptor)
            # A program may have made a pipe, to wait on for ever, or a link to a device without end.
            if stat.S_ISDIR(mode):
                raise SandboxError(step, path=os.fspath(path), errno=errno.EISDIR)
            raise SandboxError(step, path=os.fspath(path), detail="it is no regular file")
        return descriptor

    def read_bytes(self, path: str | os.PathLike[str], *, max_size: str | int | None = _MAX_OUTPUT) -> bytes:
        """Return a file's contents. Symlinks are resolved inside the crate.

        :param max_size: the most that they may be, as a program may have made a file without end: a size such as
            ``"64m"``, or None for no limit.
        :raises SandboxError: it can't be read, or has more.
        """
        most_bytes = _most_bytes(max_size, "max_size")
        with open(self._open(path, os.O_RDONLY), "rb") as file:
            if most_bytes is None:
                return file.read()
            # It may grow while it is read.
            if os.fstat(file.fileno()).st_size <= most_bytes and len(data := file.read(most_bytes + 1)) <= most_bytes:
                return data
        detail = f"it has more than max_size={format_size(most_bytes)}"
        raise SandboxError("read a file of the crate's", path=os.fspath(path), detail=detail)

    def read_text(
        self, path: str | os.PathLike[str], encoding: str = "utf-8", *, max_size: str | int | None = _MAX_OUTPUT
    ) -> str:
        """Return a file's contents as text; see :meth:`read_bytes`."""
        return self.read_bytes(path, max_size=max_size).decode(encoding)

    def write_bytes(self, path: str | os.PathLike[str], data: bytes) -> None:
        """Make or replace a file's contents. Symlinks are resolved inside the crate.

        :raises SandboxError: it can't be written.
        """
        with open(self._open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
            file.write(data)

    def write_text(self, path: str | os.PathLike[str], text: str, encoding: str = "utf-8") -> None:
        """Make or replace a file's contents with text; see :meth:`write_bytes`."""
        self.write_bytes(path, text.encode(encoding))

    # -- looking in ------------------------------------------------------------------------------

    @property
    def usage(self) -> Usage:
        """What the crate has used so far."""
        return self._result.usage if self._result is not None else self._sandbox.account()

    def processes(self) -> list[psutil.Process]:
        """Return the processes that run in the crate now, by their host pids, without its pid 1 (as ``docker top``)."""
        try:
            namespace = os.readlink(f"/proc/{self._sandbox.init}/ns/pid")
        except OSError:  # ended, and every process with it
            return []
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError):  # ended meanwhile, or another user's
                if os.readlink(f"/proc/{process.pid}/ns/pid") == namespace and process.pid != self._sandbox.init:
                    found.append(process)
        return found

    # -- the end ---------------------------------------------------------------------------------

    def close(self) -> CrateResult:
        """Kill what runs, remove the crate and return what became of it; idempotent."""
        if self._result is None:
            watched = self._sandbox.watch()
            self._exceeded.update(watched.limits_since(NOTHING_YET))
            usage = self._sandbox.close()
            for program in self._programs:
                program.close()
            self._result = CrateResult(
                name=self.name,
                usage=usage,
                exceeded=tuple(limit for limit in _ORDER if limit in self._exceeded),
                exit=self._exit,
            )
        return self._result

    @property
    def stderr_tail(self) -> bytes:
        """The last that its programs, run to their end, wrote to standard error."""
        return self._stderr


def _joined(earlier: bytes | None, later: Any) -> Any:
    if isinstance(later, str):
        return (earlier or b"").decode(errors="replace") + later
    return (earlier or b"") + (later or b"")
