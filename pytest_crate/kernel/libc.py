"""System calls through ctypes, every failure on one path: a :class:`SandboxError` that names it."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Protocol

from pytest_crate.errors import SandboxError
from pytest_crate.kernel.walk_in_root import walk_in_root

# use_errno: errno is kept per thread by ctypes, so that nothing between call and reading changes it.
_LIBC = ctypes.CDLL(None, use_errno=True)
if sys.platform == "linux":
    # Called dozens of times per crate: its types are declared once, on an entry that set_name() doesn't share.
    _PRCTL = _LIBC["prctl"]
    _PRCTL.argtypes = (ctypes.c_int, *(ctypes.c_ulong,) * 4)

# linux/sched.h
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_PARENT = 0x00008000
CLONE_CHILD_CLEARTID = 0x00200000
CLONE_CHILD_SETTID = 0x01000000
CLONE_INTO_CGROUP = 0x200000000

# linux/mount.h
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_BIND = 4096
MS_MOVE = 8192
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_RELATIME = 1 << 21
MNT_DETACH = 2

# linux/mount.h, linux/fcntl.h: open_tree(2), move_mount(2), mount_setattr(2)
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
AT_FDCWD = -100
MOVE_MOUNT_F_EMPTY_PATH = 0x00000004
MOVE_MOUNT_T_EMPTY_PATH = 0x00000040
MOUNT_ATTR_RDONLY = 0x00000001
MOUNT_ATTR_NOSUID = 0x00000002
MOUNT_ATTR_NODEV = 0x00000004
MOUNT_ATTR_NOEXEC = 0x00000008

# linux/openat2.h
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_IN_ROOT = 0x10

# linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_GET_DUMPABLE = 3
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_SET_SECCOMP = 22
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_GET_NO_NEW_PRIVS = 39
PR_GET_TID_ADDRESS = 40
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

# asm/unistd.h: x86_64 has its own table, aarch64 the generic one; from 424 on they are the same.
_TABLES = {
    "x86_64": """
        read 0 write 1 close 3 rt_sigaction 13 ioctl 16 clone 56 execve 59 fcntl 72 chdir 80 fchown 93 ptrace 101
        setsid 112 setgroups 116 setresuid 117 setresgid 119 capget 125 capset 126 pivot_root 155 prctl 157 mount 165
        openat 257 mkdirat 258 ppoll 271 unshare 272 dup3 292 setns 308 kcmp 312
        seccomp 317
        """,
    "aarch64": """
        dup3 24 fcntl 25 ioctl 29 mkdirat 34 mount 40 pivot_root 41 chdir 49 fchown 55 openat 56 close 57 read 63
        write 64 ppoll 73 capget 90 capset 91 unshare 97 ptrace 117 rt_sigaction 134 setresgid 149 setresuid 147
        setsid 157 setgroups 159 prctl 167 clone 220 execve 221 setns 268 kcmp 272
        seccomp 277
        """,
}
_COMMON = """
    pidfd_send_signal 424 open_tree 428 move_mount 429 pidfd_open 434 clone3 435 close_range 436 openat2 437
    mount_setattr 442
    """


def _numbers(machine: str) -> dict[str, int]:
    words = (_TABLES.get(machine, "") + _COMMON).split()
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))


_MACHINE = platform.machine()
NUMBERS: dict[str, int] = _numbers(_MACHINE)
"""System call numbers of this machine, by name."""


def _checked(step: str, name: str, path: str, function: Callable[[], int]) -> int:
    while True:
        result = function()
        if result != -1:
            return result
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise SandboxError(step, syscall=name, path=path, errno=number)


@dataclasses.dataclass(frozen=True, slots=True)
class Words:
    """An array of machine words in memory; bytes among them stand for a pointer to these, with a 0 at their end."""

    words: Sequence[int | bytes]

    def in_memory(self) -> tuple[ctypes.Array[ctypes.c_uint64], list[ctypes.Array[ctypes.c_char]]]:
        """Return the array, and what it points to, to be kept as long as it is used."""
        kept = []
        array = (ctypes.c_uint64 * len(self.words))()
        for place, word in enumerate(self.words):
            if isinstance(word, bytes):
                kept.append(ctypes.create_string_buffer(word))
                array[place] = ctypes.addressof(kept[-1])
            else:
                array[place] = word & 0xFFFFFFFFFFFFFFFF
        return array, kept


class Result(int):
    """What a call returns that is only recorded: its number among the others."""


Argument = int | bytes | Words | ctypes.Array[ctypes.c_char] | ctypes.Structure | None
NO_DETAILS: Mapping[int, str] = {}


class Caller(Protocol):
    """Makes a system call, as :func:`syscall` does, or records it, to be made by another process."""

    def __call__(
        self, step: str, name: str, /, *args: Argument, path: str = "", details: Mapping[int, str] = NO_DETAILS
    ) -> int:
        """Make the call, or record it; what is returned can be an argument of a later one."""


def syscall(step: str, name: str, /, *args: Argument, path: str = "", details: Mapping[int, str] = NO_DETAILS) -> int:
    """Make a system call by number; retried when a signal interrupts it.

    :param step: what it is for, in words; it opens the error's message.
    :param name: a key of :data:`NUMBERS`.
    :param args: integers, bytes (passed as ``char *``), None (NULL) or what is passed by reference.
    :param path: the object that it is applied to, for the error's message.
    :param details: by errno, what a failure means.
    :raises SandboxError: it returned -1.
    """
    number = NUMBERS.get(name)
    if number is None:
        raise SandboxError(step, syscall=name, path=path, errno=errno.ENOSYS, detail=f"not known on {_MACHINE}")
    converted: list[object] = []
    kept = []
    for arg in args:
        if isinstance(arg, int):
            converted.append(ctypes.c_long(arg))
        elif isinstance(arg, ctypes.Structure):
            converted.append(ctypes.byref(arg))
        elif isinstance(arg, Words):
            array, pointed = arg.in_memory()
            kept.append(pointed)
            converted.append(array)
        else:
            converted.append(arg)
    try:
        return _checked(step, name, path, lambda: int(_LIBC.syscall(ctypes.c_long(number), *converted)))
    except SandboxError as error:
        detail = "" if error.errno is None else details.get(error.errno, "")
        if not detail:
            raise
        raise SandboxError(step, syscall=name, path=path, errno=error.errno, detail=detail) from None


def libc_call(step: str, name: str, *args: object, path: str = "") -> int:
    """Call a function of the C library that returns -1 and sets errno; retried on EINTR.

    :raises SandboxError: it returned -1.
    """
    function = getattr(_LIBC, name)
    return _checked(step, name, path, lambda: int(function(*args)))


class os_step:  # noqa: N801 - used as the function that it is
    """Turn an OSError of the block into the :class:`SandboxError` that names the step."""

    # No generator: there are dozens of these in the making of a crate.
    __slots__ = ("_name", "_path", "_step")

    def __init__(self, step: str, name: str, path: str = "") -> None:
        self._step, self._name, self._path = step, name, path

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            path = self._path or str(error.filename or "")
            raise SandboxError(self._step, syscall=self._name, path=path, errno=error.errno) from error


def write_file(step: str, path: str, value: str) -> None:
    """Write a value to a file of the kernel's (procfs, cgroupfs) with a single write(2).

    :raises SandboxError: it names the path and the value.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, value.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise SandboxError(step, syscall="write", path=path, errno=error.errno, detail=f"value {value!r}") from error


