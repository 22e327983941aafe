"""Where a run's control groups can be made, read from samples of procfs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_crate.errors import HostError
from pytest_crate.kernel.cgroup import (
    Events,
    NoCgroups,
    Refusal,
    find_parent,
    run_name,
)
from pytest_crate.kernel.hierarchies import (
    CgroupMount,
    locate,
    parse_membership,
    parse_mountinfo,
)
from pytest_crate.spec import CrateSpec
from pytest_crate.usage import Usage

# A virtual machine whose v1 hierarchies are mounted one by one, with a bare v2 beside them.
SEPARATE_V1 = """\
24 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices
38 31 0:35 / /sys/fs/cgroup/blkio rw,relatime - cgroup cgroup rw,blkio
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
SEPARATE_V1_SELF = """\
9:name=systemd:/
8:pids:/
7:blkio:/
5:devices:/
4:memory:/process_api/2f50
3:cpuset:/
2:cpuacct:/
1:cpu:/
0::/
"""

# Debian 12 with systemd 252, in a login session.
SYSTEMD_V2 = """\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
28 21 0:25 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate
"""
SYSTEMD_V2_SELF = "0::/user.slice/user-1000.slice/session-3.scope\n"

# Docker with cgroup v1 and a private cgroup namespace: every root is the container's own.
DOCKER_V1_NAMESPACED = """\
1186 1030 0:266 / / rw,relatime master:530 - overlay overlay rw,lowerdir=/l/A:/l/B,upperdir=/u,workdir=/w
1190 1189 0:269 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime - tmpfs tmpfs rw,mode=755
1191 1190 0:29 / /sys/fs/cgroup/systemd ro,nosuid,nodev,noexec,relatime master:9 - cgroup cgroup rw,xattr,name=systemd
1192 1190 0:32 / /sys/fs/cgroup/cpu,cpuacct ro,nosuid,nodev,noexec,relatime master:15 - cgroup cgroup rw,cpu,cpuacct
1193 1190 0:33 / /sys/fs/cgroup/memory ro,nosuid,nodev,noexec,relatime master:16 - cgroup cgroup rw,memory
1194 1190 0:34 / /sys/fs/cgroup/pids ro,nosuid,nodev,noexec,relatime master:17 - cgroup cgroup rw,pids
"""
DOCKER_V1_NAMESPACED_SELF = """\
12:cpu,cpuacct:/
11:memory:/
10:pids:/
1:name=systemd:/
0::/
"""

# Docker with cgroup v1 in the host's cgroup namespace: only the container's part is mounted, under its full name.
DOCKER_V1_SHARED = """\
745 742 0:32 /docker/9f3c /sys/fs/cgroup/cpu,cpuacct ro,nosuid,nodev,noexec master:15 - cgroup cgroup rw,cpu,cpuacct
746 742 0:33 /docker/9f3c /sys/fs/cgroup/memory ro,nosuid,nodev,noexec,relatime master:16 - cgroup cgroup rw,memory
"""
DOCKER_V1_SHARED_SELF = "12:cpu,cpuacct:/docker/9f3c\n11:memory:/docker/9f3c/inner\n"

# systemd's hybrid layout: the controllers on v1, processes tracked on v2.
HYBRID = """\
30 24 0:25 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:26 / /sys/fs/cgroup/unified rw,nosuid,nodev,noexec,relatime shared:10 - cgroup2 cgroup2 rw,nsdelegate
32 30 0:27 / /sys/fs/cgroup/systemd rw,nosuid,nodev,noexec,relatime shared:11 - cgroup cgroup rw,xattr,name=systemd
35 30 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid,nodev,noexec,relatime shared:14 - cgroup cgroup rw,cpu,cpuacct
36 30 0:31 / /sys/fs/cgroup/memory rw,nosuid,nodev,noexec,relatime shared:15 - cgroup cgroup rw,memory
"""
HYBRID_SELF = """\
8:cpu,cpuacct:/user.slice
5:memory:/user.slice/user-1000.slice/session-3.scope
1:name=systemd:/user.slice/user-1000.slice/session-3.scope
0::/user.slice/user-1000.slice/session-3.scope
"""

# Rootless Podman on v2: a cgroup namespace, mounted read-only.
PODMAN_V2 = """\
912 780 0:50 / / rw,relatime - overlay overlay rw,context="system_u:object_r:container_file_t:s0:c1,c2"
930 918 0:26 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup2 rw,seclabel,nsdelegate
"""
PODMAN_V2_SELF = "0::/\n"


