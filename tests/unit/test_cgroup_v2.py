"""Control groups of version 2, on a fake file system in a temporary directory."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import cgroup_v2, delegation
from pytest_crate.kernel.cgroup_v2 import CgroupV2, ParentV2
from pytest_crate.kernel.cgroupfs import Events, Owner, Refusal
from pytest_crate.spec import CrateSpec
from pytest_crate.usage import Usage

ALL = frozenset({"memory", "swap", "cpus", "cpuset", "pids"})

# As kernel 6.1 writes them.
PRESSURE = "some avg10=0.00 avg60=1.20 avg300=0.00 total={}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n"
FILES = {
    "cpu.stat": "usage_usec 900\nuser_usec 600\nsystem_usec 300\nnr_periods 5\nnr_throttled 2\nthrottled_usec 77\n",
    "memory.peak": "67108864\n",
    "memory.stat": "anon 4096\nfile 8192\nkernel 1\nshmem 2048\n",
    "memory.events": "low 0\nhigh 0\nmax 31\noom 1\noom_kill 2\noom_group_kill 1\n",
    "pids.peak": "5\n",
    "pids.events": "max 3\n",
    "io.stat": "8:0 rbytes=4096 wbytes=512 rios=1 wios=1 dbytes=0 dios=0\n8:16 rbytes=1 wbytes=2 rios=1 wios=1\n",
    "cpu.pressure": PRESSURE.format(11),
    "memory.pressure": PRESSURE.format(22),
    "io.pressure": PRESSURE.format(33),
}
LIMIT_FILES = ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max", "cpuset.cpus")


def leaf(directory: Path, *, files: dict[str, str] = FILES, limits: frozenset[str] = ALL) -> CgroupV2:
    """Make a crate's control group with some files."""
    for name, text in files.items():
        (directory / name).write_text(text)
    return CgroupV2(str(directory), limits=limits)


def test_usage_is_read(tmp_path: Path) -> None:
    """Every field comes from its file; bytes are added up over devices, pressure is that of some tasks."""
    assert leaf(tmp_path).usage() == Usage(
        cpu_usage_usec=900,
        cpu_user_usec=600,
        cpu_system_usec=300,
        cpu_throttled_usec=77,
        cpu_nr_throttled=2,
        memory_peak_bytes=67108864,
        memory_anon_bytes=4096,
        memory_file_bytes=8192,
        memory_shmem_bytes=2048,
        memory_oom_kills=2,
        memory_max_events=31,
        pids_peak=5,
        pids_max_events=3,
        io_read_bytes=4097,
        io_write_bytes=514,
        cpu_pressure_usec=11,
        memory_pressure_usec=22,
        io_pressure_usec=33,
    )


def test_usage_without_controllers_is_cpu_time_only(tmp_path: Path) -> None:
    """cpu.stat is there without any controller; all else is unknown, not 0."""
    cgroup = leaf(tmp_path, files={"cpu.stat": "usage_usec 9\nuser_usec 6\nsystem_usec 3\n"})
    assert cgroup.usage() == Usage(cpu_usage_usec=9, cpu_user_usec=6, cpu_system_usec=3)
    assert cgroup.events() == Events(oom_kills=None, pids_max=None)


def test_io_without_a_device_is_none_at_all(tmp_path: Path) -> None:
    """With the io controller an empty io.stat means that nothing was read or written."""
    usage = leaf(tmp_path, files={"io.stat": ""}).usage()
    assert (usage.io_read_bytes, usage.io_write_bytes) == (0, 0)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("io.stat", "8:0 rbytes=many wbytes=0\n"),
        ("cpu.pressure", "full avg10=0.00 total=1\n"),
        ("cpu.pressure", "some avg10=0.00 total=\n"),
        ("memory.peak", "max\n"),
    ],
)
def test_malformed_usage_is_an_error(tmp_path: Path, name: str, text: str) -> None:
    """A counter that is not what the kernel documents is an error that names the file."""
    with pytest.raises(SandboxError, match="not understood") as caught:
        leaf(tmp_path, files={name: text}).usage()
    assert caught.value.path == f"{tmp_path}/{name}"