def mount(
    step: str, source: str, target: str, kind: str = "", flags: int = 0, data: str = "", *, call: Caller = syscall
) -> None:
    """mount(2).

    :raises SandboxError: it names source, target, file system and options.
    """
    described = f"{source} -> {target}" + (f" type {kind}" if kind else "") + (f" [{data}]" if data else "")
    call(
        step,
        "mount",
        os.fsencode(source),
        os.fsencode(target),
        kind.encode() or None,
        flags,
        os.fsencode(data) or None,
        path=described,
    )


def umount(step: str, target: str, flags: int = 0) -> None:
    """umount2(2)."""
    libc_call(step, "umount2", os.fsencode(target), ctypes.c_int(flags), path=target)


def pivot_root(step: str, new_root: str, put_old: str, *, call: Caller = syscall) -> None:
    """pivot_root(2)."""
    call(step, "pivot_root", os.fsencode(new_root), os.fsencode(put_old), path=new_root)


def unshare(step: str, flags: int, *, call: Caller = syscall) -> None:
    """unshare(2)."""
    call(step, "unshare", flags, path=hex(flags))


def setns(step: str, descriptor: int, kind: int, path: str = "", *, call: Caller = syscall) -> None:
    """setns(2)."""
    call(step, "setns", descriptor, kind, path=path)