def places(mountinfo: str, membership: str) -> dict[str, str | None]:
    """Return where our own control group of each controller is; the key of v2 is empty."""
    own = parse_membership(membership)
    return {
        controller: locate(mount, own[controller])
        for mount in parse_mountinfo(mountinfo)
        for controller in (mount.controllers or {""})
        if mount.version == 2 or mount.controllers
    }


@pytest.mark.parametrize(
    ("mountinfo", "membership", "expected"),
    [
        pytest.param(
            SEPARATE_V1,
            SEPARATE_V1_SELF,
            {
                "cpu": "/sys/fs/cgroup/cpu",
                "cpuacct": "/sys/fs/cgroup/cpuacct",
                "cpuset": "/sys/fs/cgroup/cpuset",
                "memory": "/sys/fs/cgroup/memory/process_api/2f50",
                "blkio": "/sys/fs/cgroup/blkio",
                "pids": "/sys/fs/cgroup/pids",
                "": "/sys/fs/cgroup/unified",
            },
            id="separate v1",
        ),
        pytest.param(
            SYSTEMD_V2,
            SYSTEMD_V2_SELF,
            {"": "/sys/fs/cgroup/user.slice/user-1000.slice/session-3.scope"},
            id="systemd v2",
        ),
        pytest.param(
            DOCKER_V1_NAMESPACED,
            DOCKER_V1_NAMESPACED_SELF,
            {
                "cpu": "/sys/fs/cgroup/cpu,cpuacct",
                "cpuacct": "/sys/fs/cgroup/cpu,cpuacct",
                "memory": "/sys/fs/cgroup/memory",
                "pids": "/sys/fs/cgroup/pids",
            },
            id="docker v1 with a cgroup namespace",
        ),
        pytest.param(
            DOCKER_V1_SHARED,
            DOCKER_V1_SHARED_SELF,
            {
                "cpu": "/sys/fs/cgroup/cpu,cpuacct",
                "cpuacct": "/sys/fs/cgroup/cpu,cpuacct",
                "memory": "/sys/fs/cgroup/memory/inner",
            },
            id="docker v1 without a cgroup namespace",
        ),
        pytest.param(
            HYBRID,
            HYBRID_SELF,
            {
                "cpu": "/sys/fs/cgroup/cpu,cpuacct/user.slice",
                "cpuacct": "/sys/fs/cgroup/cpu,cpuacct/user.slice",
                "memory": "/sys/fs/cgroup/memory/user.slice/user-1000.slice/session-3.scope",
                "": "/sys/fs/cgroup/unified/user.slice/user-1000.slice/session-3.scope",
            },
            id="hybrid",
        ),
        pytest.param(PODMAN_V2, PODMAN_V2_SELF, {"": "/sys/fs/cgroup"}, id="podman v2"),
    ],
)
def test_own_cgroup_is_found(mountinfo: str, membership: str, expected: dict[str, str]) -> None:
    """The root field of a mount is taken off our own control group's path, whoever set the host up."""
    assert places(mountinfo, membership) == expected


def test_cgroup_outside_the_mount_is_not_located() -> None:
    """A mount that shows another part of the hierarchy, or a parent without a name, gives no path."""
    elsewhere = CgroupMount(version=1, root="/docker/9f3c", point="/sys/fs/cgroup/memory")
    above = CgroupMount(version=1, root="/..", point="/sys/fs/cgroup/memory")
    assert locate(elsewhere, "/docker/9f3c5") is None
    assert locate(elsewhere, "/") is None
    assert locate(above, "/") is None


def test_mount_points_are_unescaped() -> None:
    """A space in a mount point, written as \\040, is a space again."""
    (mount,) = parse_mountinfo(r"41 31 0:38 / /my\040cgroup\134s rw - cgroup2 cgroup2 rw")
    assert mount.point == "/my cgroup\\s"


def procfs(directory: Path, mountinfo: str, membership: str) -> str:
    """Make a fake procfs for one process and return its path."""
    own = directory / "proc" / "self"
    (own / "ns").mkdir(parents=True)
    (own / "ns" / "pid").touch()
    (own / "mountinfo").write_text(mountinfo)
    (own / "cgroup").write_text(membership)
    return str(own.parent)


