"""Making and entering namespaces: a fork straight into new ones, and setns(2) into a crate's."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import platform
import signal
import socket
import warnings
from collections.abc import Mapping
from typing import NamedTuple

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

_FORK_INSIDE = "fork into the crate"

_CLONE_FIELDS = "flags pidfd child_tid parent_tid exit_signal stack stack_size tls set_tid set_tid_size cgroup"


def clone_arguments(flags: int, cgroup: int, child_tid: int = 0) -> libc.Words:
    """Return the ``struct clone_args`` of clone3(2), with the fields of kernel 5.7.

    :param cgroup: descriptor of the control group's.
    :param child_tid: where the child's thread id is kept in memory.
    """
    # A sibling gets its parent's signal; to name one is an error (kernel/fork.c, clone3_args_valid).
    exit_signal = 0 if flags & libc.CLONE_PARENT else signal.SIGCHLD
    values = {"flags": flags, "child_tid": child_tid, "exit_signal": exit_signal, "cgroup": cgroup}
    return libc.Words([values.get(name, 0) for name in _CLONE_FIELDS.split()])


def fork_into(step: str, flags: int) -> int:
    """Fork, as os.fork() does, with clone(2) flags such as CLONE_NEWPID; return 0 in the child.

    The C library's own fork handlers don't run, so the caller must have a single thread.

    :raises SandboxError: the kernel refuses.
    """
    number = libc.NUMBERS.get("clone")
    if number is None:
        raise SandboxError(step, syscall="clone", detail="its number is not known on this machine")
    address = _thread_id_address()
    if address is not None:
        flags |= libc.CLONE_CHILD_SETTID | libc.CLONE_CHILD_CLEARTID
    # Stack, parent_tid, and then (clone(2), "C library/kernel differences") on x86_64 child_tid and tls.
    arguments = (None, None, address, None) if platform.machine() == "x86_64" else (None, None, None, address)
    _PYTHON.PyOS_BeforeFork()
    pid = int(
        _PYTHON.syscall(ctypes.c_long(number), ctypes.c_ulong(flags | signal.SIGCHLD), *map(ctypes.c_void_p, arguments))
    )
    if pid == 0:
        _PYTHON.PyOS_AfterFork_Child()
        return 0
    error = ctypes.get_errno()
    _PYTHON.PyOS_AfterFork_Parent()
    if pid < 0:
        raise SandboxError(step, syscall="clone", path=hex(flags), errno=error)
    return pid


def _fork_into_cgroup(directory: int, flags: int = 0) -> int | None:
    """Fork a child that is born in a control group of version 2 (clone3(2), CLONE_INTO_CGROUP); 0 in the child.

    Moving it afterwards would wait for a grace period of RCU, 12 ms. As for :func:`fork_into`, the caller must have a
    single thread.

    :param directory: descriptor of the control group's.
    :returns: None where it is refused: the kernel is older than 5.7 (EINVAL, E2BIG), a filter allows no clone3
        (ENOSYS, EPERM), or the control group can't be entered so. It is to be entered the other way, which tells why
        not if that is refused as well.
    """
    address = _thread_id_address()
    if address is None:
        return None
    flags |= libc.CLONE_INTO_CGROUP | libc.CLONE_CHILD_SETTID | libc.CLONE_CHILD_CLEARTID
    arguments, _ = clone_arguments(flags, directory, address).in_memory()
    number = ctypes.c_long(libc.NUMBERS["clone3"])
    _PYTHON.PyOS_BeforeFork()
    pid = int(_PYTHON.syscall(number, ctypes.byref(arguments), ctypes.c_size_t(ctypes.sizeof(arguments))))
    if pid == 0:
        _PYTHON.PyOS_AfterFork_Child()
        return 0
    _PYTHON.PyOS_AfterFork_Parent()
    return pid if pid > 0 else None


def _thread_id_address() -> int | None:
    """Return where the C library keeps the calling thread's id, which its own fork sets anew in the child.

    Without that another thread's pthread_kill(3) would miss the child's first one. None where the kernel doesn't tell
    (PR_GET_TID_ADDRESS, prctl(2): it is for checkpoints, and may be left out).
    """
    address = ctypes.c_uint64(0)
    try:
        libc.prctl("find the thread's id", libc.PR_GET_TID_ADDRESS, ctypes.addressof(address))
    except SandboxError:
        return None
    return address.value or None


def _is_single_threaded() -> bool:
    """Tell whether this process has no other thread, be it of Python's or not (proc(5), /proc/pid/task)."""
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:
        return False


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

    def enter(self, *, call: libc.Caller = libc.syscall) -> None:
        """Move the calling, single-threaded process into all of them but the PID namespace."""
        for kind, flag in KINDS.items():
            if kind in self.others:
                libc.setns(f"enter the crate's {kind} namespace", self.others[kind], flag, kind, call=call)

    def close(self) -> None:
        """Close the descriptors."""
        for descriptor in (self.pid, *self.others.values()):
            os.close(descriptor)


class Fork(NamedTuple):
    """A fork into a crate.

    :ivar pid: the child's; 0 in the child.
    :ivar joined: the child was born in the control group. Known in the child.
    :ivar whole: it was born in all of the crate's namespaces.
    """

    pid: int
    joined: bool
    whole: bool


