"""A process of its own, root of a user namespace with a range of ids, for what is to be done to files of these ids."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import stat
from collections.abc import Callable, Iterable
from typing import Any

from pytest_crate.errors import ImageError, SandboxError
from pytest_crate.kernel import libc, namespaces
from pytest_crate.kernel.id_range import IdRange

_STEP = "work as root of a user namespace"

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_Identity = tuple[int, int]

Say = Callable[[str], None]


def run_as_root(ids: IdRange, work: Callable[[Say], object], *, said: Say | None = None) -> Any:
    """Do something in a new process and user namespace, whose root has these ids; return what it returns.

    Outside of it their files are others', which their user could not even remove.

    :param work: gets a function that hands a line to ``said`` here; what it returns is made of builtins.
    :raises HostError: the ids can't be mapped.
    :raises ImageError: ``work`` has raised it.
    :raises SandboxError: the namespace is refused, or ``work`` has raised something.
    """
    with libc.os_step(_STEP, "pipe2"):
        reading, writing = os.pipe2(os.O_CLOEXEC)
        waiting, going = os.pipe2(os.O_CLOEXEC)
    pid = namespaces.fork()
    if pid == 0:
        _live(work, writing, waiting, (reading, going))
    os.close(writing)
    os.close(waiting)
    answer: dict[str, Any] = {}
    try:
        with os.fdopen(reading, encoding="utf-8") as lines, os.fdopen(going, "wb", buffering=0) as go:
            for line in lines:
                answer = json.loads(line)
                if "ready" in answer:
                    ids.map_into(pid)
                    go.write(b"!")
                elif "said" in answer and said is not None:
                    said(answer["said"])
    finally:
        os.kill(pid, signal.SIGKILL)  # it has ended, or is not wanted any more
        os.waitpid(pid, 0)
    if "image_error" in answer:
        raise ImageError(*answer["image_error"])
    if "sandbox_error" in answer:
        raise SandboxError.from_json(answer["sandbox_error"])
    if "result" not in answer:
        raise SandboxError(_STEP, detail="the process was killed")
    return answer["result"]


def _live(work: Callable[[Say], object], writing: int, waiting: int, others: tuple[int, ...]) -> None:
    """Live as that process: its parent maps its ids when it says that it is ready."""

    def tell(**message: object) -> None:
        os.write(writing, json.dumps(message).encode() + b"\n")

    try:
        for descriptor in others:
            os.close(descriptor)
        libc.prctl("end with the parent", libc.PR_SET_PDEATHSIG, signal.SIGKILL)
        libc.unshare("make a user namespace", libc.CLONE_NEWUSER)
        tell(ready=True)
        if os.read(waiting, 1):
            tell(result=work(lambda line: tell(said=line)))
    except ImageError as error:
        tell(image_error=[error.reference, error.message])
    except SandboxError as error:
        tell(sandbox_error=error.to_json())
    except Exception as error:  # noqa: BLE001 - whatever it meets is told
        tell(sandbox_error=SandboxError(_STEP, detail=repr(error)).to_json())
    finally:
        os._exit(0)


def give_back(ids: IdRange, paths: Iterable[str]) -> None:
    """Make files and directories their user's own that a crate's other users have left below some directories.

    :raises HostError: the ids can't be mapped.
    :raises SandboxError: something can't be given back.
    """
    kept = list(paths)
    run_as_root(ids, lambda _: give_back_below(kept))


def give_back_below(paths: Iterable[str]) -> None:
    """As root of the namespace: its root outside of it is the user."""
    for path in paths:
        top = os.open(path, _DIRECTORY)
        try:
            _give_back_tree(top)
        finally:
            os.close(top)


def _give_back_tree(top: int) -> None:
    """Give back what is below a directory, however deep: by two descriptors, and without recursion."""
    # Never by a path: no symbolic link that somebody makes meanwhile is to lead elsewhere.
    here = os.dup(top)
    above: list[tuple[_Identity, list[str]]] = []
    names = _give_back_entries(here)
    try:
        while names or above:
            if names:
                name = names.pop()
                try:
                    next_one = os.open(name, _DIRECTORY, dir_fd=here)
                except OSError:  # it is gone, or somebody else's
                    continue
                above.append((_identity(here), names))
                names = _give_back_entries(next_one)
            else:
                next_one = os.open("..", _DIRECTORY, dir_fd=here)
                was, names = above.pop()
                if _identity(next_one) != was:
                    os.close(next_one)
                    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))  # it has been moved
            os.close(here)
            here = next_one
    finally:
        os.close(here)


def _identity(descriptor: int) -> _Identity:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _give_back_entries(directory: int) -> list[str]:
    """Give back what is in a directory; return the names of the directories in it."""
    directories = []
    for name in os.listdir(directory):
        status = os.lstat(name, dir_fd=directory)
        if (status.st_uid, status.st_gid) != (0, 0):
            # Refused for an id that is not mapped: somebody else's, and nothing that a crate has made.
            with contextlib.suppress(PermissionError):
                os.chown(name, 0, 0, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            directories.append(name)
    return directories
