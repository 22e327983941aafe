"""Users of a real user namespace: maps written by another process, and becoming somebody for good."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import libc, namespaces
from pytest_crate.kernel.capabilities import last_capability, read_capabilities
from pytest_crate.kernel.identity import Identity, become, single_id_map, whole_id_map, write_id_maps
from pytest_crate.sandbox import child

pytestmark = [
    pytest.mark.needs("root"),
    # A fork with threads about, as in a worker of pytest-xdist, warns since Python 3.12; the children here are simple.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

ALICE = Identity(uid=1000, gid=1001, groups=(4, 27, 1001), home="/home/alice", name="alice")
ROOT = Identity(uid=0, gid=0, groups=(0,), home="/root", name="root")
NOBODY = Identity(uid=65534, gid=65534, groups=(65534,), home="/", name="nobody")


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


def mapped(work: Callable[[], object], uid_map: str, gid_map: str, *, deny_setgroups: bool = False) -> Any:
    """Return what the work returns in a new user namespace whose maps a helper process has written."""

    def inside() -> object:
        ready, go = os.pipe(), os.pipe()
        target = os.getpid()
        helper = os.fork()
        if helper == 0:
            os.close(ready[1])  # so that the end of the other process ends this one
            os.read(ready[0], 1)
            try:
                write_id_maps(target, uid_map, gid_map, deny_setgroups=deny_setgroups)
                os.write(go[1], b"\n")
            except SandboxError as error:
                os.write(go[1], str(error).encode())
            os._exit(0)
        libc.unshare("test", libc.CLONE_NEWUSER)
        os.write(ready[1], b"\n")
        answer = os.read(go[0], 4096)
        os.waitpid(helper, 0)
        return work() if answer == b"\n" else answer.decode()

    return in_child(inside)


def who() -> list[object]:
    """Return the caller's ids and groups."""
    return [list(os.getresuid()), list(os.getresgid()), sorted(os.getgroups())]


def refusal(work: Callable[[], object]) -> list[object]:
    """Return the errno, the call and the path of the error that the work ends in."""
    try:
        work()
    except SandboxError as error:
        return [error.errno, error.syscall, error.path]
    return ["no error"]


def test_whole_map_keeps_every_owner(tmp_path: Path) -> None:
    """In the namespace, files keep their owners, root has every capability, and can become any user."""
    for uid in (0, 1000, 123456789):
        path = tmp_path / str(uid)
        path.touch()
        os.chown(path, uid, uid + 1)

    def work() -> object:
        owners = {path.name: [path.stat().st_uid, path.stat().st_gid] for path in tmp_path.iterdir()}
        capabilities = read_capabilities().effective
        become(ALICE)
        return [owners, capabilities & 0xFFFFFFFF, who()]

    owners, capabilities, ids = mapped(work, *whole_id_map())
    assert owners == {"0": [0, 1], "1000": [1000, 1001], "123456789": [123456789, 123456790]}
    assert capabilities == 0xFFFFFFFF
    assert ids == [[1000] * 3, [1001] * 3, [4, 27, 1001]]


def test_without_a_map_there_is_nobody() -> None:
    """The control: before the maps are written every id reads as the overflow id, and becoming root fails."""

    def work() -> object:
        libc.unshare("test", libc.CLONE_NEWUSER)
        return [who()[:2], refusal(lambda: become(ROOT, keep_groups=True))]

    assert in_child(work) == [[[65534] * 3, [65534] * 3], [errno.EINVAL, "setresgid", "0"]]


def test_whole_map_in_a_smaller_namespace() -> None:
    """Where the writer itself lives in a namespace with few ids, its own map shows what can be mapped."""

    def nested() -> object:
        own = [Path(f"/proc/self/{kind}_map").read_text(encoding="ascii") for kind in ("uid", "gid")]
        return [mapped(who, *whole_id_map()), mapped(who, *whole_id_map(*own))]

    refused, ids = mapped(nested, "0 0 1000\n2000 2000 10\n", "0 0 1000\n2000 2000 10\n")
    assert "uid_map" in refused
    assert f"errno {errno.EPERM}" in refused
    assert ids[:2] == [[0] * 3, [0] * 3]


def test_single_map_of_an_ordinary_user() -> None:
    """A user without privileges becomes root of its namespace, whose setgroups is denied."""

    def work() -> object:
        become(NOBODY)
        # Leaving root closes /proc/self to the process itself (prctl(2), PR_SET_DUMPABLE).
        libc.prctl("test", libc.PR_SET_DUMPABLE, 1)
        libc.unshare("test", libc.CLONE_NEWUSER)
        write_id_maps("self", *single_id_map(NOBODY.uid, NOBODY.gid), deny_setgroups=True)
        become(ROOT, keep_groups=True)
        return [who()[:2], Path("/proc/self/setgroups").read_text(encoding="utf-8"), refusal(lambda: become(ROOT))]

    assert in_child(work) == [[[0] * 3, [0] * 3], "deny\n", [errno.EPERM, "setgroups", "(0,)"]]


def test_single_map_needs_setgroups_denied() -> None:
    """An ordinary user who does not deny setgroups is refused the gid map (CVE-2014-8989)."""

    def work() -> object:
        become(NOBODY)
        libc.prctl("test", libc.PR_SET_DUMPABLE, 1)
        libc.unshare("test", libc.CLONE_NEWUSER)
        maps = single_id_map(NOBODY.uid, NOBODY.gid)
        return refusal(lambda: write_id_maps("self", *maps, deny_setgroups=False))

    assert in_child(work) == [errno.EPERM, "write", "/proc/self/gid_map"]


