"""The filter in the kernel: each refused call beside the same call made without the filter."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import pty
import signal
import socket
import subprocess
import sys
import termios
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_crate.errors import SandboxError
from pytest_crate.kernel.capabilities import no_new_privs, read_capabilities
from pytest_crate.kernel.seccomp import REFUSALS, Refusal, build_filter, install

# A fork with threads about, as in a worker of pytest-xdist, warns since Python 3.12; the children here are simple.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

MACHINE = platform.machine()
if MACHINE not in ("x86_64", "aarch64"):
    pytest.skip(f"there is no filter for {MACHINE}", allow_module_level=True)

LIBC = ctypes.CDLL(None, use_errno=True)
NUMBERS = {refusal.name: refusal.numbers[MACHINE] for refusal in REFUSALS if MACHINE in refusal.numbers}
CLONE_FS = 0x200
CLONE_NEWNS = 0x20000
CLONE_NEWUSER = 0x10000000
UPPER_BIT = 1 << 32
AF_ALG, AF_VSOCK = 38, 40


def in_child(work: Callable[[], object]) -> Any:
    """Return what the work returns in a forked child, as JSON brings it; fail with its traceback."""
    receiving, sending = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = {"value": work()}
        except Exception:  # noqa: BLE001  (whatever it is, the parent shall show it)
            answer = {"error": traceback.format_exc()}
        os.write(sending, json.dumps(answer).encode())
        os._exit(0)
    os.close(sending)
    with open(receiving, "rb") as file:
        received = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert received, f"the child ended without an answer: {status}"
    answer = json.loads(received)
    assert "value" in answer, answer["error"]
    return answer["value"]


def under_filter(work: Callable[[], object]) -> Any:
    """Return what the work returns in a forked child under the default filter."""

    def confined() -> object:
        no_new_privs()
        install(build_filter(MACHINE))
        return work()

    return in_child(confined)


def call(name: str, *arguments: int) -> int:
    """Make a system call, and return its errno, or 0 for success."""
    padded = [ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0, 0, 0)[:6]]
    LIBC.syscall.restype = ctypes.c_long
    return 0 if LIBC.syscall(ctypes.c_long(NUMBERS[name]), *padded) != -1 else ctypes.get_errno()


UNCONDITIONAL = [refusal for refusal in REFUSALS if refusal.condition is None and MACHINE in refusal.numbers]


def call_all() -> dict[str, int]:
    """Make every call that is refused whatever its arguments, with arguments that no call accepts."""
    os.setsid()  # vhangup(2) takes no arguments: without a terminal it has no effect
    return {refusal.name: call(refusal.name, *[2**64 - 1] * 6) for refusal in UNCONDITIONAL}


@pytest.fixture(scope="module")
def without_filter() -> dict[str, int]:
    """What the kernel itself answers to each call."""
    answers: dict[str, int] = in_child(call_all)
    return answers


@pytest.fixture(scope="module")
def with_filter() -> dict[str, int]:
    """What the same calls get under the filter."""
    answers: dict[str, int] = under_filter(call_all)
    return answers


@pytest.mark.parametrize("refusal", UNCONDITIONAL, ids=lambda refusal: str(refusal.name))
def test_refused_call(refusal: Refusal, without_filter: dict[str, int], with_filter: dict[str, int]) -> None:
    """The kernel answers the call in its own way, and under the filter it is refused with the table's errno."""
    if without_filter[refusal.name] == refusal.errno:
        pytest.skip(f"this kernel, or a filter around us, says {errno.errorcode[refusal.errno]} by itself")
    assert with_filter[refusal.name] == refusal.errno