def test_limits_are_written(tmp_path: Path) -> None:
    """Each limit of the spec arrives in its file; under a memory limit the crate is killed as a whole."""
    cgroup = leaf(tmp_path, files=dict.fromkeys(LIMIT_FILES, ""))
    cgroup.limit(CrateSpec(memory_bytes=1 << 26, swap_bytes=1 << 20, pids=9, cpu_quota_usec=50_000, cpuset=(0, 2)))
    assert {name: (tmp_path / name).read_text() for name in LIMIT_FILES} == {
        "memory.max": "67108864",
        "memory.swap.max": "1048576",
        "memory.oom.group": "1",
        "pids.max": "9",
        "cpu.max": "50000 100000",
        "cpuset.cpus": "0,2",
    }


def test_only_the_limits_of_the_spec_are_written(tmp_path: Path) -> None:
    """What a spec does not limit, and what can't be enforced, stays as the kernel set it."""
    cgroup = leaf(tmp_path, files=dict.fromkeys(LIMIT_FILES, ""), limits=frozenset({"memory", "cpus", "cpuset"}))
    cgroup.limit(CrateSpec(memory_bytes=1 << 26))
    written = {name: (tmp_path / name).read_text() for name in LIMIT_FILES}
    assert {name: text for name, text in written.items() if text} == {"memory.max": "67108864", "memory.oom.group": "1"}


def test_refused_limit_is_an_error(tmp_path: Path) -> None:
    """A limit that can't be written is an error; the crate must not run without it."""
    with pytest.raises(SandboxError) as caught:
        leaf(tmp_path, files={}).limit(CrateSpec(pids=9))
    assert (caught.value.path, caught.value.errno) == (f"{tmp_path}/pids.max", errno.ENOENT)


@pytest.mark.parametrize(
    ("files", "full"),
    [
        ({"pids.max": "2\n", "pids.current": "1\n"}, False),
        ({"pids.max": "2\n", "pids.current": "2\n"}, True),
        ({"pids.max": "2\n", "pids.current": "3\n"}, True),
        ({"pids.max": "max\n", "pids.current": "3\n"}, False),
        ({}, False),
    ],
)
def test_full_of_tasks(tmp_path: Path, files: dict[str, str], full: bool) -> None:
    """It is with as many as its limit says, or more, and never without a limit."""
    assert leaf(tmp_path, files=files).full() is full


def test_populated_is_the_kernels_word(tmp_path: Path) -> None:
    """``populated`` counts processes that our pid namespace hides, too; a removed control group has none."""
    cgroup = leaf(tmp_path, files={"cgroup.events": "populated 1\nfrozen 0\n", "cgroup.procs": "0\n"})
    assert (cgroup.pids(), cgroup.populated()) == ((), True)
    (tmp_path / "cgroup.events").unlink()
    assert not cgroup.populated()


def test_kill_is_one_write_where_the_kernel_has_it(tmp_path: Path) -> None:
    """cgroup.kill is used, and the control group is empty afterwards."""
    leaf(tmp_path, files={"cgroup.kill": "", "cgroup.events": "populated 0\n"}).kill()
    assert (tmp_path / "cgroup.kill").read_text() == "1"


def test_kill_freezes_first_on_older_kernels(tmp_path: Path) -> None:
    """Without cgroup.kill the control group is frozen, so that nothing forks ahead of the signals."""
    leaf(tmp_path, files={"cgroup.freeze": "", "cgroup.procs": ""}).kill()
    assert (tmp_path / "cgroup.freeze").read_text() == "1"


def test_cgroup_is_entered_by_its_directory_or_procs(tmp_path: Path) -> None:
    """clone3 takes the directory; a process that is there already writes to cgroup.procs."""
    cgroup = CgroupV2("/sys/fs/cgroup/x", limits=ALL)
    assert (cgroup.directory, cgroup.enter_files) == ("/sys/fs/cgroup/x", ("/sys/fs/cgroup/x/cgroup.procs",))