def test_maps_are_written_once() -> None:
    """A second map is refused with the value that was tried."""

    def work() -> object:
        try:
            write_id_maps("self", "0 5 1\n", "0 5 1\n", deny_setgroups=False)
        except SandboxError as error:
            return str(error)
        return None

    assert "value '0 5 1\\n'" in mapped(work, *whole_id_map())


def test_become_is_for_good() -> None:
    """After becoming a user there are its groups only, no capability, and no way back to root."""

    def work() -> object:
        os.setgroups([0, 1, 2])
        become(ALICE)
        capabilities = read_capabilities()
        back = refusal(lambda: become(ROOT, keep_groups=True))
        return [who(), capabilities.permitted, capabilities.effective, back, who()]

    alice = [[1000] * 3, [1001] * 3, [4, 27, 1001]]
    assert in_child(work) == [alice, 0, 0, [errno.EPERM, "setresgid", "0"], alice]


def test_become_with_large_ids() -> None:
    """The largest id of all can be had: it is neither negative nor "no change"."""
    identity = Identity(uid=2**32 - 2, gid=2**32 - 2, groups=(2**32 - 2,), home="/", name="last")

    def work() -> object:
        become(identity)
        return who()

    assert in_child(work) == [[2**32 - 2] * 3, [2**32 - 2] * 3, [2**32 - 2]]


def test_become_no_id() -> None:
    """An identity whose id means "no change" to the kernel ends in an error, not in a payload that is still root."""
    nobody_at_all = Identity(uid=2**32 - 1, gid=0, groups=(0,), home="/", name="-1")

    def work() -> object:
        try:
            become(nobody_at_all)
        except SandboxError as error:
            return [error.errno, error.detail]
        return None

    assert in_child(work) == [None, "4294967295 is no id"]


def test_a_user_that_cannot_be_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What keeps the user database from being read is an error: without it a number's group would be root's."""

    def refuse(step: str, *_: object) -> int:
        raise SandboxError(step, syscall="openat2", errno=errno.EMFILE)

    monkeypatch.setattr(libc, "open_in_root", refuse)
    with pytest.raises(SandboxError) as error:
        child.who_is("1000")
    assert error.value.errno == errno.EMFILE


def entry_without_namespaces() -> child.Entry:
    return child.Entry(
        enter_files=(),
        cgroup=None,
        namespaces=namespaces.NamespaceHandles(pid=-1, others={}),
        keep=frozenset(),
        last_capability=last_capability(),
        seccomp=b"",
        user_namespace=None,
        root=True,
        one_user=False,
    )


def test_who_enters_for_a_program_hides_again() -> None:
    """On a program's way in capabilities are kept, the ids change, it hides, and only then they are given up."""
    made: list[tuple[object, ...]] = []

    def call(step: str, name: str, /, *args: libc.Argument, **keywords: Any) -> int:
        made.append((name, *args[:2]))
        return 0

    program = child.Program(argv=("true",), env={}, cwd="/", user="nobody", terminal=False)
    child.enter_as(program, entry_without_namespaces(), NOBODY, (), (0, 1, 2), joined=True, call=call)
    changed = [number for number, (name, *_) in enumerate(made) if name in ("setgroups", "setresgid", "setresuid")]
    hides, keeps = ("prctl", libc.PR_SET_DUMPABLE, 0), ("prctl", libc.PR_SET_KEEPCAPS, 1)
    assert made.index(keeps) < changed[0] <= changed[-1] < made.index(hides)
    assert made.index(hides) < [name for name, *_ in made].index("capset")


def test_who_becomes_a_user_stays_hidden() -> None:
    """A process that enters a crate can't be looked into by that user's others at any moment: not even where a change
    of ids takes back what hides it, as the kernel does where fs.suid_dumpable is 1."""
    asking, answering = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(asking[0])
            seen_from = False

            def call(step: str, name: str, /, *args: libc.Argument, **keywords: Any) -> int:
                nonlocal seen_from
                result = libc.syscall(step, name, *args, **keywords)
                if name == "setresuid":
                    libc.syscall("as the kernel would", "prctl", libc.PR_SET_DUMPABLE, 1, 0, 0, 0)
                    seen_from = True
                if seen_from:
                    os.write(asking[1], b"?")
                    os.read(answering[0], 1)
                return result

            child.hide()
            child.confine(entry_without_namespaces(), NOBODY, hidden=True, call=call)
            os.write(asking[1], b"!")
        finally:
            os._exit(0)
    os.close(asking[1])
    os.close(answering[0])
    moments = []
    while os.read(asking[0], 1) == b"?":
        looking = ["readlink", f"/proc/{pid}/exe"]
        done = subprocess.run(looking, user=NOBODY.uid, group=NOBODY.gid, extra_groups=[], stdout=-1, check=False)
        moments.append(done.stdout)
        os.write(answering[1], b"!")
    os.close(asking[0])
    os.close(answering[1])
    assert os.waitpid(pid, 0)[1] == 0
    assert moments == [b""] * 5  # hidden again, two calls for the capabilities, no new privileges
