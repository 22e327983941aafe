"""A crate that a test drives from outside: the object behind ``crate_sandbox``."""

from __future__ import annotations

import contextlib
import errno
import operator
import os
import stat
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import psutil

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import libc, status_flags
from pytest_crate.result import CrateResult, Exit, Limit
from pytest_crate.sandbox import child
from pytest_crate.sandbox.environment import program_environment
from pytest_crate.sandbox.program import (
    MAX_OUTPUT,
    TAIL_BYTES,
    CompletedRun,
    CratePopen,
    OutputTooLong,
    ProgramNotFound,
    end_after,
    parse_most,
    to_bytes,
    verify_arguments,
    verify_path,
    verify_user,
    verify_variables,
)
from pytest_crate.sandbox.programs import FULL
from pytest_crate.sandbox.sandbox import ENDED, NOTHING_YET, LauncherEnded, Sandbox
from pytest_crate.spec import CrateSpec, format_size
from pytest_crate.usage import Usage

_HEAD_BYTES = 256
# procfs takes as much memory as a read asks for, and refuses to where that is much (ip_forward: 4 MiB).
_CHUNK_BYTES = 1 << 18
_ORDER: tuple[Limit, ...] = ("memory", "pids", "timeout")

# A test's author is shown the test's line, not ours, where the mistake or the refusal is the test's (pytest's
# documentation, "Writing well integrated assertion helpers"); a fault of ours keeps its whole traceback.
__tracebackhide__ = operator.methodcaller(
    "errisinstance", (SandboxError, subprocess.SubprocessError, TypeError, ValueError)
)


