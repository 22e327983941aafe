"""Control groups of version 1, on the real kernel."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import cgroup_v1, cgroupfs
from pytest_crate.kernel.cgroup import (
    Cgroup,
    CgroupParent,
    Owner,
    find_parent,
    run_name,
)
from pytest_crate.kernel.cgroup_v1 import CgroupV1, ParentV1
from pytest_crate.kernel.cgroupfs import Refusal
from pytest_crate.kernel.hierarchies import (
    locate,
    parse_membership,
    parse_mountinfo,
)
from pytest_crate.spec import CrateSpec
from tests.conftest import FREEZER

MIB = 1 << 20


def own_directories() -> dict[str, str]:
    """Return where this process's own control group is in each v1 hierarchy, by controller."""
    membership = parse_membership(Path("/proc/self/cgroup").read_text())
    found = {
        controller: locate(mount, membership[controller])
        for mount in parse_mountinfo(Path("/proc/self/mountinfo").read_text())
        for controller in mount.controllers
        if controller in membership
    }
    return {controller: directory for controller, directory in found.items() if directory is not None}


pytestmark = pytest.mark.needs("root", "cgroup v1")


def run_directories(name: str) -> list[str]:
    return [path for own in own_directories().values() if os.path.exists(path := f"{own}/{name}")]


@pytest.fixture
def parent() -> Iterator[CgroupParent]:
    """A run's directories; nothing is left of them afterwards."""
    name = run_name()
    made = find_parent(run_name=name)
    yield made
    made.remove()
    assert run_directories(name) == []


@pytest.fixture
def cgroup(parent: CgroupParent) -> Iterator[Cgroup]:
    """One crate's control group without limits, killed and removed afterwards."""
    made = parent.create("leaf")
    yield made
    made.kill()
    made.remove()


def start(cgroup: Cgroup, script: str) -> subprocess.Popen[str]:
    """Start a Python script that enters a control group first; it talks through pipes."""
    enter = """
        import os, sys, time
        for path in sys.argv[1:]:
            descriptor = os.open(path, os.O_WRONLY)
            os.write(descriptor, b"0")
            os.close(descriptor)
    """
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", textwrap.dedent(enter) + textwrap.dedent(script), *cgroup.enter_files],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_all_limits_of_v1_are_found(parent: CgroupParent) -> None:
    """Root on v1 with all controllers can enforce memory, CPU time and tasks, in its own control group."""
    assert (parent.version, parent.how) == (1, "own cgroup")
    assert parent.limits >= {"memory", "cpus", "pids"}


def test_crate_is_inside_our_own_cgroup(cgroup: Cgroup) -> None:
    """A process that has entered is below pytest's own control group in every hierarchy, so that what limits
    pytest limits it, too."""
    process = start(cgroup, "print(open('/proc/self/cgroup').read())")
    inside = parse_membership(process.communicate()[0].strip())
    own = parse_membership(Path("/proc/self/cgroup").read_text())
    leaf = f"/{run_name()}/leaf"
    for controller in ("memory", "cpu", "cpuacct", "pids"):
        assert inside[controller] == f"{own[controller].rstrip('/')}{leaf}"


def test_memory_is_accounted(cgroup: Cgroup) -> None:
    """50 MiB of anonymous memory are 50 MiB at the peak and at the reading, give or take the interpreter's own; what
    the process held before it entered isn't charged."""
    process = start(cgroup, "block = b'x' * (50 << 20); print('allocated', flush=True); input()")
    assert process.stdout is not None
    assert process.stdout.readline() == "allocated\n"
    alive = cgroup.usage()
    assert cgroup.pids() == (process.pid,)
    process.communicate("end\n")
    usage = cgroup.usage()
    assert usage.memory_peak_bytes == pytest.approx(50 * MIB, abs=4 * MIB)
    assert alive.memory_anon_bytes == pytest.approx(50 * MIB, abs=2 * MIB)
    assert usage.memory_anon_bytes == pytest.approx(0, abs=MIB)
    assert (usage.memory_oom_kills, usage.memory_max_events) == (0, 0)