# Calls that reach the kernel and fail there, each beside one that the filter refuses.
CONDITIONAL = {
    "unshare of a user namespace": ("unshare", (CLONE_NEWUSER,), 0, errno.EPERM),
    "unshare of directories": ("unshare", (CLONE_FS,), 0, 0),
    # The kernel refuses this pair of flags after the filter has seen them: no process is made.
    "clone with a mount namespace": ("clone", (CLONE_NEWNS | CLONE_FS,), errno.EINVAL, errno.EPERM),
    "the same, disguised": ("clone", (CLONE_NEWNS | CLONE_FS | UPPER_BIT,), errno.EINVAL, errno.EPERM),
    "TIOCSTI": ("ioctl", (2**64 - 1, termios.TIOCSTI), errno.EBADF, errno.EPERM),
    "TIOCSTI, disguised": ("ioctl", (2**64 - 1, termios.TIOCSTI | UPPER_BIT), errno.EBADF, errno.EPERM),
    "TIOCLINUX": ("ioctl", (2**64 - 1, termios.TIOCLINUX), errno.EBADF, errno.EPERM),
    "another request": ("ioctl", (2**64 - 1, termios.TIOCGWINSZ), errno.EBADF, errno.EBADF),
    "AF_UNIX": ("socket", (socket.AF_UNIX, socket.SOCK_STREAM), 0, 0),
    "AF_NETLINK": ("socket", (socket.AF_NETLINK, socket.SOCK_RAW), 0, 0),
    "NETLINK_CONNECTOR": ("socket", (socket.AF_NETLINK, socket.SOCK_RAW, 11), 0, errno.EPROTONOSUPPORT),
    "NETLINK_CONNECTOR, disguised": (
        "socket",
        (socket.AF_NETLINK, socket.SOCK_RAW, 11 | UPPER_BIT),
        0,
        errno.EPROTONOSUPPORT,
    ),
    "personality with memory at 0": ("personality", (0x0100000,), 0, errno.EPERM),
    "personality of setarch -R": ("personality", (0x0040000,), 0, 0),
    "reading the personality": ("personality", (0xFFFFFFFF,), 0, 0),
}


@pytest.mark.parametrize("case", CONDITIONAL)
def test_call_refused_by_its_arguments(case: str) -> None:
    """What the kernel answers to the call without the filter, and what the caller gets with it."""
    name, arguments, free, confined = CONDITIONAL[case]
    if in_child(lambda: call(name, *arguments)) != free:
        pytest.skip("the kernel answers otherwise here")
    assert under_filter(lambda: call(name, *arguments)) == confined


@pytest.mark.parametrize("disguise", [0, UPPER_BIT], ids=["plain", "disguised"])
@pytest.mark.parametrize("family", [AF_VSOCK, AF_ALG], ids=["vsock", "alg"])
def test_sockets_beyond_the_namespace(family: int, disguise: int) -> None:
    """Sockets to the hypervisor and to the kernel's crypto code are an unsupported family."""
    if in_child(lambda: call("socket", family | disguise, socket.SOCK_SEQPACKET)) == errno.EAFNOSUPPORT:
        pytest.skip("this kernel has no such family")
    assert under_filter(lambda: call("socket", family | disguise, socket.SOCK_SEQPACKET)) == errno.EAFNOSUPPORT


def test_typing_into_the_terminal() -> None:
    """A character pushed into the controlling terminal is read from it without the filter, and refused with it."""

    def push() -> object:
        os.setsid()
        _controller, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
        try:
            for character in b"id\n":
                fcntl.ioctl(terminal, termios.TIOCSTI, bytes([character]))
        except OSError as error:
            return error.errno
        return os.read(terminal, 10).decode()

    if in_child(push) != "id\n":
        pytest.skip("TIOCSTI is off here (dev.tty.legacy_tiocsti)")
    assert under_filter(push) == errno.EPERM


@pytest.mark.skipif(MACHINE != "x86_64", reason="machine code of x86")
def test_i386_calls_end_the_process() -> None:
    """A call by i386's numbers, in which 20 is getpid, works without the filter, and kills with it."""
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\x53\xb8\x14\x00\x00\x00\xcd\x80\x5b\xc3")  # push rbx; mov eax, 20; int 0x80; pop rbx; ret
    view = (ctypes.c_char * mmap.PAGESIZE).from_buffer(code)
    getpid_i386 = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(view))

    def status_of(prepare: Callable[[], None]) -> int:
        pid = os.fork()
        if pid == 0:
            prepare()
            os._exit(0 if getpid_i386() == os.getpid() else 1)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def confine() -> None:
        no_new_privs()
        install(build_filter(MACHINE))

    if status_of(lambda: None) != 0:
        pytest.skip("this kernel runs no i386 code")
    assert status_of(confine) == -signal.SIGSYS