def v1_host(directory: Path, hierarchies: dict[str, str]) -> str:
    """Make a fake v1 host: ``hierarchies`` maps each hierarchy's controllers to our own control group in it."""
    mountinfo, membership = [], []
    for number, (controllers, path) in enumerate(hierarchies.items(), 1):
        point = directory / "cgroup" / controllers
        (point / path.lstrip("/")).mkdir(parents=True)
        for group in {point, point / path.lstrip("/")}:
            (group / "cgroup.procs").touch()
        mountinfo.append(f"{number} 1 0:{number} / {point} rw - cgroup cgroup rw,{controllers}")
        membership.append(f"{number}:{controllers}:{path}")
    return procfs(directory, "\n".join(mountinfo), "\n".join(membership))


def test_v1_run_directories_are_in_our_own_cgroups(tmp_path: Path) -> None:
    """On v1 the run's directory is below our own control group of each hierarchy, so outer limits hold; and it
    goes with the parent."""
    proc = v1_host(tmp_path, {"memory": "/outer/own", "cpu,cpuacct": "/", "pids": "/own"})
    parent = find_parent(run_name="pytest-crate-run", proc_root=proc)
    made = [
        tmp_path / "cgroup/memory/outer/own/pytest-crate-run",
        tmp_path / "cgroup/cpu,cpuacct/pytest-crate-run",
        tmp_path / "cgroup/pids/own/pytest-crate-run",
    ]
    assert (parent.version, parent.how) == (1, "own cgroup")
    assert sorted(tmp_path.rglob("pytest-crate-run")) == sorted(made)
    parent.remove()
    parent.remove()
    assert list(tmp_path.rglob("pytest-crate-run")) == []


@pytest.mark.parametrize("form", ["/ci", "ci", "{memory}/ci"])
def test_configured_cgroup_is_the_parent(tmp_path: Path, form: str) -> None:
    """A configured control group is taken below the mount point of each hierarchy that has it, also when it is
    written as a path in the file system."""
    proc = v1_host(tmp_path, {"memory": "/own", "pids": "/own"})
    for controller in ("memory", "pids"):
        (tmp_path / "cgroup" / controller / "ci").mkdir()
        (tmp_path / "cgroup" / controller / "ci" / "cgroup.procs").touch()
    configured = form.format(memory=tmp_path / "cgroup" / "memory")
    parent = find_parent(run_name="pytest-crate-run", configured=configured, proc_root=proc)
    assert parent.how == "configured cgroup"
    assert sorted(tmp_path.rglob("pytest-crate-run")) == [
        tmp_path / "cgroup/memory/ci/pytest-crate-run",
        tmp_path / "cgroup/pids/ci/pytest-crate-run",
    ]


def test_configured_cgroup_must_exist(tmp_path: Path) -> None:
    """A configured control group that does not exist is an error that says how to make it, not a reason to
    use another one."""
    proc = v1_host(tmp_path, {"memory": "/own"})
    with pytest.raises(HostError, match="'/nowhere' does not exist") as caught:
        find_parent(run_name="pytest-crate-run", configured="/nowhere", proc_root=proc)
    assert caught.value.feature == "cgroup"
    assert caught.value.hint == f"sudo mkdir -p {tmp_path}/cgroup/memory/nowhere"
    with pytest.raises(HostError) as caught:
        find_parent(run_name="pytest-crate-run", configured="no where; reboot", proc_root=proc)
    assert caught.value.hint == f"sudo mkdir -p '{tmp_path}/cgroup/memory/no where; reboot'"
    assert list(tmp_path.rglob("pytest-crate-run")) == []


def test_a_missing_configured_cgroup_is_one_directory_for_each_v1_mount(tmp_path: Path) -> None:
    """Where v1 carries the limits, the remedy makes a directory in each of its hierarchies, and none in a bare
    cgroup2 beside them."""
    proc = v1_host(tmp_path, {"memory": "/", "cpu,cpuacct": "/", "pids": "/"})
    mountinfo = Path(proc, "self", "mountinfo")
    mountinfo.write_text(f"{mountinfo.read_text()}\n9 1 0:9 / {tmp_path}/unified rw - cgroup2 cgroup2 rw\n")
    with pytest.raises(HostError) as caught:
        find_parent(run_name="pytest-crate-run", configured="/ci", proc_root=proc)
    points = [f"{tmp_path}/cgroup/{name}/ci" for name in ("memory", "cpu,cpuacct", "pids")]
    assert caught.value.hint == f"sudo mkdir -p {' '.join(points)}"


def v2_host(directory: Path, own: str, controllers: str) -> tuple[str, Path]:
    """Make a fake v2 host; return its procfs and our own control group."""
    point = directory / "unified"
    group = point / own.lstrip("/")
    group.mkdir(parents=True)
    (group / "cgroup.procs").touch()
    (group / "cgroup.controllers").write_text(controllers)
    (group / "cgroup.subtree_control").touch()
    proc = procfs(directory, f"41 31 0:38 / {point} rw - cgroup2 cgroup2 rw", f"0::{own}")
    return proc, group


