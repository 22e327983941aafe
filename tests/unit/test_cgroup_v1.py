"""Control groups of version 1, on fake hierarchies in a temporary directory."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import cgroup_v1
from pytest_crate.kernel.cgroup_v1 import CgroupV1, ParentV1
from pytest_crate.kernel.cgroupfs import Events, Owner, Refusal
from pytest_crate.spec import CrateSpec
from pytest_crate.usage import Usage

ALL = frozenset({"memory", "swap", "cpus", "cpuset", "pids"})
BLKIO = "blkio.throttle.io_service_bytes_recursive"

# As kernel 6.18 writes them.
FILES = {
    "memory": {
        "memory.limit_in_bytes": "67108864\n",
        "memory.memsw.limit_in_bytes": "",
        "memory.max_usage_in_bytes": "67108864\n",
        "memory.failcnt": "2\n",
        "memory.memsw.failcnt": "10\n",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        "memory.stat": "cache 1\nrss 2\nshmem 3\ntotal_cache 8192\ntotal_rss 4096\ntotal_shmem 2048\n",
    },
    "cpu": {
        "cpu.cfs_period_us": "",
        "cpu.cfs_quota_us": "",
        "cpu.stat": "nr_periods 9\nnr_throttled 7\nthrottled_time 1234567\nnr_bursts 0\nburst_time 0\n",
    },
    "cpuacct": {
        "cpuacct.usage": "50000000\n",
        "cpuacct.usage_user": "48000000\n",
        "cpuacct.usage_sys": "16000000\n",
    },
    "pids": {"pids.max": "", "pids.peak": "5\n", "pids.events": "max 3\n"},
    "blkio": {BLKIO: "8:0 Read 4096\n8:0 Write 512\n8:0 Sync 4608\n8:0 Total 4608\n8:16 Write 1\nTotal 4609\n"},
}


def leaf(directory: Path, *, files: dict[str, dict[str, str]] = FILES, limits: frozenset[str] = ALL) -> CgroupV1:
    """Make a crate's control group of some hierarchies, with their files, and an empty cpuset hierarchy."""
    for controller, contents in files.items():
        (directory / controller / "leaf").mkdir(parents=True)
        for name, text in contents.items():
            (directory / controller / "leaf" / name).write_text(text)
    directories = {controller: f"{directory}/{controller}/leaf" for controller in files}
    return CgroupV1(directories, cpuset=f"{directory}/cpuset/leaf", limits=limits)


def test_usage_is_in_base_units(tmp_path: Path) -> None:
    """Nanoseconds become microseconds, totals over the tree are taken, and user and system time add up to the
    exact total although both are only sampled."""
    assert leaf(tmp_path).usage() == Usage(
        cpu_usage_usec=50_000,
        cpu_user_usec=37_500,
        cpu_system_usec=12_500,
        cpu_throttled_usec=1234,
        cpu_nr_throttled=7,
        memory_peak_bytes=67108864,
        memory_anon_bytes=4096,
        memory_file_bytes=8192,
        memory_shmem_bytes=2048,
        memory_oom_kills=2,
        memory_max_events=12,
        pids_peak=5,
        pids_max_events=3,
        io_read_bytes=4096,
        io_write_bytes=513,
    )


def test_usage_without_controllers_is_unknown(tmp_path: Path) -> None:
    """Where there is no hierarchy, nothing is known; nothing is 0."""
    assert leaf(tmp_path, files={}).usage() == Usage()


def test_usage_on_an_old_kernel_is_unknown_where_files_lack(tmp_path: Path) -> None:
    """Files and fields that a kernel does not have yet give None, and do not spoil the others."""
    files = {
        "memory": {
            "memory.max_usage_in_bytes": "7\n",
            "memory.failcnt": "1\n",
            "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n",
        },
        "pids": {"pids.events": "max 0\n"},
        "cpuacct": {"cpuacct.usage": "2000\n"},
    }
    assert leaf(tmp_path, files=files).usage() == Usage(
        memory_peak_bytes=7, memory_max_events=1, pids_max_events=0, cpu_usage_usec=2
    )


