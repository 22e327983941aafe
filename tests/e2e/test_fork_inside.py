"""A fork straight into a control group of version 2, and the other way where that can't be."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import capabilities, cgroupfs, libc, namespaces, seccomp
from tests.conftest import own_cgroups

pytestmark = pytest.mark.needs("cgroup v2")

ENOSYS, EPERM = 38, 1


@pytest.fixture
def cgroup() -> Iterator[str]:
    """A control group of version 2 below our own."""
    own = next(directory for directory in own_cgroups(2) if os.access(directory, os.W_OK))
    directory = f"{own}/{cgroupfs.Owner.of_process(os.getpid())}"
    cgroupfs.make_directory(directory)
    try:
        yield directory
    finally:
        cgroupfs.remove_directory(directory)


@pytest.fixture
def own() -> Iterator[namespaces.NamespaceHandles]:
    """Our own PID namespace, in the place of a crate's."""
    handles = namespaces.NamespaceHandles.of_process(os.getpid(), frozenset())
    yield handles
    handles.close()


def told(
    handles: namespaces.NamespaceHandles,
    cgroup: str,
    more: Callable[[], str] = str,
    before: Callable[[], object] = str,
) -> tuple[bool, str, str]:
    """Fork inside; return whether the child was born there, the control group that it is in, and more.

    It is done by a process that has one thread, whatever threads plugins have started in pytest's.

    :param before: what that process does first.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        forking = os.fork()
    if forking == 0:
        status, pid = 1, -1
        try:
            before()
            pid, born, _ = namespaces.fork_inside(handles, cgroup)
            if pid == 0:
                path = Path("/proc/self/cgroup").read_text().rpartition("0::")[2].strip()
                os.write(writing, f"{born}\n{path}\n{more()}".encode())
            else:
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        except BaseException as error:  # noqa: BLE001 - told, and nothing of pytest's may run on in this process
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(status if pid else 0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        text = stream.read()
    assert os.waitstatus_to_exitcode(os.waitpid(forking, 0)[1]) == 0, text
    known, path, rest = text.split("\n", 2)
    return known == "True", path, rest


def test_a_child_is_born_in_its_cgroup(own: namespaces.NamespaceHandles, cgroup: str) -> None:
    """It is there before its first instruction, and no descriptor of the control group's is left in it."""

    def descriptors() -> str:
        found = []
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):  # the listing's own
                found.append(os.readlink(f"/proc/self/fd/{name}"))
        return "\n".join(found)

    born, path, links = told(own, cgroup, descriptors)
    assert born
    assert path.endswith(f"/{os.path.basename(cgroup)}")
    assert cgroup not in links.splitlines()


def test_a_fork_with_other_threads_is_the_c_librarys(own: namespaces.NamespaceHandles, cgroup: str) -> None:
    """Its handlers must run then: a lock of malloc's that another thread holds would stay locked in the child."""
    born, path, _ = told(own, cgroup, before=threading.Thread(target=signal.pause, daemon=True).start)
    assert not born
    assert not path.endswith(f"/{os.path.basename(cgroup)}")


