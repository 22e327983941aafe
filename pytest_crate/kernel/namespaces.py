"""Making and entering namespaces: a fork straight into new ones, and setns(2) into a crate's."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import signal
import socket
import warnings
from collections.abc import Mapping

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import identity, libc

KINDS: Mapping[str, int] = {
    # In the order of entering: the user namespace first, because it gives the right to enter the
    # others; the mount namespace last, because it takes the host's paths away.
    "user": libc.CLONE_NEWUSER,
    "ipc": libc.CLONE_NEWIPC,
    "uts": libc.CLONE_NEWUTS,
    "net": libc.CLONE_NEWNET,
    "mnt": libc.CLONE_NEWNS,
}
"""Namespaces that a process enters itself; a PID namespace is entered by its children only."""

# PyDLL keeps the GIL through the call: between clone(2) and PyOS_AfterFork_Child() the child
# must not try to take it.
_PYTHON = ctypes.PyDLL(None, use_errno=True)


def fork_into(step: str, flags: int) -> int:
    """Fork, as os.fork() does, with clone(2) flags such as CLONE_NEWPID; return 0 in the child.

    The C library's own fork handlers don't run, so the caller must have a single thread.

    :raises SandboxError: the kernel refuses.
    """
    number = libc.NUMBERS.get("clone")
    if number is None:
        raise SandboxError(step, syscall="clone", detail="its number is not known on this machine")
    _PYTHON.PyOS_BeforeFork()
    pid = int(
        _PYTHON.syscall(
            ctypes.c_long(number),
            ctypes.c_ulong(flags | signal.SIGCHLD),
            *(ctypes.c_void_p(0) for _ in range(4)),
        )
    )
    if pid == 0:
        _PYTHON.PyOS_AfterFork_Child()
        return 0
    error = ctypes.get_errno()
    _PYTHON.PyOS_AfterFork_Parent()
    if pid < 0:
        raise SandboxError(step, syscall="clone", path=hex(flags), errno=error)
    return pid


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceHandles:
    """Open descriptors of a crate's namespaces.

    :ivar pid: of its PID namespace.
    :ivar others: of the rest by kind, a subset of :data:`KINDS`; a kind that is absent is shared with the host.
    """

    pid: int
    others: Mapping[str, int]

    @classmethod
    def of_process(cls, pid: int, kinds: frozenset[str]) -> NamespaceHandles:
        """Open the namespaces that a process lives in (namespaces(7), /proc/pid/ns).

        :raises SandboxError: one can't be opened.
        """
        opened: dict[str, int] = {}
        try:
            for kind in ("pid", *(kind for kind in KINDS if kind in kinds)):
                path = f"/proc/{pid}/ns/{kind}"
                with libc.os_step("open the crate's namespaces", "open", path):
                    opened[kind] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            for descriptor in opened.values():
                os.close(descriptor)
            raise
        return cls(pid=opened.pop("pid"), others=opened)

    def enter(self, *, skip: frozenset[str] = frozenset()) -> None:
        """Move the calling, single-threaded process into all of them but the PID namespace."""
        for kind, flag in KINDS.items():
            if kind in self.others and kind not in skip:
                libc.setns(f"enter the crate's {kind} namespace", self.others[kind], flag, kind)

    def close(self) -> None:
        """Close the descriptors."""
        for descriptor in (self.pid, *self.others.values()):
            os.close(descriptor)


def fork_inside(handles: NamespaceHandles) -> int:
    """Fork a child that is born in a crate's PID namespace; return 0 in the child, which has one thread.

    The child is the caller's own child, to be waited for by it. Every other namespace is still
    the caller's, but for a user namespace, which the child has entered.

    :raises SandboxError: the kernel refuses.
    """
    if "user" in handles.others:
        return _fork_inside_rootless(handles)
    # setns(2) with CLONE_NEWPID acts on the calling thread's later children only, not on itself.
    with libc.os_step("fork into the crate", "open", "/proc/self/ns/pid"):
        own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    pid = -1
    try:
        libc.setns("fork into the crate", handles.pid, libc.CLONE_NEWPID, "pid")
        try:
            pid = fork()
        finally:
            if pid != 0:
                _return_to(own, pid)
    finally:
        os.close(own)
    return pid


def _return_to(own: int, pid: int) -> None:
    """Let later children be born in the own PID namespace again; where that fails, end the one that was just born."""
    try:
        libc.setns("return to the own PID namespace", own, libc.CLONE_NEWPID, "pid")
    except SandboxError:
        if pid > 0:
            # Nobody will know it: while it is not reaped, the crate's init can't end (pid_namespaces(7)).
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        # The crate's namespace would soon be dead, and the process unable to fork.
        libc.setns("return to the own PID namespace", own, libc.CLONE_NEWPID, "pid")
        raise


def fork() -> int:
    """Fork as os.fork() does, without its warning of other threads; return 0 in the child."""
    # From Python 3.12 on, os.fork() warns of other threads. What they may have locked concerns the
    # body, whose timeout names them; the warning would only hit whoever turns warnings into errors.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _fork_inside_rootless(handles: NamespaceHandles) -> int:
    # Without CAP_SYS_ADMIN in its own user namespace a process can't choose its children's PID
    # namespace (pid_namespaces(7)). A first child gains that right by entering the crate's user
    # namespace, forks a sibling of its own (CLONE_PARENT), tells its pid, and leaves.
    reading, writing = os.pipe()
    try:
        first = fork()
    except OSError:
        os.close(reading)
        os.close(writing)
        raise
    if first == 0:
        try:
            os.close(reading)
            libc.setns("enter the crate's user namespace", handles.others["user"], libc.CLONE_NEWUSER, "user")
            libc.setns("fork into the crate", handles.pid, libc.CLONE_NEWPID, "pid")
            pid = fork_into("fork into the crate", libc.CLONE_PARENT)
        except SandboxError as error:
            os.write(writing, f"{error.syscall} {error.errno}".encode())
            os._exit(1)
        if pid == 0:
            os.close(writing)
            return 0
        os.write(writing, str(pid).encode())
        os._exit(0)
    os.close(writing)
    try:
        answer = os.read(reading, 64).decode()
    finally:
        os.close(reading)
        os.waitpid(first, 0)
    if answer.isdigit():
        return int(answer)
    name, _, number = answer.partition(" ")
    raise SandboxError(
        "fork into the crate",
        syscall=name,
        errno=int(number) if number.isdigit() else None,
        detail="" if number else "the process that should fork died",
    )


def make_user_namespace(uid_map: str, gid_map: str) -> int:
    """Return a descriptor of a new user namespace with the given id maps; it lives as long as the descriptor.

    :raises SandboxError: the kernel refuses.
    """
    ours, holders = socket.socketpair()
    with ours, holders:
        holder = fork_into("make a user namespace", libc.CLONE_NEWUSER)
        if holder == 0:
            # It only holds the namespace until it is mapped and open.
            ours.close()
            holders.recv(1)
            os._exit(0)
        try:
            identity.write_id_maps(holder, uid_map, gid_map, deny_setgroups=False)
            with libc.os_step("open the user namespace", "open"):
                return os.open(f"/proc/{holder}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            holders.close()
            ours.close()
            os.kill(holder, signal.SIGKILL)
            os.waitpid(holder, 0)
