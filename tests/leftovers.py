"""The check that no test of ours leaves anything behind: what there is before each, and what there is after it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from pytest_crate.images import default_store_root
from pytest_crate.kernel import cgroup, libc

PATIENCE_SECONDS = 10.0
"""How long what ends by itself may take, such as a launcher whose pytest was killed."""

WITHOUT_KERNEL = {"unit", "properties", "parity"}
"""Directories of tests that make no crates, or (other people's) are compared by a run of their own."""

GUESTS = {"guest_image"}
"""Fixtures of tests whose crates are on another machine."""

CGROUPS = "/sys/fs/cgroup"
TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/var/lib")
PREFIX = "pytest-crate-"

# Of other programs, and of another run that makes a guest's disk in the tests' cache.
_OTHERS = re.compile(r"/(tmp|var/tmp|run)/(?!pytest-)|.*/pytest-crate-tests/")

Family = set[int]
"""The pids of this process and of all that descend from it."""


def _is_others(name: str, family: Family) -> bool:
    """Tell from the name of a control group or a temporary file whether it is another run's that lives, or unknown."""
    owner = cgroup.Owner.from_name(name.removesuffix(".scope"))  # systemd's of that run
    if owner is not None:
        return owner.pid not in family and cgroup.Owner.of_process(owner.pid) == owner
    numbers = [int(number) for number in re.findall(r"-(\d+)\b", name)]
    return not numbers or any(number not in family and psutil.pid_exists(number) for number in numbers)


# -- what there is, by kind --------------------------------------------------------------------------


def mounts(_: Family) -> set[str]:
    """Return the mounts that this process sees, but for those of others that come and go."""
    found = set()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, kind = line.split(" - ")
        # Of proc_pid_mountinfo(5): the mount's number, what of the file system is mounted, and where.
        words = fields.split()
        if not _OTHERS.match(words[4]):
            found.add(f"{words[0]} {words[3]} on {words[4]}, {kind}")
    return found


def cgroups(family: Family | None) -> set[str]:
    """Return the control groups of runs of pytest-crate, wherever; those of other runs only if there is no family."""
    found: set[str] = set()
    pending = [CGROUPS]
    while pending:
        directory = pending.pop()
        # A control group has two links, and one more for each below it: most have none, and need not be looked through.
        with contextlib.suppress(OSError):  # it has been removed
            if directory == CGROUPS or os.stat(directory).st_nlink > 2:
                with os.scandir(directory) as entries:
                    for entry in entries:
                        if entry.name.startswith(PREFIX):
                            found.add(entry.path)
                        elif entry.is_dir(follow_symlinks=False):
                            pending.append(entry.path)
    return {path for path in found if family is None or not _is_others(os.path.basename(path), family)}


def leftover_cgroups() -> set[str]:
    """Return the control groups of runs of pytest-crate, but for those of other runs."""
    return cgroups({os.getpid(), *descendants()})


def descendants() -> set[int]:
    """Return the pids of all processes that descend from this one; orphans do, as it is their subreaper."""
    return {process.pid for process in psutil.Process().children(recursive=True)}


def processes(family: Family) -> set[str]:
    """Return the processes that descend from this one."""
    found = set()
    for pid in family - {os.getpid()}:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            # Not their names, which may change.
            found.add(f"{pid} of {process.create_time()}")
    return found


def namespaces(family: Family) -> set[str]:
    """Return the namespaces that this process and its descendants are in, or hold open, and those that are mounted."""
    found = {line for line in mounts(family) if ", nsfs " in line}
    for pid in family:
        for place in (f"/proc/{pid}/ns", f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):  # it has ended
                for name in os.listdir(place):
                    target = _target(f"{place}/{name}")
                    if target.endswith("]") and not target.startswith(("socket:", "pipe:", "anon_inode:")):
                        found.add(target)
    return found


def open_files(_: Family) -> set[str]:
    """Return the open descriptors of this process, and what each refers to."""
    links = {name: _target(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")}
    # Without the listing's own descriptor, which is closed again.
    return {f"{name} {target}" for name, target in links.items() if target}


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def temporary_files(family: Family | None) -> set[str]:
    """Return what pytest-crate, or a test of its own, has put into the places for what is temporary.

    That of other runs, only if there is no family.
    """
    found: set[str] = set()
    for place in TEMPORARY:
        with contextlib.suppress(OSError):
            found.update(f"{place}/{name}" for name in os.listdir(place) if name.startswith(PREFIX))
    return {path for path in found if family is None or not _is_others(os.path.basename(path), family)}


def locks(family: Family) -> set[str]:
    """Return the locks on files that this process and its descendants hold (proc_locks(5))."""
    ours = set(map(str, family))
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return {f"{fields[1]} by {fields[4]} of {fields[5]}" for fields in lines if fields[1] != "->" and fields[4] in ours}


def stored(root: str, ours: str) -> set[str]:
    """Return what is in an image store of images whose archive is below a directory."""
    found = set()
    for path in Path(root).glob("*/images/*/image.json"):
        with contextlib.suppress(FileNotFoundError):  # it has been removed
            if json.loads(path.read_text())["origin"].startswith(f"{ours}/"):
                found.add(str(path.parent))
    return found


# -- before and after --------------------------------------------------------------------------------

STORE = pytest.StashKey[str]()
"""On the config: the image store of the user who runs the tests."""


def pytest_configure(config: pytest.Config) -> None:
    # Looked up once: many a test sets another HOME.
    config.stash[STORE] = default_store_root(os.environ)


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> tuple[str, str]:
    """The image store of the user who runs the tests, and where the tests make images of their own."""
    return pytestconfig.stash[STORE], str(tmp_path_factory.getbasetemp())


KINDS: Mapping[str, Callable[[Family], set[str]]] = {
    "mount": mounts,
    "control group": cgroups,
    "process": processes,
    "namespace": namespaces,
    "descriptor": open_files,
    "temporary file": temporary_files,
    "lock": locks,
}


def what_is_there(places: tuple[str, str]) -> dict[str, set[str]]:
    """Return all that a test could leave behind, by kind."""
    family = {os.getpid(), *descendants()}
    return {**{kind: look(family) for kind, look in KINDS.items()}, "image in the user's store": stored(*places)}


def what_was_there(places: tuple[str, str]) -> dict[str, set[str]]:
    """Return the same, and what other runs have: they may end, and leave it, before the test does."""
    return {**what_is_there(places), "control group": cgroups(None), "temporary file": temporary_files(None)}


def what_is_new(places: tuple[str, str], before: Mapping[str, set[str]]) -> list[str]:
    """Return what is there now and was not before, in words; of the kinds that were looked for."""
    now = what_is_there(places)
    return [f"{kind}: {each}" for kind in before for each in sorted(now[kind] - before[kind])]


def _reap_orphans(known: set[int]) -> None:
    for pid in descendants() - known:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            continue  # a child's child, or reaped by subprocess meanwhile


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest, places: tuple[str, str]) -> Iterator[None]:
    """After each test: no new mount, control group, process, namespace, descriptor, temporary file, lock or image."""
    if WITHOUT_KERNEL & set(request.node.path.parts):
        yield
        return
    known = descendants()
    before = what_was_there(places)
    if GUESTS & set(request.fixturenames):
        # Minutes are enough for another run to begin here, to be killed, and to leave what only the next one removes.
        del before["control group"], before["temporary file"]
    libc.prctl("adopt orphans", libc.PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            _reap_orphans(known)
            left = what_is_new(places, before)
            if not left or time.monotonic() > end:
                break
            time.sleep(0.02)
    finally:
        libc.prctl("adopt no more orphans", libc.PR_SET_CHILD_SUBREAPER, 0)
    if left:
        pytest.fail("the test has left behind\n  " + "\n  ".join(left), pytrace=False)