class CrateSandbox:
    """A crate to run programs in, and to look into, from the host."""

    def __init__(self, sandbox: Sandbox, spec: CrateSpec, *, name: str) -> None:
        self.spec = spec
        self.name = name
        self._sandbox = sandbox
        self._programs: list[CratePopen] = []
        self._lent = status_flags.KeptOpen()
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
        arguments = verify_arguments(argv)
        if self._result is not None:
            raise SandboxError(f"run {arguments[0]}", detail="the crate is closed")
        env = {} if env is None else env
        verify_variables(env)
        variables = program_environment(self.spec, os.environ)
        for name, value in env.items():
            if value is None:
                variables.pop(name, None)
            else:
                variables[name] = value
        default = self.spec.workdir or ("/" if self.spec.image is not None else os.getcwd())
        verify_user(user)
        if user is None:
            # An image's root is looked up in its user database like any other user: it has a home there.
            user = self.spec.user or (None if self.spec.image is None else "0")
        program = child.Program(
            argv=arguments,
            env=variables,
            cwd=verify_path("cwd", default if cwd is None else cwd),
            user=None if user is None else str(user),
            terminal=terminal,
        )
        try:
            started = CratePopen(
                self._sandbox, program, stdin=stdin, stdout=stdout, stderr=stderr, text=text, lent=self._lent
            )
        except SandboxError as error:
            if error.detail == FULL:
                self._exceeded.add("pids")
            # Without the frames of the engine's, which asked the launcher.
            more = self._not_found(program, error) or self._not_executable(program, error)
            raise (more or error.with_traceback(None)) from error.__cause__
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

    def _not_executable(self, program: child.Program, error: SandboxError) -> SandboxError | None:
        """Return what makes a file no program, if that is why it could not be started: execve(2) says EACCES only."""
        if error.syscall != "execve" or error.errno != errno.EACCES:
            return None
        try:
            path = os.path.join(program.cwd, error.path)
            descriptor = libc.open_in_root("look at a program", self._sandbox.root, path, os.O_PATH)
        except SandboxError:
            return None
        mode = os.fstat(descriptor).st_mode
        os.close(descriptor)
        if stat.S_ISREG(mode) and mode & 0o111:
            return None
        detail = "it is a directory" if stat.S_ISDIR(mode) else "nobody may execute it: its mode has no x"
        return SandboxError(error.step, syscall=error.syscall, path=error.path, errno=error.errno, detail=detail)

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
        max_output: str | int | None = MAX_OUTPUT,
    ) -> CompletedRun:
        """Run a program in the crate to its end.

        Hitting a limit is a result: see :attr:`CompletedRun.exceeded`.

        :param input: sent to its standard input, which is empty otherwise.
        :param timeout: seconds after which it is killed; ``exceeded`` then has ``"timeout"``. If another process of
            the crate traces it, so that it can't be waited for (ptrace(2)), the whole crate is killed seconds later;
            likewise at ``max_output``.
        :param check: raise :class:`ProgramFailed` unless it ended with status 0 within its limits.
        :param text: ``stdout`` and ``stderr`` are UTF-8 text instead of bytes.
        :param max_output: the most that it may write to both of them together: a size such as ``"64m"``, or None for
            no limit. A program may be hostile, and what it writes is kept in pytest's memory.
        :raises SandboxError: it can't be started: no such program, directory or user in the crate.
        :raises OutputTooLong: it wrote more, and was killed.
        """
        # What is no number, or no text, shall start nothing.
        end_after(timeout)
        if timeout is not None and timeout <= 0:
            raise ValueError(f"timeout must be a number of seconds above 0 or None, not {timeout!r}")
        to_bytes(input)
        parse_most(max_output)
        before = self._sandbox.account()
        watched = self._sandbox.watch()
        pipe = subprocess.PIPE
        program = self.popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, env=env, cwd=cwd, user=user, text=text)
        late = False
        try:
            stdout, stderr = program.communicate(input, timeout, max_output=max_output)
        except subprocess.TimeoutExpired as expired:
            late = True
            program.end()
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
            self._programs.remove(program)  # there may be thousands
        if program.exit == Exit():
            # Nobody was there to say how it ended. A process that is being killed closes its files before it has ended.
            raise LauncherEnded("ask the launcher", detail=ENDED)
        after = self._sandbox.account()
        now = self._sandbox.watch()
        found = set(now.limits_since(watched)) | ({"timeout"} if late else set())
        exceeded = tuple(limit for limit in _ORDER if limit in found)
        self._exceeded.update(exceeded)
        self._exit = program.exit
        self._stderr = (self._stderr + to_bytes(stderr))[-TAIL_BYTES:]
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

        :raises SandboxError: the crate is closed.
        """
        if self._sandbox.root < 0:
            raise SandboxError("look into the crate", detail="the crate is closed")  # another process may have the pid
        return Path(f"/proc/{self._sandbox.init}/root")

    def _open(self, path: str | os.PathLike[str], flags: int) -> int:
        path = verify_path("path", path)
        if self._sandbox.root < 0:
            raise SandboxError("open a file in the crate", path=path, detail="the crate is closed")
        # Unlike open(2), openat2(2) wants a mode of 0 where it has no meaning.
        mode = 0o644 if flags & os.O_CREAT else 0
        step = "open a file in the crate"
        try:
            # A program may have put a pipe there, or the terminal that it holds the other end of. As its controlling
            # terminal that one would end pytest, where it leads a session without any (tty_ioctl(4), "hangup").
            flags |= os.O_NONBLOCK | os.O_NOCTTY
            descriptor = libc.open_in_root(step, self._sandbox.root, path, flags, mode)
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

    def read_bytes(self, path: str | os.PathLike[str], *, max_size: str | int | None = MAX_OUTPUT) -> bytes:
        """Return a file's contents. Symlinks are resolved inside the crate.

        :param max_size: the most that they may be, as a program may have made a file without end: a size such as
            ``"64m"``, or None for no limit.
        :raises SandboxError: it can't be read, or has more.
        """
        most_bytes = parse_most(max_size, "max_size")
        step = "read a file of the crate's"
        # A link may lead to one of procfs that refuses.
        with (
            open(self._open(path, os.O_RDONLY), "rb", buffering=0) as file,
            libc.os_step(step, "read", os.fspath(path)),
        ):
            if most_bytes is None:
                return file.read()
            if os.fstat(file.fileno()).st_size <= most_bytes:
                data = bytearray()
                # It may grow while it is read.
                while len(data) <= most_bytes:
                    chunk = file.read(min(_CHUNK_BYTES, most_bytes + 1 - len(data)))
                    if not chunk:
                        return bytes(data)
                    data += chunk
        detail = f"it has more than max_size={format_size(most_bytes)}"
        raise SandboxError(step, path=os.fspath(path), detail=detail)

    def read_text(
        self, path: str | os.PathLike[str], encoding: str = "utf-8", *, max_size: str | int | None = MAX_OUTPUT
    ) -> str:
        """Return a file's contents as text; see :meth:`read_bytes`."""
        return self.read_bytes(path, max_size=max_size).decode(encoding)

    def write_bytes(self, path: str | os.PathLike[str], data: bytes) -> None:
        """Make or replace a file's contents. Symlinks are resolved inside the crate.

        :raises SandboxError: it can't be written.
        """
        # Before there is nothing left of what it held.
        try:
            memoryview(data)
        except TypeError:
            raise TypeError(f"data must be bytes, not {type(data).__name__}: text is for write_text") from None
        descriptor = self._open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        # The rest is written when it is closed.
        with libc.os_step("write a file of the crate's", "write", os.fspath(path)), open(descriptor, "wb") as file:
            file.write(data)

    def write_text(self, path: str | os.PathLike[str], text: str, encoding: str = "utf-8") -> None:
        """Make or replace a file's contents with text; see :meth:`write_bytes`."""
        if not isinstance(text, str):
            raise TypeError(f"text must be a string, not {type(text).__name__}: bytes are for write_bytes")
        self.write_bytes(path, text.encode(encoding))

    # -- looking in ------------------------------------------------------------------------------

    @property
    def usage(self) -> Usage:
        """What the crate has used so far."""
        return self._result.usage if self._result is not None else self._sandbox.account()

    def processes(self) -> list[psutil.Process]:
        """Return the processes that run in the crate now, by their host pids, without its pid 1 (as ``docker top``)."""
        if self._sandbox.root < 0:  # closed, and every process has ended
            return []
        # Not by init's pid: when that has ended, another process may have it, and the host's would be found.
        namespace = f"pid:[{os.fstat(self._sandbox.entry.namespaces.pid).st_ino}]"
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError):  # ended meanwhile, or another user's
                if os.readlink(f"/proc/{process.pid}/ns/pid") == namespace and process.pid != self._sandbox.init:
                    found.append(process)
        return found

    # -- the end ---------------------------------------------------------------------------------

    def close(self) -> CrateResult:
        """Kill what runs, remove the crate and return what became of it; idempotent.

        :raises LauncherEnded: the crate had ended before, with its launcher, and nobody knows how its programs did; the
            next call returns what is known.
        """
        if self._result is None:
            self._result, lost = self._end()
            if lost:
                raise LauncherEnded("ask the launcher", detail=ENDED)
        return self._result

    def _end(self) -> tuple[CrateResult, bool]:
        """End the crate; return what became of it, and whether its launcher had ended before."""
        lost = False
        with contextlib.ExitStack() as ending:
            ending.callback(self._lent.close)
            ending.callback(self._close_programs)
            ending.callback(self._sandbox.close)
            try:
                watched = self._sandbox.watch()
                self._sandbox.verify_alive()
            except LauncherEnded:
                lost = True
            else:
                self._exceeded.update(watched.limits_since(NOTHING_YET))
        result = CrateResult(
            name=self.name,
            usage=self._sandbox.close(),
            exceeded=tuple(limit for limit in _ORDER if limit in self._exceeded),
            exit=self._exit,
        )
        return result, lost

    def _close_programs(self) -> None:
        for program in self._programs[:]:  # another thread may be in run()
            program.close()

    @property
    def stderr_tail(self) -> bytes:
        """The last that its programs, run to their end, wrote to standard error."""
        return self._stderr


def _joined(earlier: bytes | None, later: Any) -> Any:
    if isinstance(later, str):
        return (earlier or b"").decode(errors="replace") + later
    return (earlier or b"") + (later or b"")
