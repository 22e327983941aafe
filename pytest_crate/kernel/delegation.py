"""Makes a v2 control group that has processes ready to have children with controllers, and puts it back.

Only a control group without processes of its own can give its children controllers (cgroups(7), "no internal
processes"). A run in one that has some moves them into a leaf beside its own directory, all of them: pytest, its
shell, and the launcher. The last run to leave puts them back.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import libc
from pytest_crate.kernel.cgroupfs import (
    PATIENCE_SEC,
    make_directory,
    malformed,
    read_text,
    remove_directory,
    subgroups,
)

LEAF = "pytest-crate-processes"
"""The name of the control group that holds the processes which were in its parent."""

# systemd marks what a unit may divide as it likes ("Control Group APIs and Delegation"). Ordinary users can read the
# mark of version 251 on; trusted.* takes CAP_SYS_ADMIN. A user's own manager marks nothing (seen with 252).
_MARKS = frozenset({"user.delegate", "trusted.delegate"})
_ROUNDS = 100
_UNSEEN = "some are of a pid namespace that we don't see into"


def above_leaf(directory: str) -> str:
    """Return a control group, or the one above if it is the leaf of an earlier or another run."""
    return os.path.dirname(directory) if os.path.basename(directory) == LEAF else directory


def is_marked(directory: str) -> bool:
    """Tell whether systemd has marked a unit's control group as the unit's own to divide."""
    try:
        return not _MARKS.isdisjoint(os.listxattr(directory))
    except OSError:  # before kernel 5.7 there is no user.* on control groups
        return False


def may_move(origin: str, target: str) -> bool:
    """Tell whether we may move a process of ours from one control group to another.

    That takes the right to write to cgroup.procs of the nearest control group that is above both (cgroups(7)).
    """
    common = os.path.commonpath([origin, target])
    return os.access(f"{common}/cgroup.procs", os.W_OK, effective_ids=True)


@contextlib.contextmanager
def held(directory: str) -> Iterator[None]:
    """Keep other runs from changing a control group.

    :raises SandboxError: another process has held it for too long, or it isn't there.
    """
    step = "hold a cgroup"
    with libc.os_step(step, "open", directory):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + PATIENCE_SEC
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise SandboxError(step, syscall="flock", path=directory, errno=errno.EWOULDBLOCK) from None
            # Whoever may read the directory can hold it, so that a wait without an end is not to be risked.
            time.sleep(0.005)
        yield
    finally:
        os.close(descriptor)


def has_processes(directory: str) -> bool:
    """Tell whether a control group has processes of its own that keep controllers from its children.

    The root of all control groups may have both; it is the one without ``cgroup.events``.

    :raises SandboxError: it can't be read, as one in a threaded subtree can't.
    """
    return os.path.exists(f"{directory}/cgroup.events") and bool(_members(directory))


def _members(directory: str) -> list[int]:
    path = f"{directory}/cgroup.procs"
    text = read_text(path) or ""
    try:
        return [int(line) for line in text.split()]
    except ValueError:
        raise malformed(path, text) from None


def make_room(directory: str) -> None:
    """Move the processes of a control group into its leaf, until none comes after.

    :raises SandboxError: the kernel does not let us; what had been moved is put back.
    """
    leaf = f"{directory}/{LEAF}"
    make_directory(leaf, exist_ok=True)
    try:
        _move_all(directory, leaf)
    except SandboxError:
        with contextlib.suppress(SandboxError):
            _move_all(leaf, directory)
            remove_directory(leaf)
        raise


def _move_all(origin: str, target: str) -> None:
    step = "move processes to another cgroup"
    for _ in range(_ROUNDS):
        members = _members(origin)
        if not members:
            return
        if 0 in members:
            raise SandboxError(step, syscall="write", path=f"{origin}/cgroup.procs", detail=_UNSEEN)
        for pid in members:
            try:
                libc.write_file(step, f"{target}/cgroup.procs", str(pid))
            except SandboxError as error:
                if error.errno != errno.ESRCH:  # it has ended
                    raise
    raise SandboxError(step, syscall="write", path=f"{origin}/cgroup.procs", detail="there are ever new ones")


def put_back(directory: str) -> None:
    """Move the processes of the leaf back, if no other run is in the control group and nobody else divides it.

    :raises SandboxError: the kernel does not let us.
    """
    leaf = f"{directory}/{LEAF}"
    if not os.path.isdir(leaf) or subgroups(directory) != [leaf]:
        return
    control = f"{directory}/cgroup.subtree_control"
    for controller in (read_text(control) or "").split():
        libc.write_file("take a controller back", control, f"-{controller}")
    _move_all(leaf, directory)
    remove_directory(leaf)