@pytest.mark.parametrize(("peak_bytes", "expected"), [(67108864, None), (66 * 10**6, None), (60 * 10**6, 0)])
def test_limit_that_was_met_was_met_more_than_never(tmp_path: Path, peak_bytes: int, expected: int | None) -> None:
    """A peak at the limit, or a huge page below it, with no refusal counted may mean a kernel that does not count:
    that is unknown, not 0."""
    files = {
        "memory": {
            "memory.max_usage_in_bytes": f"{peak_bytes}\n",
            "memory.limit_in_bytes": "67108864\n",
            "memory.failcnt": "0\n",
            "memory.memsw.failcnt": "0\n",
        }
    }
    assert leaf(tmp_path, files=files).usage() == Usage(memory_peak_bytes=peak_bytes, memory_max_events=expected)


def test_cpu_shares_without_a_sample_are_unknown(tmp_path: Path) -> None:
    """A process too short to be met by a tick has used CPU time, but nobody knows of which kind."""
    files = {"cpuacct": {"cpuacct.usage": "900000\n", "cpuacct.usage_user": "0\n", "cpuacct.usage_sys": "0\n"}}
    assert leaf(tmp_path, files=files).usage() == Usage(cpu_usage_usec=900)


def test_events_are_oom_kills_and_refused_forks(tmp_path: Path) -> None:
    """Events come from memory.oom_control and pids.events."""
    assert leaf(tmp_path).events() == Events(oom_kills=2, pids_max=3)


def test_malformed_usage_is_an_error(tmp_path: Path) -> None:
    """A counter that is no number is an error that names the file, not a gap in the report."""
    cgroup = leaf(tmp_path)
    path = tmp_path / "memory/leaf/memory.max_usage_in_bytes"
    path.write_text("lots\n")
    with pytest.raises(SandboxError) as caught:
        cgroup.usage()
    assert caught.value.path == str(path)


def test_limits_are_written(tmp_path: Path) -> None:
    """Each limit of the spec arrives in its file in the kernel's unit; swap comes on top of memory."""
    (tmp_path / "cpuset").mkdir()
    (tmp_path / "cpuset/cpuset.mems").write_text("0-1\n")
    (tmp_path / "cpuset/leaf").mkdir()
    for name in ("cpuset.cpus", "cpuset.mems"):
        (tmp_path / "cpuset/leaf" / name).touch()
    cgroup = leaf(tmp_path)
    assert not any("cpuset" in path for path in cgroup.enter_files)
    cgroup.limit(CrateSpec(memory_bytes=1 << 25, swap_bytes=1 << 20, pids=9, cpu_quota_usec=50_000, cpuset=(0, 2)))
    written = {
        # What was there before ended in a newline; the kernel's file would not keep it.
        "memory/leaf/memory.limit_in_bytes": "33554432\n",
        "memory/leaf/memory.memsw.limit_in_bytes": "34603008",
        "pids/leaf/pids.max": "9",
        "cpu/leaf/cpu.cfs_period_us": "100000",
        "cpu/leaf/cpu.cfs_quota_us": "50000",
        "cpuset/leaf/cpuset.cpus": "0,2",
        "cpuset/leaf/cpuset.mems": "0-1",
    }
    assert {name: (tmp_path / name).read_text() for name in written} == written
    assert f"{tmp_path}/cpuset/leaf/tasks" in cgroup.enter_files


def test_only_the_limits_of_the_spec_are_written(tmp_path: Path) -> None:
    """What a spec does not limit, and what can't be enforced, stays as the kernel set it."""
    leaf(tmp_path, limits=ALL - {"swap"}).limit(CrateSpec(memory_bytes=1 << 25, pids=None))
    assert (tmp_path / "memory/leaf/memory.limit_in_bytes").read_text() == "33554432\n"
    assert (tmp_path / "memory/leaf/memory.memsw.limit_in_bytes").read_text() == ""
    assert (tmp_path / "pids/leaf/pids.max").read_text() == ""
    assert (tmp_path / "cpu/leaf/cpu.cfs_quota_us").read_text() == ""
    assert not (tmp_path / "cpuset").exists()