def prctl(step: str, option: int, *args: int) -> int:
    """prctl(2); missing arguments are 0, as several options demand."""
    first, second, third, fourth = (*args, 0, 0, 0, 0)[:4]
    return _checked(step, "prctl", str(option), lambda: int(_PRCTL(option, first, second, third, fourth)))


def name_process(name: str, *, call: Caller = syscall) -> None:
    """Name the calling thread, as ps(1) shows it; at most 15 bytes (PR_SET_NAME, prctl(2))."""
    call("name the process", "prctl", PR_SET_NAME, name.encode()[:15], 0, 0, 0, path=name)


def set_title(title: str) -> None:
    """Make a title the command line of this process, as ps(1) shows it, in the place of its arguments.

    Where the byte before the end of the arguments isn't 0, the kernel shows what stands at their beginning, up to the
    first 0 (proc(5), cmdline; fs/proc/base.c, get_mm_cmdline).
    """
    path = "/proc/self/stat"
    with os_step("name the process", "open", path), open(path, encoding="utf-8", errors="replace") as stat:
        fields = stat.read().rpartition(")")[2].split()
    # proc(5) counts from 1, and what precedes are two of its fields: arg_start is 48, arg_end 49.
    start, end = int(fields[48 - 3]), int(fields[49 - 3])
    text = title.encode()[: end - start - 2]
    ctypes.memset(start, 0, end - start - 1)
    ctypes.memmove(start, text, len(text))
    ctypes.memset(end - 1, 1, 1)


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


def openat2_in_root(step: str, root: int, path: str, flags: int, mode: int = 0) -> int:
    """openat2(2) with RESOLVE_IN_ROOT and RESOLVE_NO_MAGICLINKS (kernel 5.6)."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    attempts = 128
    while True:
        attempts -= 1
        try:
            return syscall(step, "openat2", root, os.fsencode(path), how, ctypes.sizeof(how), path=path)
        except SandboxError as error:
            # A rename or mount anywhere on the host during a walk over ".." (openat2(2), ERRORS): try again.
            if error.errno != errno.EAGAIN or not attempts:
                raise


def open_in_root(step: str, root: int, path: str, flags: int, mode: int = 0) -> int:
    """Open a path as if the directory ``root`` were the file system's root.

    No symlink, absolute or with ``..``, leads out of it; magic links of procfs aren't followed.

    :param root: a directory's descriptor.
    :returns: a descriptor, close-on-exec.
    """
    try:
        return openat2_in_root(step, root, path, flags, mode)
    except SandboxError as error:
        # An older kernel, or a filter that is; any other EPERM will come again.
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise
    with os_step(step, "openat", path):
        return walk_in_root(root, path, flags | os.O_CLOEXEC, mode)


def open_tree(step: str, directory: int, path: str, *, recursive: bool = False) -> int:
    """Return a descriptor of a detached copy of the mount at a path (open_tree(2), kernel 5.2).

    :param directory: what a relative path, or an empty one, refers to.
    """
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (AT_RECURSIVE if recursive else 0)
    if not path:
        flags |= AT_EMPTY_PATH
    return syscall(step, "open_tree", directory, os.fsencode(path), flags, path=path)


class _MountAttributes(ctypes.Structure):
    _fields_ = [
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    ]


def set_mount_attributes(step: str, place: int, attributes: int, *, recursive: bool, path: str = "") -> None:
    """Set attributes of an open mount, and of those below it (mount_setattr(2), kernel 5.12).

    :param path: the mount's path, for the error's message.
    """
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    wanted = _MountAttributes(attributes, 0, 0, 0)
    syscall(step, "mount_setattr", place, b"", flags, wanted, ctypes.sizeof(wanted), path=path)


def move_mount(step: str, tree: int, target: int, path: str = "") -> None:
    """Attach a detached mount on an open target (move_mount(2), kernel 5.2).

    :param path: the target's path, for the error's message.
    """
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    syscall(step, "move_mount", tree, b"", target, b"", flags, path=path)