def test_v2_limits_are_those_of_the_delegated_controllers(tmp_path: Path) -> None:
    """On v2 a limit is enforced if its controller can be switched on for the run's children; the missing ones say
    how they are delegated."""
    proc, own = v2_host(tmp_path, "/app.slice", "memory pids")
    run = own / "pytest-crate-run"
    run.mkdir()
    (run / "cgroup.subtree_control").touch()
    (run / "memory.swap.max").write_text("max\n")
    parent = find_parent(run_name="pytest-crate-run", proc_root=proc)
    assert (parent.version, parent.how) == (2, "own cgroup")
    assert parent.limits == {"memory", "swap", "pids"}
    cpus, cpuset = parent.missing(
        CrateSpec(memory_bytes=1 << 26, cpu_quota_usec=50_000, cpuset=(0,), asked=frozenset({"pids"}))
    )
    assert (cpus.key, cpus.hint) == ("cpus", "systemd-run --user --scope -p Delegate=yes pytest")
    assert cpuset.key == "cpuset"
    assert "Delegate=cpu cpuset io memory pids" in cpuset.hint
    # A regular file keeps what a shorter second write leaves of "+memory".
    assert (run / "cgroup.subtree_control").read_text() == "+pidsry"


def test_hybrid_host_uses_v1(tmp_path: Path) -> None:
    """Where the controllers are on v1, v2 beside it is not used."""
    proc = v1_host(tmp_path, {"memory": "/own"})
    unified = tmp_path / "unified"
    unified.mkdir()
    (unified / "cgroup.procs").touch()
    with (tmp_path / "proc/self/mountinfo").open("a") as file:
        file.write(f"\n41 31 0:38 / {unified} rw - cgroup2 cgroup2 rw")
    with (tmp_path / "proc/self/cgroup").open("a") as file:
        file.write("\n0::/")
    assert find_parent(run_name="pytest-crate-run", proc_root=proc).version == 1
    assert not (unified / "pytest-crate-run").exists()


def test_host_without_cgroups_misses_every_limit(tmp_path: Path) -> None:
    """With no cgroup file system, each wanted limit is missing and no usage is known."""
    parent = find_parent(run_name="pytest-crate-run", proc_root=procfs(tmp_path, "", ""))
    assert isinstance(parent, NoCgroups)
    assert (parent.version, parent.limits) == (0, frozenset())
    missing = parent.missing(CrateSpec(memory_bytes=1 << 26, pids=10))
    assert [limit.key for limit in missing] == ["memory", "swap", "pids"]
    assert {limit.reason for limit in missing} == {"no cgroup file system is mounted that shows our own cgroup"}


def test_no_cgroup_holds_and_knows_nothing() -> None:
    """The control group of a host without any has no files to enter and no usage; unknown is not 0."""
    cgroup = NoCgroups(Refusal(reason="none")).create("one")
    cgroup.limit(CrateSpec(memory_bytes=1 << 26))
    cgroup.kill()
    cgroup.remove()
    assert (cgroup.directory, cgroup.enter_files) == (None, ())
    assert (cgroup.pids(), cgroup.populated(), cgroup.full()) == ((), False, False)
    assert cgroup.events() == Events(oom_kills=None, pids_max=None)
    assert cgroup.usage() == Usage()


def test_run_name_tells_its_owner(tmp_path: Path) -> None:
    """The name holds pid, start time and pid namespace, read past a command name with spaces and parentheses."""
    proc = Path(procfs(tmp_path, "", ""))
    (proc / "77").mkdir()
    (proc / "77/stat").write_text("77 (a) b (c) S 1 77 77 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 999 1\n")
    namespace = os.stat(proc / "self/ns/pid").st_ino
    assert run_name(77, proc_root=str(proc)) == f"pytest-crate-77-4242-{namespace}"


def test_run_name_needs_a_living_owner(tmp_path: Path) -> None:
    """A process that procfs does not show can't own a run."""
    with pytest.raises(HostError, match="does not show process 78"):
        run_name(78, proc_root=procfs(tmp_path, "", ""))


def test_a_name_may_have_what_ends_lines_elsewhere() -> None:
    """Only a line feed ends a line of the kernel's: no name of a control group can have one."""
    membership = parse_membership("4:pids:/a\fb\r\n0::/c\u2028d\n")
    assert membership == {"pids": "/a\fb\r", "": "/c\u2028d"}