@pytest.mark.needs("user namespaces")
def test_filter_passes_to_programs() -> None:
    """A program started under the filter is under it too, and its children as well."""
    script = (
        "import subprocess\n"
        "print(subprocess.run(['unshare', '--user', 'true'], capture_output=True, text=True).stderr)\n"
    )

    def work() -> object:
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert in_child(work) == ""
    assert under_filter(work) == "unshare: unshare failed: Operation not permitted"


def test_install_without_no_new_privs() -> None:
    """Without no_new_privs a process that is not privileged gets an error, and no filter."""

    def work() -> object:
        if os.geteuid() == 0:
            os.setresuid(65534, 65534, 65534)
        try:
            install(build_filter(MACHINE))
        except SandboxError as error:
            return [error.errno, error.syscall, call("unshare", CLONE_FS)]
        return None

    if read_capabilities().no_new_privs:
        pytest.skip("no_new_privs is set already")
    assert in_child(work) == [errno.EACCES, "seccomp", 0]


def test_install_of_an_invalid_program() -> None:
    """A program that the kernel rejects is an error that says how long it was."""

    def work() -> object:
        no_new_privs()
        try:
            install(build_filter(MACHINE)[:-8])  # its last instruction is missing: it would run off its end
        except SandboxError as error:
            return [error.errno, error.path]
        return None

    assert in_child(work) == [errno.EINVAL, f"{len(build_filter(MACHINE)) // 8 - 1} instructions"]


ORDINARY_WORK = """
import asyncio, concurrent.futures, ctypes, multiprocessing, os, resource, select, shutil, signal, socket, sqlite3
import subprocess, sys, tempfile, threading, time
from multiprocessing import shared_memory


def square(number):
    return number * number


async def talk():
    async def answer(reader, writer):
        writer.write((await reader.readline()).upper())
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"hello\\n")
        line = await reader.readline()
        writer.close()
        await writer.wait_closed()
    process = await asyncio.create_subprocess_exec("echo", "hi", stdout=subprocess.PIPE)
    output, _ = await process.communicate()
    return line + output


def main():
    for method in ("fork", "spawn", "forkserver"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.map(square, range(5)) == [0, 1, 4, 9, 16], method
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        assert list(threads.map(square, range(5))) == [0, 1, 4, 9, 16]
    assert asyncio.run(talk()) == b"HELLO\\nhi\\n"
    assert subprocess.run("echo $((6*7)) | cat", shell=True, capture_output=True).stdout == b"42\\n"
    assert subprocess.run(["true"], start_new_session=True, preexec_fn=lambda: None).returncode == 0
    assert os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)[1] == 0
    memory = shared_memory.SharedMemory(create=True, size=4096)
    memory.close()
    memory.unlink()
    with tempfile.TemporaryDirectory() as directory:
        database = sqlite3.connect(os.path.join(directory, "db"))
        database.execute("pragma journal_mode=wal")
        database.execute("create table t (x)")
        database.close()
        shutil.copytree(directory, directory + "2")
        shutil.rmtree(directory + "2")
        os.mkfifo(os.path.join(directory, "fifo"))
    os.memfd_create("m")
    os.eventfd(0)
    os.sched_setaffinity(0, os.sched_getaffinity(0))
    os.pidfd_open(os.getpid())
    select.epoll().close()
    resource.setrlimit(resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.ptrace(0, 0, None, None) == 0  # PTRACE_TRACEME: debuggers work
    a, b = socket.socketpair()
    socket.send_fds(a, [b"x"], [0])
    assert socket.recv_fds(b, 1, 1)[0] == b"x"
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()
    print("all is well")


if __name__ == "__main__":
    main()
"""


def test_ordinary_work(tmp_path: Path) -> None:
    """Processes, threads, asyncio, sockets, shared memory, databases and debuggers' calls work under the filter."""
    script = tmp_path / "ordinary_work.py"
    script.write_text(ORDINARY_WORK, encoding="ascii")

    def work() -> object:
        done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
        return [done.stdout, done.stderr]

    assert under_filter(work) == ["all is well\n", ""]