def test_memory_is_limited_before_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """memory.memsw may never be below memory, so it is written second."""
    order: list[str] = []

    def record(step: str, path: str, value: str) -> None:
        order.append(Path(path).name)

    monkeypatch.setattr(cgroup_v1, "write_file", record)
    leaf(tmp_path).limit(CrateSpec(memory_bytes=1 << 26, pids=None))
    assert order == ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]


def test_refused_limit_names_path_value_and_errno(tmp_path: Path) -> None:
    """A limit that can't be written is an error; the crate must not run without it."""
    cgroup = leaf(tmp_path)
    (tmp_path / "pids/leaf/pids.max").unlink()
    with pytest.raises(SandboxError, match="value '9'") as caught:
        cgroup.limit(CrateSpec(pids=9))
    assert (caught.value.path, caught.value.errno) == (f"{tmp_path}/pids/leaf/pids.max", errno.ENOENT)


def test_comounted_controllers_are_entered_once(tmp_path: Path) -> None:
    """cpu and cpuacct in one hierarchy share one directory."""
    cgroup = CgroupV1({"cpu": "/x/leaf", "cpuacct": "/x/leaf", "pids": "/y/leaf"}, cpuset=None, limits=ALL)
    assert cgroup.enter_files == ("/x/leaf/tasks", "/y/leaf/tasks")
    assert cgroup.directory is None


def test_pids_are_those_of_any_hierarchy(tmp_path: Path) -> None:
    """A process that has entered some of the hierarchies only is seen, and will be killed."""
    cgroup = leaf(tmp_path)
    assert (cgroup.pids(), cgroup.populated()) == ((), False)
    (tmp_path / "pids/leaf/cgroup.procs").write_text("99999999\n")
    assert (cgroup.pids(), cgroup.populated()) == ((99999999,), True)


def parent(directory: Path, *, swap: bool, memsw: bool) -> ParentV1:
    """Make a run's directory on a host with memory and cpu hierarchies."""
    (directory / "memory").mkdir()
    (directory / "cpu").mkdir()
    if memsw:
        (directory / "memory/memory.memsw.limit_in_bytes").touch()
    (directory / "swaps").write_text("Filename Type Size Used Priority\n" + "/swapfile file 1 0 -2\n" * swap)
    return ParentV1(
        directories={"memory": f"{directory}/memory", "cpu": f"{directory}/cpu"},
        refusals={"cpuset": Refusal(reason="read-only", hint="remount")},
        how="own cgroup",
        proc_root=str(directory),
    )


def test_swap_without_memsw_is_missing(tmp_path: Path) -> None:
    """Without memory.memsw files a memory limit only pushes pages to swap: that is said, with the boot parameter."""
    made = parent(tmp_path, swap=True, memsw=False)
    (missing,) = made.missing(CrateSpec(memory_bytes=1 << 26))
    assert (missing.key, missing.hint) == ("swap", "boot with swapaccount=1, or: sudo swapoff -a")
    assert "swap" not in made.limits


def test_swap_needs_no_limit_where_there_is_none(tmp_path: Path) -> None:
    """Without swap on the host nothing is missing, with or without memsw."""
    made = parent(tmp_path, swap=False, memsw=False)
    assert made.missing(CrateSpec(memory_bytes=1 << 26)) == ()


def test_memsw_enforces_swap(tmp_path: Path) -> None:
    """With memory.memsw files swap is one of the limits."""
    made = parent(tmp_path, swap=True, memsw=True)
    assert made.limits == {"memory", "swap"}
    assert made.missing(CrateSpec(memory_bytes=1 << 26)) == ()