FILL_SOCKETS = """
import socket
listening = socket.create_server(("127.0.0.1", 0))
kept = []
for _ in range(16):
    client = socket.create_connection(listening.getsockname())
    kept += [client, listening.accept()[0]]
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    kept[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    client.setblocking(False)
    try:
        for _ in range(200):
            client.send(bytes(1 << 16))
    except BlockingIOError:
        pass
print("filled", flush=True)
input()
"""


def test_what_tcp_holds_is_limited(cgroup: Cgroup) -> None:
    """Data on its way over a crate's loopback is memory, too, which this version counts apart."""
    directory = next(own for own in map(os.path.dirname, cgroup.enter_files) if os.path.exists(f"{own}/memory.stat"))
    held = Path(directory, "memory.kmem.tcp.usage_in_bytes")
    if not held.exists():
        pytest.skip("this kernel counts none of it")
    cgroup.limit(CrateSpec(memory_bytes=16 * MIB))
    process = start(cgroup, FILL_SOCKETS)
    assert process.stdout is not None
    assert process.stdout.readline() == "filled\n"
    usage_bytes = int(held.read_text())
    process.communicate("end\n")
    assert 8 * MIB < usage_bytes < 20 * MIB


def test_memory_over_the_limit_is_killed(cgroup: Cgroup) -> None:
    """200 MiB under a limit of 64 MiB end in SIGKILL by the OOM killer, with the peak at the limit."""
    cgroup.limit(CrateSpec(memory_bytes=64 * MIB))
    process = start(cgroup, "block = b'x' * (200 << 20); print('survived')")
    assert process.communicate()[0] == ""
    assert process.returncode == -9
    assert cgroup.events().oom_kills == 1
    usage = cgroup.usage()
    assert usage.memory_peak_bytes == 64 * MIB
    assert usage.memory_oom_kills == 1
    assert usage.memory_max_events != 0


def test_page_cache_at_the_limit_is_no_oom(cgroup: Cgroup, tmp_path: Path) -> None:
    """A program that writes a big file meets the limit but lives: the peak saturates and nothing was killed."""
    cgroup.limit(CrateSpec(memory_bytes=16 * MIB))
    process = start(
        cgroup,
        f"""
        with open({str(tmp_path / "big")!r}, "wb", buffering=0) as file:
            for _ in range(48):
                file.write(bytes(1 << 20))
        print("written")
        """,
    )
    assert process.communicate()[0] == "written\n"
    usage = cgroup.usage()
    assert usage.memory_peak_bytes == pytest.approx(16 * MIB, abs=MIB)
    assert usage.memory_oom_kills == 0
    assert usage.memory_max_events != 0


@pytest.mark.needs("no swap")
def test_meetings_with_the_memory_limit_are_counted(cgroup: Cgroup) -> None:
    """Without a limit on swap every kernel counts how often the memory limit was met."""
    memory = next(own for own in map(os.path.dirname, cgroup.enter_files) if os.path.exists(f"{own}/memory.stat"))
    CgroupV1({"memory": memory}, cpuset=None, limits=frozenset({"memory"})).limit(CrateSpec(memory_bytes=16 * MIB))
    process = start(cgroup, "block = b'x' * (64 << 20)")
    process.communicate()
    assert process.returncode != 0
    usage = cgroup.usage()
    assert usage.memory_max_events is not None
    assert usage.memory_max_events >= 1


FORKS = """
    children, refused = [], 0
    for _ in range(8):
        try:
            child = os.fork()
        except BlockingIOError:
            refused += 1
            continue
        if child == 0:
            time.sleep(30)
            os._exit(0)
        children.append(child)
    print(len(children), refused, flush=True)
    input()
"""


def test_forks_over_the_limit_are_refused_and_counted(cgroup: Cgroup) -> None:
    """With pids=4 the fourth child is refused; the refusals are counted and the peak is the limit."""
    cgroup.limit(CrateSpec(pids=4))
    process = start(cgroup, FORKS)
    assert process.stdout is not None
    assert process.stdout.readline() == "3 5\n"
    assert cgroup.events().pids_max == 5
    assert len(cgroup.pids()) == 4
    cgroup.kill()
    process.communicate()
    assert process.returncode == -9
    usage = cgroup.usage()
    assert (usage.pids_peak, usage.pids_max_events) == (4, 5)