def parent(directory: Path, *, swap: bool) -> ParentV2:
    """Make a run's directory with the memory controller only, of a kernel without swap accounting."""
    (directory / "swaps").write_text("Filename Type Size Used Priority\n" + "/swapfile file 1 0 -2\n" * swap)
    return ParentV2(
        str(directory),
        controllers=frozenset({"memory"}),
        refusals={"cpu": Refusal(reason="busy", hint="move")},
        how="own cgroup",
        proc_root=str(directory),
    )


def test_missing_limits_say_why(tmp_path: Path) -> None:
    """A controller that was refused and one that is not there: each has its own reason; swap is not accounted."""
    spec = CrateSpec(memory_bytes=4096, cpu_quota_usec=50_000, pids=3)
    assert {limit.key: (limit.reason, limit.hint) for limit in parent(tmp_path, swap=True).missing(spec)} == {
        "swap": (
            "there is no memory.swap.max, and the host has swap: a memory limit would not bite",
            "boot with swapaccount=1, or: sudo swapoff -a",
        ),
        "cpus": ("busy", "move"),
        "pids": ("the pids controller is not available", ""),
    }
    assert [limit.key for limit in parent(tmp_path, swap=False).missing(spec)] == ["cpus", "pids"]


def test_cpuset_must_be_of_our_cpus(tmp_path: Path) -> None:
    """The kernel takes any cpuset and uses what is left of it: a CPU that is not ours is a missing limit."""
    (tmp_path / "cpuset.cpus.effective").write_text("0-1\n")
    made = ParentV2(str(tmp_path), controllers=frozenset({"cpuset"}), refusals={}, how="own cgroup")
    assert made.missing(CrateSpec(cpuset=(0, 1))) == ()
    assert [limit.reason for limit in made.missing(CrateSpec(cpuset=(1, 2)))] == [
        "CPU 2 is not among those that we may use"
    ]


def test_parent_with_processes_gives_no_controllers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel refuses controllers to children of a control group with processes: the limits are missing with
    that reason, while usage and kill remain."""

    def busy(step: str, path: str, value: str) -> None:
        raise SandboxError(step, syscall="write", path=path, errno=errno.EBUSY)

    monkeypatch.setattr(cgroup_v2, "write_file", busy)
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (tmp_path / "cgroup.subtree_control").touch()
    made = cgroup_v2.make_parent(str(tmp_path), run_name="run", how="own cgroup")
    assert isinstance(made, ParentV2)
    assert made.limits == frozenset()
    (missing,) = made.missing(CrateSpec(pids=3))
    assert missing.reason == f"{tmp_path} has processes of its own, so its children get no controllers"
    assert made.create("leaf").directory == f"{tmp_path}/run/leaf"


def test_refused_run_directory_is_no_parent(tmp_path: Path) -> None:
    """Where the run's directory can't be made there is only the reason."""
    made = cgroup_v2.make_parent(f"{tmp_path}/gone", run_name="run", how="own cgroup")
    assert made == Refusal(reason=f"open {tmp_path}/gone: No such file or directory")


@pytest.mark.parametrize("shared", [False, True])
def test_stale_run_that_resisted_at_the_start_goes_at_the_end(tmp_path: Path, shared: bool) -> None:
    """What a killed run has left and can't be removed when this one starts is removed, if it can be, when it ends; then
    the processes that were in the control group are put back, if it was divided for a run."""
    here = Owner.of_process(os.getpid())
    assert here is not None
    stale = tmp_path / str(Owner(pid=here.pid, start_ticks=1, pid_namespace=here.pid_namespace))
    stale.mkdir()
    (stale / "file").touch()
    if shared:
        (tmp_path / delegation.LEAF).mkdir()
    made = cgroup_v2.make_parent(str(tmp_path), run_name="run", how="own cgroup")
    assert isinstance(made, ParentV2)
    assert stale.exists()
    (stale / "file").unlink()
    made.remove()
    assert list(tmp_path.iterdir()) == []
