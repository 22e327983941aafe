"""Decoys for attempts to get out of a crate: files, a process, sockets, keys, a disk, a control group of our own."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pytest_crate.kernel import cgroup
from tests.conftest import temporary_prefix
from tests.escape.attempts import SECRET

NOBODY = 65534
_LIBC = ctypes.CDLL(None, use_errno=True)
_IPC_CREAT, _IPC_EXCL, _IPC_RMID = 0o1000, 0o2000, 0


class Decoys:
    """What attempts are aimed at, on the host; gone when the stack is closed.

    :ivar shared: what the host and the crate share on purpose: a directory that is mounted, writable.
    """

    def __init__(self, directory: Path, *, owner: int, stack: ExitStack) -> None:
        self.directory = directory
        self.home, self.project, self.shared = directory / "home", directory / "project", directory / "shared"
        self.token = f"pytest-crate-decoy-{os.getpid()}-{owner}"
        self._stack = stack
        self._owner = owner
        for path in (self.home, self.project, self.shared):
            path.mkdir()
        self._files()
        # Where crates show the host's files, and not of the project, which they show as it is on an image.
        outside = stack.enter_context(tempfile.TemporaryDirectory(prefix=temporary_prefix("escape"), dir="/var/lib"))
        os.chmod(outside, 0o755)
        process = stack.enter_context(_process(self.token)).pid
        self.common = {
            "token": self.token,
            "secret": str(self.home / "secret"),
            "handle": _handle(self.home / "secret").hex(),
            "shared": str(self.shared),
            "file": str(self.project / "file"),
            "program": str(self.project / "program"),
            "setuid": str(self.shared / "setuid"),
            "user": NOBODY - 1,
            "process": process,
            "init": 1,
            "abstract": stack.enter_context(_server(socket.AF_UNIX, f"\0{self.token}")),
            "port": int(stack.enter_context(_server(socket.AF_INET, ("127.0.0.1", 0)))),
            "socket": stack.enter_context(_server(socket.AF_UNIX, f"{outside}/socket")),
            "key": stack.enter_context(_shared_memory(0x0C4A0000 + os.getpid() % 0x10000 + owner * 7)),
            "cgroup": stack.enter_context(_cgroup(process)),
            "too_many": 40,
        }
        stack.enter_context(_posix_shared_memory(self.token))
        stack.enter_context(_message_queue(self.token))
        number, name = stack.enter_context(_disk(directory / "disk"))
        self.common |= {"disk": number, "disk_name": name, "node": str(self.project / "node")}
        for node in (self.project / "node", self.shared / "node"):
            os.mknod(node, stat.S_IFBLK | 0o666, os.makedev(*number))
            node.chmod(0o666)
        for path in (self.home, self.project, self.shared, self.project / "file", self.project / "program"):
            os.chown(path, owner, owner)

    def _files(self) -> None:
        (self.home / "secret").write_text(SECRET)
        (self.home / "secret").chmod(0o644)
        (self.project / "file").write_text("of the host")
        for name, source in ((self.project / "program", "sleep"), (self.shared / "setuid", "id")):
            shutil.copy(str(shutil.which(source)), name)
            name.chmod(0o755)
        (self.shared / "setuid").chmod(0o4755)
        self._program = (self.project / "program").read_bytes()

    def aim(self, kind: str, name: str, **changes: Any) -> Path:
        """Write the file that attempts read: where their decoys are, and which way they are made."""
        path = self.project / f"{name}.json"
        scratch = self.directory / "scratch" if kind == "control" else Path("/tmp/attempts")
        path.write_text(json.dumps(self.common | {"way": kind, "scratch": f"{scratch}-{name}"} | changes))
        return path

    def effects(self) -> set[str]:
        """Return the attempts whose effect is seen on the host, which must be none; all is as before afterwards."""
        found = set()
        file, program, daemon = self.project / "file", self.project / "program", self.shared / "daemon"
        if file.read_text() != "of the host" or file.stat().st_mode & 0o777 == 0o777:
            found.add("write_to_a_file_of_the_host")
            file.write_text("of the host")
            file.chmod(0o644)
        if program.read_bytes() != self._program:
            found.add("overwrite_a_program_that_runs")
            program.write_bytes(self._program)
        if daemon.exists():
            (self.shared / "over").touch()
            # Alive, it looks every 10 ms.
            with contextlib.suppress(TimeoutError):
                _wait_for(lambda: daemon.read_text() == "survived", seconds=0.5)
            if daemon.read_text() == "survived":
                found.add("leave_a_daemon")
            daemon.unlink()
            (self.shared / "over").unlink()
        return found


def _wait_for(condition: Any, *, seconds: float) -> None:
    waiting = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        waiting.wait(0.01)
    raise TimeoutError


def _handle(path: Path) -> bytes:
    """Return a struct file_handle (open_by_handle_at(2))."""
    buffer = ctypes.create_string_buffer(8 + 128)
    ctypes.c_uint.from_buffer(buffer).value = 128
    mount = ctypes.c_int()
    if _LIBC.name_to_handle_at(-100, os.fsencode(path), buffer, ctypes.byref(mount), 0):
        raise OSError(ctypes.get_errno(), "name_to_handle_at", str(path))
    return buffer.raw[: 8 + ctypes.c_uint.from_buffer(buffer).value]


@contextlib.contextmanager
def _process(token: str) -> Iterator[subprocess.Popen[bytes]]:
    # As long as these tests, or what has begun them, live.
    script = "import signal, sys; signal.signal(signal.SIGUSR1, lambda *_: None); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-S", "-c", script, token]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def _server(family: socket.AddressFamily, address: Any) -> Iterator[str]:
    """Serve one line; give the abstract name, the path or the port."""
    with socket.socket(family) as server:
        server.bind(address)
        server.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.sendall(b"hello from the host")

        thread = threading.Thread(target=serve)
        thread.start()
        if os.path.exists(str(address).replace("\0", "@")):
            os.chmod(address, 0o777)
        try:
            yield str(server.getsockname()[1]) if family == socket.AF_INET else str(address).lstrip("\0")
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextlib.contextmanager
def _shared_memory(key: int) -> Iterator[int]:
    number = _LIBC.shmget(key, 4096, _IPC_CREAT | _IPC_EXCL | 0o666)
    assert number >= 0
    try:
        yield key
    finally:
        _LIBC.shmctl(number, _IPC_RMID, None)


@contextlib.contextmanager
def _posix_shared_memory(token: str) -> Iterator[None]:
    path = Path("/dev/shm", token)
    path.write_text(SECRET)
    path.chmod(0o666)
    try:
        yield
    finally:
        path.unlink()


@contextlib.contextmanager
def _message_queue(token: str) -> Iterator[None]:
    name = f"/{token}".encode()
    # struct mq_attr: one message of 64 bytes. A user's are limited (RLIMIT_MSGQUEUE), and a killed run leaves its own.
    attributes = (ctypes.c_long * 8)(0, 1, 64)
    descriptor = _LIBC.mq_open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666, attributes)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), token)
    os.close(descriptor)
    try:
        yield
    finally:
        _LIBC.mq_unlink(name)


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[tuple[tuple[int, int], str]]:
    """Make a disk of a file, by a loop device of its own; give the device's number and name."""
    path.write_bytes(SECRET.encode().ljust(1 << 20, b"\0"))
    device = subprocess.check_output(["losetup", "--find", "--show", "--read-only", str(path)], text=True).strip()
    try:
        number = os.stat(device).st_rdev
        yield (os.major(number), os.minor(number)), os.path.basename(device)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@contextlib.contextmanager
def _cgroup(owner: int) -> Iterator[str]:
    """Make a control group that any user may enter and change; of the first hierarchy there is with ``pids``."""
    places = ("/sys/fs/cgroup/pids", "/sys/fs/cgroup")
    parent = next(Path(place) for place in places if Path(place, "cgroup.procs").exists())
    # By this name it is a live run's: another run that looks for leftovers leaves it alone.
    directory = parent / cgroup.run_name(owner)
    directory.mkdir()
    try:
        for name in ("cgroup.procs", "pids.max"):
            with contextlib.suppress(FileNotFoundError):
                (directory / name).chmod(0o666)
        yield str(directory)
    finally:
        with contextlib.suppress(TimeoutError):
            _wait_for(lambda: not (directory / "cgroup.procs").read_text(), seconds=5)
        directory.rmdir()