def test_cpu_time_is_throttled(cgroup: Cgroup) -> None:
    """Two busy processes at cpus=0.2 get a fifth of a CPU together, and the wait is accounted."""
    cgroup.limit(CrateSpec(cpu_quota_usec=20_000))
    began = time.monotonic()
    process = start(
        cgroup,
        """
        child = os.fork()
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass
        if child:
            os.waitpid(child, 0)
        """,
    )
    process.communicate()
    wall_usec = (time.monotonic() - began) * 1e6
    usage = cgroup.usage()
    assert usage.cpu_usage_usec is not None
    # The quota of one more period, and a slice of 5 ms on each CPU (sched-bwc.rst), may be used at the end.
    assert 100_000 <= usage.cpu_usage_usec <= 0.2 * wall_usec + 20_000 + 5_000 * (os.cpu_count() or 1)
    assert usage.cpu_nr_throttled is not None
    assert usage.cpu_nr_throttled >= 2
    assert usage.cpu_throttled_usec is not None
    assert usage.cpu_throttled_usec > 50_000
    assert usage.cpu_user_usec is not None
    assert usage.cpu_system_usec is not None
    assert usage.cpu_user_usec + usage.cpu_system_usec == usage.cpu_usage_usec


def test_outer_cpu_limit_may_be_tighter(parent: CgroupParent) -> None:
    """v1 refuses a quota above the outer one's. The crate is made nevertheless: the outer limit holds it."""
    outer = parent.create("outer")
    outer.limit(CrateSpec(cpu_quota_usec=50_000))
    directory = next(
        os.path.dirname(path) for path in outer.enter_files if os.path.exists(f"{os.path.dirname(path)}/cpu.stat")
    )
    inner_parent = cgroup_v1.make_parent({"cpu": directory}, run_name=run_name(), how="nested")
    assert isinstance(inner_parent, ParentV1)
    inner = inner_parent.create("inner")
    inner.limit(CrateSpec(cpu_quota_usec=200_000, pids=None))
    assert Path(directory, run_name(), "inner", "cpu.cfs_quota_us").read_text() == "-1\n"
    inner.limit(CrateSpec(cpu_quota_usec=20_000, pids=None))
    assert Path(directory, run_name(), "inner", "cpu.cfs_quota_us").read_text() == "20000\n"
    outer.remove()


@pytest.mark.needs("cpuset limit")
def test_cpuset_is_what_a_process_sees(cgroup: Cgroup) -> None:
    """A process in a cpuset of one CPU has that CPU alone in its affinity mask."""
    cpu = max(os.sched_getaffinity(0))
    cgroup.limit(CrateSpec(cpuset=(cpu,)))
    process = start(cgroup, "print(sorted(os.sched_getaffinity(0)))")
    assert process.communicate()[0] == f"[{cpu}]\n"


