"""The files and directories of a control group, in a temporary directory."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import cgroupfs
from pytest_crate.kernel.cgroupfs import Owner, Refusal
from pytest_crate.spec import CrateSpec


def test_missing_counter_is_unknown(tmp_path: Path) -> None:
    """A file that the kernel does not have reads as None, a table of it as empty."""
    assert cgroupfs.read_number(f"{tmp_path}/memory.peak") is None
    assert cgroupfs.read_table(f"{tmp_path}/memory.events") == {}
    assert cgroupfs.read_cpus(f"{tmp_path}/cpuset.cpus") == ()


def test_counters_are_read(tmp_path: Path) -> None:
    """Numbers, tables and CPU lists are read as the kernel writes them."""
    (tmp_path / "number").write_text("67108864\n")
    (tmp_path / "table").write_text("low 0\noom_kill 3\n")
    (tmp_path / "cpus").write_text("0-2,7\n")
    assert cgroupfs.read_number(f"{tmp_path}/number") == 67108864
    assert cgroupfs.read_table(f"{tmp_path}/table") == {"low": 0, "oom_kill": 3}
    assert cgroupfs.read_cpus(f"{tmp_path}/cpus") == (0, 1, 2, 7)


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (cgroupfs.read_number, "max\n"),
        (cgroupfs.read_number, ""),
        (cgroupfs.read_table, "oom_kill many\n"),
        (cgroupfs.read_table, "oom_kill\n"),
        (cgroupfs.read_cpus, "all\n"),
    ],
)
def test_malformed_counter_is_an_error(tmp_path: Path, read: object, text: str) -> None:
    """A file that says something else than a count is an error that names it: it is never taken for 0 or unknown."""
    path = tmp_path / "counter"
    path.write_text(text)
    assert callable(read)
    with pytest.raises(SandboxError, match="not understood") as caught:
        read(str(path))
    assert caught.value.path == str(path)


def test_unreadable_counter_is_an_error(tmp_path: Path) -> None:
    """A failure other than a missing file is not taken for a missing file."""
    with pytest.raises(SandboxError) as caught:
        cgroupfs.read_number(str(tmp_path))
    assert (caught.value.errno, caught.value.path) == (errno.EISDIR, str(tmp_path))


def test_processes_are_those_of_the_whole_tree(tmp_path: Path) -> None:
    """Processes of control groups below count too; each once, and pid 0, which kill(2) takes for us, never."""
    (tmp_path / "below").mkdir()
    (tmp_path / "cgroup.procs").write_text("30\n0\n4\n")
    (tmp_path / "below" / "cgroup.procs").write_text("4\n5\n")
    assert cgroupfs.processes([str(tmp_path), str(tmp_path / "gone")]) == (4, 5, 30)


def test_kill_gives_up_on_what_does_not_end(tmp_path: Path) -> None:
    """A process that is still listed when the time is up is an error that names its pid."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        (tmp_path / "cgroup.procs").write_text(f"{process.pid}\n")
        with pytest.raises(SandboxError, match=rf"there are still pids {process.pid}$"):
            cgroupfs.kill_processes([str(tmp_path)], patience_sec=0.05)
    assert process.returncode == -9


def test_directory_is_removed_with_those_below(tmp_path: Path) -> None:
    """Removing takes nested control groups along, and one that is gone is no error."""
    (tmp_path / "run/leaf/nested").mkdir(parents=True)
    (tmp_path / "run/other").mkdir()
    cgroupfs.remove_directory(f"{tmp_path}/run")
    cgroupfs.remove_directory(f"{tmp_path}/run")
    assert list(tmp_path.iterdir()) == []


def test_directory_that_holds_something_else_is_not_removed(tmp_path: Path) -> None:
    """What is no empty control group stays, and the error names it."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/file").touch()
    with pytest.raises(SandboxError) as caught:
        cgroupfs.remove_directory(f"{tmp_path}/run")
    assert (caught.value.errno, caught.value.path) == (errno.ENOTEMPTY, f"{tmp_path}/run")
    assert (tmp_path / "run/file").exists()


def test_directory_is_made_once(tmp_path: Path) -> None:
    """A crate's control group must be new, a run's may be there already."""
    path = f"{tmp_path}/leaf"
    cgroupfs.make_directory(path)
    cgroupfs.make_directory(path, exist_ok=True)
    with pytest.raises(SandboxError) as caught:
        cgroupfs.make_directory(path)
    assert (caught.value.errno, caught.value.syscall, caught.value.path) == (errno.EEXIST, "mkdir", path)


def test_memory_limit_wants_a_swap_limit() -> None:
    """Swap is limited with memory, pids only if someone set the number: the built-in default is not insisted on."""
    assert cgroupfs.wanted_limits(CrateSpec()) == ()
    assert cgroupfs.wanted_limits(CrateSpec(memory_bytes=4096)) == ("memory", "swap")
    assert cgroupfs.wanted_limits(CrateSpec(asked=frozenset({"pids"}))) == ("pids",)
    assert cgroupfs.wanted_limits(CrateSpec(pids=10, cpu_quota_usec=1000, cpuset=(1,))) == ("cpus", "cpuset", "pids")
    assert cgroupfs.wanted_limits(CrateSpec(pids=None, asked=frozenset({"pids"}))) == ()


def test_cpu_that_is_not_ours_is_a_missing_limit() -> None:
    """A cpuset with a CPU that we may not use can't be enforced; the reason names the CPU."""
    (missing,) = cgroupfs.missing_limits(
        CrateSpec(cpuset=(0, 6, 7)), limits=frozenset({"cpuset"}), refusals={}, available_cpus=(0, 1)
    )
    assert (missing.key, missing.reason) == ("cpuset", "CPU 6, 7 is not among those that we may use")


