"""Processes moved out of a v2 control group's way and back, on the real kernel."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import cgroup_v2, cgroupfs, delegation
from pytest_crate.kernel.cgroup_v2 import ParentV2
from pytest_crate.kernel.hierarchies import Hierarchies

pytestmark = pytest.mark.needs("root", "cgroup v2")


@pytest.fixture
def place() -> Iterator[Path]:
    """A control group with three processes; whatever is in it at the end is killed."""
    point = next(Hierarchies.of_process().mounts_of(), None)
    assert point is not None
    directory = Path(point.point, f"pytest-crate-test-{os.getpid()}")
    directory.mkdir()
    processes = [subprocess.Popen(["sleep", "60"]) for _ in range(3)]
    for process in processes:
        (directory / "cgroup.procs").write_text(str(process.pid))
    yield directory
    for process in processes:
        process.kill()
        process.wait()
    # What they had forked is in it until it is reaped.
    cgroupfs.remove_directory(str(directory))


def members(directory: Path) -> set[int]:
    return {int(line) for line in (directory / "cgroup.procs").read_text().split()}


def test_room_is_made_and_given_back(place: Path) -> None:
    """All processes go to the leaf and come back; the leaf goes. Twice is as good as once."""
    before = members(place)
    assert delegation.has_processes(str(place))
    delegation.make_room(str(place))
    delegation.make_room(str(place))
    assert (members(place), members(place / delegation.LEAF)) == (set(), before)
    assert not delegation.has_processes(str(place))
    assert delegation.above_leaf(str(place / delegation.LEAF)) == str(place)
    delegation.put_back(str(place))
    delegation.put_back(str(place))
    assert (members(place), list(place.glob("*/"))) == (before, [])


def test_nothing_is_put_back_under_others(place: Path) -> None:
    """While another run, or somebody else, has a control group there the processes stay in the leaf."""
    delegation.make_room(str(place))
    (place / "other").mkdir()
    delegation.put_back(str(place))
    assert members(place) == set()
    (place / "other").rmdir()


def test_processes_that_fork_meanwhile_are_moved_too(place: Path) -> None:
    """New processes are met in another round."""
    script = "while :; do /bin/true; done"
    forking = subprocess.Popen(["sh", "-c", f'echo $$ >"{place}/cgroup.procs"; {script}'], start_new_session=True)
    try:
        while forking.pid not in members(place):
            assert forking.poll() is None
            time.sleep(0.001)
        delegation.make_room(str(place))
        assert members(place) == set()
    finally:
        os.killpg(forking.pid, signal.SIGKILL)
        forking.wait()


def test_a_parent_with_processes_is_not_ours_to_move(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configured parent with processes is refused, if it has controllers to give, and nothing of it is changed."""
    before = members(place)
    real = cgroupfs.read_text
    # This host's v2 hierarchy has no controller; the rule is the same for each.
    monkeypatch.setattr(
        cgroup_v2, "read_text", lambda path: "memory" if path.endswith("cgroup.controllers") else real(path)
    )
    made = cgroup_v2.make_parent(str(place), run_name="pytest-crate-1-1-1", how="configured cgroup")
    assert not isinstance(made, ParentV2)
    assert made.reason == f"{place} has processes of its own, so its children get no controllers"
    assert (members(place), list(place.glob("*/"))) == (before, [])


def test_runs_wait_for_each_other(place: Path) -> None:
    """Who changes a control group has it alone; who waits too long is told."""
    held = threading.Event()
    release = threading.Event()

    def hold() -> None:
        with delegation.held(str(place)):
            held.set()
            release.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(30)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(delegation, "PATIENCE_SEC", 0.05)
            with pytest.raises(SandboxError, match="hold a cgroup"), delegation.held(str(place)):
                pass
    finally:
        release.set()
        thread.join()
    with delegation.held(str(place)):
        pass
