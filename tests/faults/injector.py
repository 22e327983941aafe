"""Failing calls: each of a crate's set-up is counted, and one of them fails with an errno of the test's choice.

What is recorded to be called by another process is counted when it is recorded, and fails there by a filter.

It is imported into an inner run's pytest, and by the launcher that this starts. It counts what goes through
``kernel/libc.py`` and ``namespaces.py``, and the calls of ``os``, ``socket`` and ``fcntl`` that may fail, by the
process that makes them (:data:`STAGES`). What fails is told in a file, which each process reads when its stage
begins: ``{"stage": ..., "number": ..., "errno": ...}``.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import fcntl
import functools
import inspect
import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pytest_crate.kernel import calls, capabilities, libc, namespaces, seccomp
from pytest_crate.sandbox import builder, child, launcher, making, sandbox, wire

# Not close(2), which has closed its descriptor even where it fails, nor what can't fail.
OS_CALLS = (
    "chdir chmod chown chroot dup dup2 execve fchdir fork fstat ftruncate getcwd kill killpg listdir lstat "
    "memfd_create mkdir open pidfd_open pipe pipe2 posix_spawn read readlink rmdir scandir set_inheritable "
    "setpgid setsid stat statvfs symlink unlink waitid waitpid write"
).split()

STAGES = {
    # pytest's process
    "launch": (sandbox.Engine, "_start"),
    "ask": (sandbox.Engine, "_create"),
    "fork": (sandbox.Sandbox, "fork"),
    "spawn": (sandbox.Sandbox, "spawn"),
    # the body, forked from it
    "be born": (namespaces, "_bear_sibling"),
    "enter": (child, "enter"),
    "confine": (child, "confine"),
    # the launcher
    "start": (launcher, "_begin"),
    "create": (launcher.Launcher, "_create"),
    "furnish": (launcher.Launcher, "_go_on"),
    "finish": (making.Maker, "_finish"),
    "start the program": (launcher.Launcher, "_spawn"),
    "remove": (launcher.Launcher, "_remove_now"),
    # forked from it
    "init": (making, "become_init"),
    "build": (builder, "_build"),
    "program": (child, "become_program"),
}
"""What is counted, each from one: a function, until it returns, and what it calls."""


LOOKING = "walk"
"""The stage of pytest's own that has those of the engine in it."""


class Injector:
    """Counts the calls of the stage that this process is in."""

    def __init__(self, plan: Path, log: int) -> None:
        self.plan = plan
        self.log = log
        self.stage = ""
        self.count = 0
        self.pid = 0
        self.fault: dict[str, Any] = {}
        self.busy = False

    @contextlib.contextmanager
    def at(self, stage: str) -> Iterator[None]:
        """Count the calls of a stage."""
        outer = self.stage, self.count, self.pid, self.fault
        # Read by the outer stage already: a crate has taken the plan's directory from view.
        # The builder is in no crate when it begins, and was forked in the midst of another stage.
        fault = self.fault if self.stage and stage != "build" else json.loads(_read(self.plan))
        self.stage, self.count, self.pid, self.fault = stage, 0, os.getpid(), fault
        try:
            yield
        finally:
            self.stage, self.count, self.pid, self.fault = outer

    def refuses(self, name: str, what: str, *, retried: bool = False) -> int:
        """Return the errno with which a call is to fail, or 0.

        :param retried: Python makes it again if a signal interrupts it (PEP 475), and never tells (EINTR).
        """
        # What a process has forked counts its own, in a stage of its own.
        if not self.stage or self.busy or self.pid != os.getpid():
            return 0
        # Planning a root looks at the host, whose other programs go on: how often varies.
        if self.stage == LOOKING and name in ("stat", "lstat", "readlink", "scandir", "listdir", "open"):
            return 0
        self.busy = True
        try:
            self.count += 1
            hit = self.fault.get("stage") == self.stage and self.fault.get("number") == self.count
            line = {"stage": self.stage, "number": self.count, "call": name, "what": what, "hit": hit}
            line |= {"retried": retried, "test": self.fault.get("test")}
            _write(self.log, f"{json.dumps(line)}\n".encode())
            return int(self.fault["errno"]) if hit else 0
        finally:
            self.busy = False


_open, _write = builtins.open, os.write


def _read(path: Path) -> str:
    try:
        with _open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return "{}"


def _failing(injector: Injector, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **keys: Any) -> Any:
        number = injector.refuses(name, str(args[0])[:200] if args else "", retried=True)
        if number:
            raise OSError(number, os.strerror(number), *(args[:1] if args and isinstance(args[0], str) else ()))
        return function(*args, **keys)

    return call