def test_fork_bomb_is_killed(cgroup: Cgroup) -> None:
    """Killing ends processes that fork as fast as they can, and everything they have left behind."""
    cgroup.limit(CrateSpec(pids=32))
    process = start(
        cgroup,
        """
        print("armed", flush=True)
        while True:
            try:
                os.fork()
            except BlockingIOError:
                pass
        """,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "armed\n"
    cgroup.kill()
    assert (cgroup.pids(), cgroup.populated()) == ((), False)
    process.communicate()
    cgroup.remove()


def test_removal_waits_for_the_last_process(cgroup: Cgroup) -> None:
    """Removing a control group whose process is about to end waits for that end instead of failing."""
    process = start(cgroup, "print('in', flush=True); input(); time.sleep(0.15)")
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "in\n"
    process.stdin.write("end\n")
    process.stdin.flush()
    cgroup.remove()
    cgroup.remove()
    assert not any(map(os.path.exists, cgroup.enter_files))
    assert process.wait(timeout=5) == 0
    process.communicate()


def test_removal_of_an_occupied_cgroup_fails(cgroup: Cgroup) -> None:
    """A process that stays is an error that names it, once the time is up."""
    process = start(cgroup, "print('in', flush=True); input()")
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    directory = os.path.dirname(cgroup.enter_files[0])
    with pytest.raises(SandboxError, match=rf"busy.*pids {process.pid} are in it"):
        cgroupfs.remove_directory(directory, patience_sec=0.05)
    process.communicate("end\n")


def test_killed_run_is_cleared_away(parent: CgroupParent) -> None:
    """What a run killed with SIGKILL left, a process in a control group included, is stale once its owner has ended,
    and not before."""
    own = own_directories()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as owner:
        name = str(Owner.of_process(owner.pid))
        left = find_parent(run_name=name)
        process = start(left.create("leaf"), "print('in', flush=True); time.sleep(30)")
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        cgroupfs.remove_stale(own.values())
        assert process.poll() is None
        owner.kill()
    cgroupfs.remove_stale(own.values(), patience_sec=0.3)
    assert run_directories(name) == []
    process.communicate()
    assert process.returncode == -9


def test_next_run_clears_away(parent: CgroupParent) -> None:
    """Whoever looks for a place for a new run removes what killed ones have left there."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as owner:
        name = str(Owner.of_process(owner.pid))
        left = find_parent(run_name=name)
        left.create("leaf")
        assert run_directories(name) != []
    find_parent(run_name=run_name())
    assert run_directories(name) == []


@pytest.fixture
def frozen() -> Iterator[Path]:
    """A control group whose processes don't run, and so can't end, until it is thawed (freezer-subsystem.rst)."""
    directory = Path(FREEZER, f"pytest-crate-test-{os.getpid()}")
    directory.mkdir()
    (directory / "freezer.state").write_text("FROZEN")
    yield directory
    (directory / "freezer.state").write_text("THAWED")
    directory.rmdir()


@pytest.mark.needs("freezer")
def test_what_was_dying_at_the_start_is_cleared_away_at_the_end(parent: CgroupParent, frozen: Path) -> None:
    """A killed run's process that takes its time to end keeps no run from starting; that run, when it ends, removes the
    control groups that it could not remove then."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as owner:
        name = str(Owner.of_process(owner.pid))
        left = find_parent(run_name=name)
        process = start(left.create("leaf"), "print('in', flush=True); time.sleep(30)")
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        (frozen / "tasks").write_text(str(process.pid))
    own = find_parent(run_name=run_name())
    assert run_directories(name) != []
    assert process.poll() is None
    (frozen / "freezer.state").write_text("THAWED")
    process.communicate()
    assert process.returncode == -9
    own.remove()
    assert run_directories(name) == []


def test_cgroups_are_cheap(parent: CgroupParent) -> None:
    """To make, limit and remove a control group takes a millisecond or so, and to read the events a tenth: far
    from the 12 ms that one move by cgroup.procs costs."""
    spec = CrateSpec(memory_bytes=64 * MIB, cpu_quota_usec=50_000)
    durations = []
    for number in range(50):
        began = time.perf_counter()
        made = parent.create(str(number))
        made.limit(spec)
        made.events()
        made.remove()
        durations.append(time.perf_counter() - began)
    assert sorted(durations)[25] < 0.005


def test_ordinary_user_has_no_cgroups() -> None:
    """Where the hierarchies are root's, an ordinary user gets a parent that enforces nothing and says why."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            found = find_parent(run_name="pytest-crate-of-a-user")
            missing = found.missing(CrateSpec(memory_bytes=MIB))
            os.write(writing, f"{found.version} {sorted(found.limits)} {missing[0].reason}".encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    text = os.read(reading, 4096).decode()
    os.close(reading)
    os.waitpid(pid, 0)
    assert text == f"0 [] cgroup v1 is writable for root only ({own_directories()['memory']})"


def test_read_only_hierarchy_is_explained(tmp_path: Path) -> None:
    """A refusal by the kernel itself keeps its own words where there are no better ones."""
    made = cgroup_v1.make_parent({"pids": "/proc/self"}, run_name="pytest-crate-x", how="own cgroup")
    assert isinstance(made, Refusal)
    assert made.reason == "mkdir /proc/self/pytest-crate-x: No such file or directory"


def test_leaf_of_a_crate_is_new(parent: CgroupParent, cgroup: Cgroup) -> None:
    """A second control group of the same name is refused: its counters would be another crate's."""
    assert isinstance(cgroup, CgroupV1)
    with pytest.raises(SandboxError, match="File exists"):
        parent.create("leaf")