def fork_inside(handles: NamespaceHandles, cgroup: str | None = None, *, whole: bool = False) -> Fork:
    """Fork a child that is born in a crate's PID namespace; it has one thread.

    The child is the caller's own child, to be waited for by it.

    :param cgroup: the directory of a control group of version 2 for it to be born in, if that can be.
    :param whole: it is to be born in all of the crate's namespaces, which takes a second fork; with a user namespace
        it is so always. Else the rest are the caller's yet: by /proc/pid/net and /proc/pid/mountinfo, which ask for no
        right to trace, whoever lives in the crate can look at them (fs/proc/proc_net.c, fs/proc_namespace.c).
    :raises SandboxError: the kernel refuses.
    """
    whole = whole or "user" in handles.others
    bear = _fork_by_first if whole else _fork_inside
    with contextlib.ExitStack() as opened:
        directory = None
        if cgroup is not None:
            with libc.os_step(_FORK_INSIDE, "open", cgroup):
                directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            opened.callback(os.close, directory)
        pid, joined = bear(handles, directory)
    return Fork(pid, joined, whole)


def _fork_inside(handles: NamespaceHandles, cgroup: int | None) -> tuple[int, bool]:
    # setns(2) with CLONE_NEWPID acts on the calling thread's later children only, not on itself.
    with libc.os_step(_FORK_INSIDE, "open", "/proc/self/ns/pid"):
        own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    pid, born = -1, None
    try:
        libc.setns(_FORK_INSIDE, handles.pid, libc.CLONE_NEWPID, "pid")
        try:
            if cgroup is not None and _is_single_threaded():
                born = _fork_into_cgroup(cgroup)
            pid = fork() if born is None else born
        finally:
            if pid != 0:
                _return_to(own, pid)
    finally:
        os.close(own)
    return pid, born is not None


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


def _fork_by_first(handles: NamespaceHandles, cgroup: int | None) -> tuple[int, bool]:
    # A process can move its mount namespace with one thread only (setns(2)), and without CAP_SYS_ADMIN in its own user
    # namespace it can't choose its children's PID namespace (pid_namespaces(7)). So a first child enters them, forks
    # a sibling of its own (CLONE_PARENT), tells its pid, and leaves.
    with libc.os_step(_FORK_INSIDE, "socketpair"):
        ours, firsts = socket.socketpair()
    with ours, firsts:
        first = fork()
        if first == 0:
            ours.close()
            return 0, _bear_sibling(handles, cgroup, firsts.fileno())
        firsts.close()
        pid, told = None, b""
        try:
            # If it is killed before it tells of a sibling, that one waits for ever, and keeps open what we would read.
            with libc.os_step(_FORK_INSIDE, "waitid"):
                ended = os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
            if ended is not None and ended.si_code == os.CLD_EXITED:
                with libc.os_step(_FORK_INSIDE, "read"):
                    told = os.read(ours.fileno(), 1 << 16)
            with libc.os_step(_FORK_INSIDE, "waitpid"):
                os.waitpid(first, 0)
            if told.isdigit():
                # It may have been killed by who lives in the crate: its parent will know.
                with libc.os_step(_FORK_INSIDE, "write"), contextlib.suppress(BrokenPipeError):
                    os.write(ours.fileno(), b"g")
                pid = int(told)
        finally:
            if pid is None:
                ours.close()  # the sibling, if there is one, goes no further
                _wait_for_both(first)
    if pid is not None:
        return pid, False
    if told:
        raise SandboxError.from_json(json.loads(told))
    raise SandboxError(_FORK_INSIDE, detail="the process that should fork died")


def _bear_sibling(handles: NamespaceHandles, cgroup: int | None, channel: int) -> bool:
    """Live as the first child: enter the crate, fork a sibling, tell its pid or what stands in the way, and leave.

    Returns in the sibling, and not before its parent knows it: nobody else could wait for it, and while it is not
    reaped, the crate's init can't end (pid_namespaces(7)).

    :returns: whether it was born in the control group.
    """
    known, born = False, None
    try:
        try:
            with libc.os_step(_FORK_INSIDE, "setpgid"):
                os.setpgid(0, 0)  # the sibling's group, too, by which its parent finds it
            handles.enter()
            libc.setns(_FORK_INSIDE, handles.pid, libc.CLONE_NEWPID, "pid")
            if cgroup is not None:
                born = _fork_into_cgroup(cgroup, libc.CLONE_PARENT)
            pid = fork_into(_FORK_INSIDE, libc.CLONE_PARENT) if born is None else born
            if pid == 0:
                known = bool(os.read(channel, 1))
            else:
                with libc.os_step(_FORK_INSIDE, "write"):
                    os.write(channel, str(pid).encode())
        except SandboxError as error:
            os.write(channel, json.dumps(error.to_json()).encode())
    finally:
        if not known:
            os._exit(1)
    return born is not None


def end_both(first: int) -> None:
    """End a first child that has not been waited for, and the sibling that it has borne, if it has; wait for both.

    The sibling is in its process group: nobody knows its pid.
    """
    for end in (os.kill, os.killpg):
        with contextlib.suppress(ProcessLookupError):
            end(first, signal.SIGKILL)
    _wait_for_both(first)


def _wait_for_both(first: int) -> None:
    """Wait for a first child, if that has not been done, and for the sibling that it has borne, if it has."""
    for which in (first, -first):
        with contextlib.suppress(ChildProcessError):
            os.waitpid(which, 0)


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