def _filter(call: int, number: int, length: int | None) -> bytes:
    """Return a filter by which a system call fails with an errno (linux/filter.h, linux/seccomp.h).

    :param length: only where that is its third argument.
    """
    load, jump_if_equal, give, refuse, allow = 0x20, 0x15, 0x06, 0x50000 | number, 0x7FFF0000
    third = ((load, 0, 0, 32), (jump_if_equal, 0, 1, length)) if length is not None else ()
    skipped = 1 + len(third)
    instructions = (
        (load, 0, 0, 0),
        (jump_if_equal, 0, skipped, call),
        *third,
        (give, 0, 0, refuse),
        (give, 0, 0, allow),
    )
    return b"".join(struct.pack("<HBBI", *each) for each in instructions)


def _fail_recorded(injector: Injector) -> None:
    """Have the calls of tables counted, each as it is recorded, and the one that is hit fail."""
    add = calls.Table.add

    def add_or_fail(table: calls.Table, step: str, name: str, /, *args: libc.Argument, **keys: Any) -> libc.Result:
        # An init that has said its last word waits for its end, and for nothing else.
        waits = name == "ppoll" and args[0] is None
        number = 0 if waits else injector.refuses(name, keys.get("path", ""), retried=True)
        if number:
            # It is the last one of its process, which any filter may be put on by then.
            # What it writes is of another length than what it has to tell of that.
            length = args[2] if name == "write" else None
            refused = _filter(libc.NUMBERS[name], number, length if isinstance(length, int) else None)
            capabilities.no_new_privs(call=functools.partial(add, table))
            seccomp.install(refused, call=functools.partial(add, table))
        return add(table, step, name, *args, **keys)

    calls.Table.add = add_or_fail  # type: ignore[method-assign]


class _Python:
    """Stands for ``namespaces._PYTHON``, through which clone(2) is called."""

    def __init__(self, injector: Injector, real: Any) -> None:
        self._injector = injector
        self._real = real

    def __getattr__(self, name: str) -> Any:
        if name != "syscall":
            return getattr(self._real, name)
        number = self._injector.refuses("clone", "")
        if not number:
            return self._real.syscall

        def fail(*_: object) -> int:
            ctypes.set_errno(number)
            return -1

        return fail


def install(plan: Path, log: Path, *, by_calls: bool) -> Injector:
    """Have the calls of this process, and of what it forks, counted.

    :param by_calls: the program that carries tables out is there, where the package was built with it.
    """
    if not by_calls:
        calls.works = lambda: False
    # Kept by whoever closes a range, and gone with an exec.
    kept = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    closerange = os.closerange

    def close_but_one(low: int, high: int) -> None:
        closerange(low, min(high, kept))
        closerange(max(low, kept + 1), high)

    os.closerange = close_but_one
    injector = Injector(plan, kept)
    for name in OS_CALLS:
        setattr(os, name, _failing(injector, name, getattr(os, name)))
    builtins.open = _failing(injector, "open", builtins.open)
    fcntl.ioctl = _failing(injector, "ioctl", fcntl.ioctl)
    socket.sethostname = _failing(injector, "sethostname", socket.sethostname)
    socket.socketpair = _failing(injector, "socketpair", socket.socketpair)
    wire.send = _failing(injector, "sendmsg", wire.send)
    wire.receive = _failing(injector, "recvmsg", wire.receive)
    namespaces._PYTHON = _Python(injector, namespaces._PYTHON)  # type: ignore[assignment] # noqa: SLF001
    checked = libc._checked  # noqa: SLF001

    def fail_once(step: str, name: str, path: str, function: Callable[[], int]) -> int:
        pending = [injector.refuses(name, path)]

        def call() -> int:
            number = pending.pop() if pending else 0
            if not number:
                return function()
            ctypes.set_errno(number)
            return -1

        return checked(step, name, path, call)

    libc._checked = fail_once  # noqa: SLF001
    _fail_recorded(injector)
    for stage, (place, name) in STAGES.items():
        setattr(place, name, _counted(injector, stage, inspect.getattr_static(place, name)))
    return injector


def _counted(injector: Injector, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def work(*args: Any, **keys: Any) -> Any:
        with injector.at(stage):
            return function(*args, **keys)

    return work


def install_everywhere(plan: Path, log: Path, *, by_calls: bool) -> Injector:
    """Have the calls of pytest's process counted, and of the launcher that it will start."""
    launch = sandbox._LAUNCH  # noqa: SLF001
    assert launch.endswith("; main()")  # where the launcher begins
    added = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})"
    added += "; from tests.faults import injector; from pathlib import Path"
    added += f"; injector.install(Path({str(plan)!r}), Path({str(log)!r}), by_calls={by_calls})"
    sandbox._LAUNCH = launch.removesuffix("; main()") + f"; {added}; main()"  # noqa: SLF001
    injector = install(plan, log, by_calls=by_calls)
    from pytest_crate.plugin.walk import Walk  # noqa: PLC0415 - not in the launcher, which knows no pytest

    # Without the wait for the child's report, in which pytest is at work.
    for stage, name in ((LOOKING, "_enter_crate"), ("", "_await")):
        setattr(Walk, name, _counted(injector, stage, getattr(Walk, name)))
    return injector