def test_missing_limits_say_why(tmp_path: Path) -> None:
    """A controller that refused us, is not mounted, or lacks a feature: each has its own reason."""
    made = parent(tmp_path, swap=False, memsw=True)
    spec = CrateSpec(cpu_quota_usec=50_000, cpuset=(0,), pids=3)
    assert {limit.key: (limit.reason, limit.hint) for limit in made.missing(spec)} == {
        "cpus": ("the kernel is built without CONFIG_CFS_BANDWIDTH", ""),
        "cpuset": ("read-only", "remount"),
        "pids": ("the pids controller of cgroup v1 is not mounted", ""),
    }


def test_half_made_cgroup_is_undone(tmp_path: Path) -> None:
    """If one hierarchy refuses a crate's directory, those made in others before it are removed again."""
    (tmp_path / "memory").mkdir()
    made = ParentV1(
        directories={"memory": f"{tmp_path}/memory", "pids": f"{tmp_path}/gone"}, refusals={}, how="own cgroup"
    )
    with pytest.raises(SandboxError) as caught:
        made.create("leaf")
    assert (caught.value.path, caught.value.errno) == (f"{tmp_path}/gone/leaf", errno.ENOENT)
    assert list((tmp_path / "memory").iterdir()) == []


def test_hierarchy_that_refuses_is_left_out(tmp_path: Path) -> None:
    """One hierarchy that we may not use costs its limits, not the others'; if all refuse, there is no parent."""
    (tmp_path / "pids").mkdir()
    hierarchies = {"memory": f"{tmp_path}/gone", "pids": f"{tmp_path}/pids"}
    made = cgroup_v1.make_parent(hierarchies, run_name="run", how="own cgroup")
    assert isinstance(made, ParentV1)
    assert made.limits == {"pids"}
    assert (
        made.missing(CrateSpec(memory_bytes=4096))[0].reason == f"mkdir {tmp_path}/gone/run: No such file or directory"
    )
    none = cgroup_v1.make_parent({"memory": f"{tmp_path}/gone"}, run_name="run", how="own cgroup")
    assert none == Refusal(reason=f"mkdir {tmp_path}/gone/run: No such file or directory")


def test_stale_run_that_resisted_at_the_start_goes_at_the_end(tmp_path: Path) -> None:
    """What a killed run has left and can't be removed when this one starts is removed, if it can be, when it ends."""
    here = Owner.of_process(os.getpid())
    assert here is not None
    stale = Owner(pid=here.pid, start_ticks=1, pid_namespace=here.pid_namespace)
    hierarchies = {controller: str(tmp_path / controller) for controller in ("memory", "pids")}
    for directory in hierarchies.values():
        Path(directory, str(stale)).mkdir(parents=True)
        Path(directory, str(stale), "file").touch()
    made = cgroup_v1.make_parent(hierarchies, run_name="run", how="own cgroup")
    assert isinstance(made, ParentV1)
    for directory in hierarchies.values():
        assert {path.name for path in Path(directory).iterdir()} == {str(stale), "run"}
        Path(directory, str(stale), "file").unlink()
    made.remove()
    assert [list(Path(directory).iterdir()) for directory in hierarchies.values()] == [[], []]


def test_blkio_without_a_device_is_unknown(tmp_path: Path) -> None:
    """A kernel that keeps the file but counts nothing says ``Total 0``: that is unknown, and the hierarchy unused."""
    (tmp_path / BLKIO).write_text("Total 0\n")
    assert cgroup_v1.parse_blkio("x", "Total 0\n") == (None, None)
    assert not cgroup_v1.accounts_io(str(tmp_path))
    (tmp_path / BLKIO).write_text("254:0 Read 4096\nTotal 4096\n")
    assert cgroup_v1.accounts_io(str(tmp_path))
    with pytest.raises(SandboxError, match="not understood"):
        cgroup_v1.parse_blkio("x", "254:0 Read many\n")