def test_swap_areas_are_counted_past_the_heading(tmp_path: Path) -> None:
    """/proc/swaps with only its heading means no swap."""
    swaps = tmp_path / "swaps"
    swaps.write_text("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n")
    assert not cgroupfs.swap_exists(str(tmp_path))
    with swaps.open("a") as file:
        file.write("/dev/sda2                               partition\t999420\t\t0\t\t-2\n")
    assert cgroupfs.swap_exists(str(tmp_path))


@pytest.mark.parametrize(
    "name",
    ["pytest-crate", "pytest-crate-1-2", "pytest-crate-1-2-3-4", "pytest-crate-a-2-3", "1-2-3", "pytest-crate---"],
)
def test_foreign_names_have_no_owner(name: str) -> None:
    """A directory whose name is not exactly ours is never taken for a run's."""
    assert Owner.from_name(name) is None


def test_owner_survives_its_name() -> None:
    """A name gives back the owner that it was made of."""
    owner = Owner(pid=12, start_ticks=34, pid_namespace=56)
    assert str(owner) == "pytest-crate-12-34-56"
    assert Owner.from_name(str(owner)) == owner


def test_stale_run_directories_are_removed(tmp_path: Path) -> None:
    """A run whose owner has ended, even if nobody has reaped it, or whose pid is another process's by now, is removed;
    one whose owner lives, one of another pid namespace and what is not ours stay."""
    ours = Owner.of_process(os.getpid())
    assert ours is not None
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        ended = Owner.of_process(process.pid)
        assert ended is not None
        (tmp_path / str(ended)).mkdir()
        assert cgroupfs.remove_stale([str(tmp_path)]) == ()
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert cgroupfs.remove_stale([str(tmp_path)]) == (f"{tmp_path}/{ended}",)
    (tmp_path / str(ended)).mkdir()
    reused = Owner(pid=ours.pid, start_ticks=ours.start_ticks - 1, pid_namespace=ours.pid_namespace)
    elsewhere = Owner(pid=ended.pid, start_ticks=1, pid_namespace=ours.pid_namespace + 1)
    for kept in (str(ours), str(elsewhere), "pytest-crate", "system.slice"):
        (tmp_path / kept).mkdir()
    (tmp_path / str(reused) / "leaf").mkdir(parents=True)
    assert set(cgroupfs.remove_stale([str(tmp_path), str(tmp_path / "gone")])) == {
        f"{tmp_path}/{ended}",
        f"{tmp_path}/{reused}",
    }
    assert {path.name for path in tmp_path.iterdir()} == {str(ours), str(elsewhere), "pytest-crate", "system.slice"}


def test_stale_run_that_resists_is_left(tmp_path: Path) -> None:
    """A stale run directory that can't be removed keeps neither a run from starting nor the next from removal."""
    here = Owner.of_process(os.getpid())
    assert here is not None
    stuck, other = (Owner(pid=here.pid, start_ticks=ticks, pid_namespace=here.pid_namespace) for ticks in (1, 2))
    (tmp_path / str(stuck)).mkdir()
    (tmp_path / str(stuck) / "file").touch()
    (tmp_path / str(other)).mkdir()
    assert cgroupfs.remove_stale([str(tmp_path)]) == (f"{tmp_path}/{other}",)
    assert (tmp_path / str(stuck)).exists()


@pytest.mark.parametrize(
    ("number", "path", "version", "refusal"),
    [
        pytest.param(
            errno.EROFS,
            "/sys/fs/cgroup/pytest-crate-1",
            2,
            Refusal(
                reason="the cgroup file system is read-only (/sys/fs/cgroup)",
                hint="Podman, cgroup v2: --security-opt unmask=ALL --cgroups=split; Docker, or cgroup v1: --privileged",
            ),
            id="read-only",
        ),
        pytest.param(
            errno.EBUSY,
            "/sys/fs/cgroup/a/cgroup.subtree_control",
            2,
            Refusal(
                reason="/sys/fs/cgroup/a has processes of its own, so its children get no controllers",
                hint="move them into a child cgroup first, or name an empty cgroup as the parent",
            ),
            id="internal processes",
        ),
        pytest.param(
            errno.EACCES,
            "/sys/fs/cgroup/a/pytest-crate-1",
            2,
            Refusal(
                reason="the cgroup is not delegated to this user (/sys/fs/cgroup/a)",
                hint="systemd-run --user --scope -p Delegate=yes pytest",
            ),
            id="not delegated",
        ),
        pytest.param(
            errno.EACCES,
            "/sys/fs/cgroup/memory/pytest-crate-1",
            1,
            Refusal(
                reason="cgroup v1 is writable for root only (/sys/fs/cgroup/memory)",
                hint="run pytest as root, or boot with systemd.unified_cgroup_hierarchy=1 for cgroup v2",
            ),
            id="v1 user",
        ),
        pytest.param(
            errno.EAGAIN,
            "/sys/fs/cgroup/pytest-crate-1",
            2,
            Refusal(reason="mkdir /sys/fs/cgroup/pytest-crate-1: Resource temporarily unavailable"),
            id="other",
        ),
    ],
)
def test_refusal_is_explained(number: int, path: str, version: int, refusal: Refusal) -> None:
    """Each way in which a host refuses a control group has a reason in words and, where there is one, a remedy."""
    error = SandboxError("create a cgroup", syscall="mkdir", path=path, errno=number)
    assert cgroupfs.explain_refusal(error, version=version) == refusal
