"""Control groups of version 2, on the real kernel, as far as the controllers there go."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import cgroup_v2, libc
from pytest_crate.kernel.cgroup import run_name
from pytest_crate.kernel.cgroup_v2 import CgroupV2, ParentV2
from pytest_crate.kernel.hierarchies import Hierarchies
from pytest_crate.spec import CrateSpec


@pytest.fixture
def place() -> Iterator[Path]:
    """A control group at the top of the hierarchy, with all controllers that there are."""
    point = next(Hierarchies.of_process().mounts_of(), None)
    assert point is not None
    directory = Path(point.point, f"pytest-crate-test-{os.getpid()}")
    directory.mkdir()
    yield directory
    directory.rmdir()


pytestmark = pytest.mark.needs("root", "cgroup v2")


@pytest.fixture
def parent(place: Path) -> Iterator[ParentV2]:
    """A run's directory; nothing is left of it afterwards."""
    made = cgroup_v2.make_parent(str(place), run_name=run_name(), how="own cgroup")
    assert isinstance(made, ParentV2)
    yield made
    made.remove()
    assert not (place / run_name()).exists()


@pytest.fixture
def cgroup(parent: ParentV2) -> Iterator[CgroupV2]:
    """One crate's control group without limits, killed and removed afterwards."""
    made = parent.create("leaf")
    yield made
    made.kill()
    made.remove()


def start(cgroup: CgroupV2, script: str) -> subprocess.Popen[str]:
    """Start a Python script in a control group; it has entered once it prints."""
    enter = "import os, sys, time\nopen(sys.argv[1], 'w').write('0')\n"
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", enter + textwrap.dedent(script), *cgroup.enter_files],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_limits_follow_the_controllers(place: Path, parent: ParentV2) -> None:
    """A limit is enforced if the run's directory has its controller for its children, and missing otherwise."""
    enabled = set((place / run_name() / "cgroup.subtree_control").read_text().split())
    keys = {"memory": "memory", "cpu": "cpus", "cpuset": "cpuset", "pids": "pids"}
    expected = {key for controller, key in keys.items() if controller in enabled}
    assert parent.limits - {"swap"} == expected
    spec = CrateSpec(memory_bytes=1 << 26, cpu_quota_usec=50_000, cpuset=(0,), pids=3, asked=frozenset({"pids"}))
    assert {limit.key for limit in parent.missing(spec)} - {"swap"} == set(keys.values()) - expected


def test_cpu_time_is_accounted_without_controllers(cgroup: CgroupV2) -> None:
    """CPU time and its kinds are known of any control group; what needs a controller is unknown where it lacks."""
    process = start(cgroup, "end = time.process_time() + 0.05\nwhile time.process_time() < end: pass")
    process.communicate()
    usage = cgroup.usage()
    assert usage.cpu_usage_usec is not None
    assert usage.cpu_user_usec is not None
    assert usage.cpu_system_usec is not None
    assert 50_000 <= usage.cpu_usage_usec < 1_000_000
    assert usage.cpu_user_usec + usage.cpu_system_usec == pytest.approx(usage.cpu_usage_usec, abs=2)
    has_memory = os.path.exists(f"{cgroup.directory}/memory.stat")
    assert (usage.memory_anon_bytes is not None) == has_memory
    assert (usage.memory_oom_kills is not None) == has_memory
    assert (cgroup.events().oom_kills is not None) == has_memory


FAMILY = """
    for _ in range(3):
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
    print("in", flush=True)
    time.sleep(30)
"""


def test_kill_ends_the_whole_family(cgroup: CgroupV2) -> None:
    """cgroup.kill ends a process and its children, in a control group below as well, and it is empty afterwards."""
    os.mkdir(f"{cgroup.directory}/below")
    below = CgroupV2(f"{cgroup.directory}/below", limits=frozenset())
    families = [start(group, FAMILY) for group in (cgroup, below)]
    for process in families:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
    assert cgroup.populated()
    assert len(cgroup.pids()) == 8
    cgroup.kill()
    assert (cgroup.pids(), cgroup.populated()) == ((), False)
    for process in families:
        process.communicate()
        assert process.returncode == -9
    cgroup.remove()
    cgroup.remove()
    assert not os.path.exists(cgroup.directory)


def test_kill_without_cgroup_kill(cgroup: CgroupV2, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a kernel without cgroup.kill, freezing and signals do the same: frozen processes die as well."""
    real = libc.write_file
    written: list[str] = []

    def without_kill(step: str, path: str, value: str) -> None:
        written.append(os.path.basename(path))
        if path.endswith("cgroup.kill"):
            real(step, f"{path}-is-not-there", value)
        real(step, path, value)

    process = start(cgroup, FAMILY)
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    with monkeypatch.context() as patch:
        patch.setattr(cgroup_v2, "write_file", without_kill)
        cgroup.kill()
    assert written == ["cgroup.kill", "cgroup.freeze"]
    assert (cgroup.pids(), cgroup.populated()) == ((), False)
    process.communicate()
    assert process.returncode == -9


def test_removed_cgroup_is_empty_and_unknown(cgroup: CgroupV2) -> None:
    """After removal nothing is inside, nothing is known and killing is no error."""
    cgroup.remove()
    cgroup.kill()
    assert (cgroup.pids(), cgroup.populated()) == ((), False)
    assert cgroup.usage().cpu_usage_usec is None


def test_leaf_of_a_crate_is_new(parent: ParentV2, cgroup: CgroupV2) -> None:
    """A second control group of the same name is refused: its counters would be another crate's."""
    with pytest.raises(SandboxError, match="File exists"):
        parent.create("leaf")