@pytest.mark.parametrize("what", ["no cgroup", "gone"])
def test_a_control_group_that_cannot_be_entered(
    own: namespaces.NamespaceHandles, cgroup: str, tmp_path: Path, what: str
) -> None:
    """The child is born outside of it, knows it, and will be told why when it enters the other way."""
    directory = f"{cgroup}/removed"
    if what == "no cgroup":
        directory = str(tmp_path)
    else:
        os.mkdir(directory)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    if what == "gone":
        os.rmdir(directory)
    try:
        born, path, _ = told(own, f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    assert not born
    assert not path.endswith("/removed")


@pytest.mark.parametrize("errno", [ENOSYS, EPERM])
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the filter is written for x86_64")
def test_a_filter_that_refuses_clone3(own: namespaces.NamespaceHandles, cgroup: str, errno: int) -> None:
    """Docker's says EPERM or ENOSYS, by its age: the child is forked all the same."""
    # Classic BPF (seccomp(2)): load the call's number; if it is clone3's, return the errno; else allow.
    program = b"".join(
        struct.pack("=HBBI", *line)
        for line in [
            (0x20, 0, 0, 0),
            (0x15, 0, 1, libc.NUMBERS["clone3"]),
            (0x06, 0, 0, 0x00050000 | errno),
            (0x06, 0, 0, 0x7FFF0000),
        ]
    )

    def refuse() -> None:
        capabilities.no_new_privs()
        seccomp.install(program)

    born, path, _ = told(own, cgroup, before=refuse)
    assert not born
    assert not path.endswith(f"/{os.path.basename(cgroup)}")


def signalled() -> str:
    """Tell whether another thread's signal finds this process's first one."""
    got: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _: got.append(number))
    main = threading.get_ident()
    thread = threading.Thread(target=lambda: signal.pthread_kill(main, signal.SIGUSR1))
    thread.start()
    thread.join()
    return str(got == [signal.SIGUSR1])


def test_signals_find_the_childs_first_thread(own: namespaces.NamespaceHandles, cgroup: str) -> None:
    """pthread_kill(3) of another thread goes by the id that the C library has noted."""
    born, _, rest = told(own, cgroup, signalled)
    assert born
    assert rest == "True"


@pytest.fixture
def users() -> Iterator[namespaces.NamespaceHandles]:
    """The namespaces of a crate of an ordinary user's, as far as they matter here."""
    reading, writing = os.pipe()
    holder = namespaces.fork_into("make namespaces", libc.CLONE_NEWUSER | libc.CLONE_NEWPID)
    if holder == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    handles = namespaces.NamespaceHandles.of_process(holder, frozenset({"user"}))
    yield handles
    handles.close()
    os.close(reading)
    os.close(writing)
    os.waitpid(holder, 0)


@pytest.mark.needs("root", "user namespaces")
def test_a_child_of_a_user_namespace(users: namespaces.NamespaceHandles, cgroup: str) -> None:
    """Where a helper forks it as a sibling of its own, it is born in the control group, and is our child, too."""
    born, path, rest = told(users, cgroup, signalled)
    assert born
    assert path.endswith(f"/{os.path.basename(cgroup)}")
    assert rest == "True"


@pytest.mark.needs("root", "user namespaces")
def test_a_child_of_a_user_namespace_without_a_cgroup(users: namespaces.NamespaceHandles, tmp_path: Path) -> None:
    """It is forked the other way, and signals find its first thread, too."""
    born, _, rest = told(users, str(tmp_path), signalled)
    assert not born
    assert rest == "True"


@pytest.mark.needs("root", "user namespaces")
def test_the_helper_is_killed_before_it_tells(
    users: namespaces.NamespaceHandles, cgroup: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A helper that dies when it has borne the child, and has not told its pid, leaves nothing, and holds nobody up."""
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        with pytest.raises(SandboxError, match="the process that should fork died"):
            namespaces.fork_inside(users, cgroup)


def test_a_dead_namespace_is_refused_as_ever(cgroup: str) -> None:
    """Nothing is born in it by either way."""
    if os.geteuid() != 0:
        pytest.skip("an ordinary user makes PID namespaces in user namespaces only")
    holder = namespaces.fork_into("make a namespace", libc.CLONE_NEWPID)
    if holder == 0:
        signal.pause()
    handles = namespaces.NamespaceHandles.of_process(holder, frozenset())
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    with contextlib.closing(handles), pytest.raises((SandboxError, OSError), match="Cannot allocate memory"):
        namespaces.fork_inside(handles, cgroup)
    # Our own children are born where they always were.
    assert os.waitpid(os.spawnv(os.P_NOWAIT, "/bin/true", ["true"]), 0)[1] == 0
