"""What a host offers, and the doctor's words for what it refuses."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import psutil
import pytest

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import host, libc
from pytest_crate.kernel.cgroup import CgroupOffer, NoCgroups, Refusal
from pytest_crate.kernel.host import Circumstances, Host, Row, explain, probe_host, read_circumstances

USER = Circumstances(privileged=False)
ROOT = Circumstances(privileged=True)
STATUS = (
    "Name:\tx\nCapInh:\t0\nCapPrm:\t0\nCapEff:\t{}\nCapBnd:\t0\nCapAmb:\t0\nNoNewPrivs:\t0\nSeccomp:\t{}\nEnd:\t0\n"
)

UNSHARE_USER = SandboxError("enter", syscall="unshare", path=hex(libc.CLONE_NEWUSER), errno=errno.EPERM)
UNSHARE_MOUNT = SandboxError("enter", syscall="unshare", path=hex(libc.CLONE_NEWNS), errno=errno.EPERM)
CLONE_ALL = SandboxError("start", syscall="clone", path=hex(libc.CLONE_NEWUSER | libc.CLONE_NEWPID), errno=errno.ENOSPC)
UID_MAP = SandboxError("map", syscall="write", path="/proc/12/uid_map", errno=errno.EPERM)
PROC = SandboxError("mount proc", syscall="mount", path="proc -> /new/proc type proc", errno=errno.EPERM)
SLAVE = SandboxError("make private", syscall="mount", path="none -> /", errno=errno.EACCES)
LOOPBACK = SandboxError("bring lo up", syscall="ioctl", path="SIOCSIFFLAGS lo", errno=errno.EPERM)
OVERLAY = SandboxError("mount", syscall="mount", path="crate -> /m type overlay [lowerdir=/]", errno=errno.EINVAL)


@pytest.mark.parametrize(
    ("error", "circumstances", "feature", "hint"),
    [
        pytest.param(
            UNSHARE_USER,
            Circumstances(privileged=False, max_user_namespaces=0),
            "user namespaces",
            "sudo sysctl -w user.max_user_namespaces=15000",
            id="no user namespaces allowed",
        ),
        pytest.param(
            CLONE_ALL,
            Circumstances(privileged=False, max_user_namespaces=9),
            "user namespaces",
            "sudo sysctl -w user.max_user_namespaces=15000",
            id="all user namespaces in use",
        ),
        pytest.param(
            UNSHARE_USER,
            Circumstances(privileged=False, userns_clone=0),
            "user namespaces",
            "sudo sysctl -w kernel.unprivileged_userns_clone=1",
            id="Debian's sysctl",
        ),
        pytest.param(
            UID_MAP,
            Circumstances(privileged=False, may_map_root=False),
            "user namespaces",
            "Docker, Podman: --cap-add SETFCAP; or in it run pytest as another user than root",
            id="runc's default capabilities",
        ),
        pytest.param(
            LOOPBACK,
            Circumstances(privileged=False, apparmor_restrict_userns=1, userns_clone=1),
            "namespaces",
            "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
            id="Ubuntu's AppArmor, with Ubuntu's own profile",
        ),
        pytest.param(
            UID_MAP,
            Circumstances(privileged=False, apparmor_restrict_userns=1, userns_clone=1),
            "user namespaces",
            "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
            id="Ubuntu's AppArmor at the id map",
        ),
        pytest.param(
            SLAVE,
            Circumstances(privileged=False, apparmor_restrict_userns=1),
            "private mounts",
            "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
            id="Ubuntu's AppArmor at a mount",
        ),
        pytest.param(
            UNSHARE_MOUNT,
            Circumstances(privileged=False, seccomp=True, container="docker", apparmor="docker-default"),
            "namespaces",
            "Docker, Podman: --security-opt seccomp=unconfined",
            id="Docker's seccomp filter",
        ),
        pytest.param(
            SLAVE,
            Circumstances(privileged=True, seccomp=True, container="docker", apparmor="docker-default"),
            "private mounts",
            "Docker, Podman: --security-opt apparmor=unconfined",
            id="Docker's AppArmor profile",
        ),
        pytest.param(
            PROC,
            USER,
            "fresh proc",
            "Docker: --security-opt systempaths=unconfined; Podman: --security-opt unmask=ALL",
            id="masked proc",
        ),
        pytest.param(
            UNSHARE_MOUNT,
            Circumstances(privileged=False, seccomp=True, container="gitlab"),
            "namespaces",
            "privileged = true in the runner's config.toml",
            id="GitLab",
        ),
        pytest.param(OVERLAY, USER, "overlay", "", id="overlay in a user namespace"),
        pytest.param(
            SandboxError("open", syscall="openat2", path="etc", errno=errno.ENOSYS), ROOT, "openat2", "", id="openat2"
        ),
        pytest.param(
            SandboxError("change the root", syscall="pivot_root", path="/new", errno=errno.EPERM),
            Circumstances(privileged=True, apparmor="lxc"),
            "pivot_root",
            "Docker, Podman: --security-opt apparmor=unconfined",
            id="pivot_root",
        ),
        pytest.param(
            SandboxError("limit memory", syscall="write", path="/sys/fs/cgroup/a/memory.max", errno=errno.EROFS),
            ROOT,
            "memory limit",
            "Podman, cgroup v2: --security-opt unmask=ALL --cgroups=split; Docker, or cgroup v1: --privileged",
            id="read-only cgroups",
        ),
        pytest.param(
            SandboxError("x", syscall="write", path="/sys/fs/cgroup/a/memory.swap.max", errno=errno.EROFS),
            ROOT,
            "swap limit",
            "Podman, cgroup v2: --security-opt unmask=ALL --cgroups=split; Docker, or cgroup v1: --privileged",
            id="read-only swap limit",
        ),
    ],
)
def test_refusal_is_explained(error: SandboxError, circumstances: Circumstances, feature: str, hint: str) -> None:
    """A step refused by the kernel becomes the doctor's row at fault, with the command that mends it; what the
    kernel said stays in the message."""
    explained = explain(error, circumstances=circumstances)
    assert explained is not None
    assert (explained.feature, explained.hint) == (feature, hint)
    assert explained.message.startswith(str(error))


def test_refused_cgroup_is_explained_by_its_version(tmp_path: Path) -> None:
    """The remedy for a control group that is not ours differs between versions, which its files tell."""
    group = tmp_path / "cgroup"
    group.mkdir()
    error = SandboxError("create", syscall="mkdir", path=f"{group}/run", errno=errno.EACCES)
    on_v1 = explain(error, circumstances=USER)
    (group / "cgroup.controllers").touch()
    on_v2 = explain(error, circumstances=USER)
    assert on_v1 is not None
    assert on_v2 is not None
    assert on_v1.hint == "run pytest as root, or boot with systemd.unified_cgroup_hierarchy=1 for cgroup v2"
    assert on_v2.hint == "systemd-run --user --scope -p Delegate=yes pytest"
    assert {on_v1.feature, on_v2.feature} == {"cgroup"}


@pytest.mark.parametrize(
    "error",
    [
        SandboxError("bind", syscall="mount", path="/data -> /new/data", errno=errno.ENOENT),
        SandboxError("limit pids", syscall="write", path="/sys/fs/cgroup/a/pids.max", errno=errno.EINVAL),
        SandboxError("open", syscall="open", path="/etc/passwd", errno=errno.EACCES),
        SandboxError("make a mount point", syscall="openat2", path="/proc", errno=errno.ENOSPC),
        SandboxError("make a mount point", syscall="openat2", path="/data", errno=errno.EACCES),
        SandboxError("use a crate", detail="it is closed already"),
    ],
)
def test_other_errors_are_not_the_hosts(error: SandboxError) -> None:
    """A wrong path, a wrong value or a fault of ours is not blamed on the host."""
    assert explain(error, circumstances=ROOT) is None


def test_seccomp_is_not_blamed_for_a_missing_call() -> None:
    """AppArmor's rule on user namespaces says nothing of calls that need no namespace."""
    error = SandboxError("open", syscall="openat2", path="etc", errno=errno.ENOSYS)
    explained = explain(error, circumstances=Circumstances(privileged=False, apparmor_restrict_userns=1))
    assert explained is not None
    assert "AppArmor" not in explained.message


def procfs(directory: Path, *, capabilities: str = "0", seccomp: int = 0) -> str:
    (directory / "self/attr").mkdir(parents=True)
    (directory / "self/status").write_text(STATUS.format(capabilities, seccomp))
    return str(directory)


def test_circumstances_are_read(tmp_path: Path) -> None:
    """Capability, filter, profile, sysctls and container are read from where the kernel and the engines put them."""
    proc = tmp_path / "proc"
    procfs(proc, capabilities="80200000", seccomp=2)
    (proc / "self/attr/current").write_text("docker-default (enforce)\n")
    for name, value in {
        "kernel/apparmor_restrict_unprivileged_userns": "1",
        "kernel/unprivileged_userns_clone": "0",
        "user/max_user_namespaces": "15000",
    }.items():
        path = proc / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    (tmp_path / ".dockerenv").touch()
    assert read_circumstances(proc_root=str(proc), root=str(tmp_path), environ={}) == Circumstances(
        privileged=True,
        seccomp=True,
        apparmor="docker-default",
        container="docker",
        apparmor_restrict_userns=1,
        userns_clone=0,
        max_user_namespaces=15000,
    )


def test_silent_host_has_no_circumstances(tmp_path: Path) -> None:
    """Where the kernel has none of the files, nothing is claimed; an unconfined profile is none."""
    procfs(tmp_path, capabilities="ffdfffff")
    (tmp_path / "self/attr/current").write_text("unconfined\n")
    assert read_circumstances(proc_root=str(tmp_path), root=str(tmp_path), environ={}) == USER


@pytest.mark.parametrize(
    ("file", "environ", "container"),
    [
        (".dockerenv", {"GITLAB_CI": "true"}, "gitlab"),
        ("run/.containerenv", {"container": "oci"}, "podman"),
        ("etc/hostname", {"container": "systemd-nspawn"}, "systemd-nspawn"),
        ("etc/hostname", {"GITLAB_CI": "true"}, ""),
    ],
)
def test_container_is_recognised(tmp_path: Path, file: str, environ: dict[str, str], container: str) -> None:
    """Each manager of containers leaves a mark: a file, or a variable."""
    proc = procfs(tmp_path / "proc")
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).touch()
    assert read_circumstances(proc_root=proc, root=str(tmp_path), environ=environ).container == container


def made_host(*statuses: host.Status) -> Host:
    rows = tuple(Row(feature=f"f{number}", status=status, detail="d") for number, status in enumerate(statuses))
    return Host(kernel="6.8", privileged=False, cgroup_version=2, cgroup_how="own cgroup", rows=rows)


def test_host_enforces_unless_a_row_is_missing() -> None:
    """A degraded row still enforces; a missing one does not."""
    assert made_host("ok", "degraded").enforced
    assert not made_host("ok", "missing").enforced


def test_host_crosses_as_builtins() -> None:
    """The report's host object has lists and strings only, and the verdict."""
    row = Row(feature="seccomp", status="missing", detail="no", affects=("seccomp",), remedy="do")
    found = Host(kernel="6.8", privileged=True, cgroup_version=0, cgroup_how="no cgroups", rows=(row,))
    assert found.to_json() == {
        "kernel": "6.8",
        "privileged": True,
        "cgroup_version": 0,
        "cgroup_how": "no cgroups",
        "enforced": False,
        "rows": [{"feature": "seccomp", "status": "missing", "detail": "no", "affects": ["seccomp"], "remedy": "do"}],
    }


def refuse(name: str, number: int) -> object:
    """Return a stand-in for a system call that the kernel refuses."""

    def refused(step: str, *args: object, **keywords: object) -> None:
        raise SandboxError(step, syscall=name, path=hex(libc.CLONE_NEWNS), errno=number)

    return refused


NOTHING = CgroupOffer.of(NoCgroups(Refusal(reason="nothing is writable", hint="become root")))


def test_refused_namespaces_stop_the_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where namespaces are refused, that row has reason and remedy, what builds on it was not tried and is missing, and
    what needs no namespace is still found out."""
    monkeypatch.setattr(libc, "unshare", refuse("unshare", errno.EPERM))
    found = probe_host(NOTHING, circumstances=Circumstances(privileged=True, seccomp=True))
    rows = {row.feature: row for row in found.rows}
    assert (rows["namespaces"].status, rows["namespaces"].remedy) == (
        "missing",
        "Docker, Podman: --security-opt seccomp=unconfined",
    )
    assert rows["namespaces"].detail.endswith("a seccomp filter denies it")
    for feature in ("host name", "private mounts", "fresh proc", "fresh sys", "pivot_root"):
        assert (rows[feature].status, rows[feature].detail) == ("missing", "not tried: a step before it failed")
    assert (rows["overlay"].status, rows["overlay"].detail) == ("degraded", "not tried: a step before it failed")
    assert rows["openat2"].status == "ok"
    assert not found.enforced


def test_privileged_crates_can_do_without_user_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused user namespace is a wall less for root, and the end for an ordinary user."""
    monkeypatch.setattr(libc, "unshare", refuse("unshare", errno.EPERM))
    as_root = probe_host(NOTHING, circumstances=ROOT)
    as_user = probe_host(NOTHING, circumstances=USER)
    assert as_root.rows[0].feature == as_user.rows[0].feature == "user namespaces"
    assert (as_root.rows[0].status, as_user.rows[0].status) == ("degraded", "missing")


@pytest.mark.parametrize(
    ("call", "instead"),
    [
        ("clone3", "without it processes are moved into their control group"),
        ("openat2", "without it paths below a root are walked step by step"),
    ],
)
def test_a_missing_call_with_a_substitute_degrades(monkeypatch: pytest.MonkeyPatch, call: str, instead: str) -> None:
    """A host that hides such a call still enforces; the row says what is done instead."""
    real = libc.syscall

    def hidden(step: str, name: str, *args: int | bytes | None, path: str = "") -> int:
        if name == call:
            raise SandboxError(step, syscall=name, path=path, errno=errno.ENOSYS)
        return real(step, name, *args, path=path)

    monkeypatch.setattr(libc, "syscall", hidden)
    rows = {row.feature: row for row in probe_host(NOTHING, circumstances=ROOT).rows}
    assert rows[call].status == "degraded"
    assert rows[call].detail.endswith(instead)


def test_probe_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that never returns costs the doctor its patience, not its life, and reads as lacking; no child is left."""

    def hang(*args: object, **keywords: object) -> None:
        while True:
            os.read(os.pipe()[0], 1)

    def statuses() -> dict[str, str]:
        return {row.feature: row.status for row in probe_host(NOTHING, circumstances=ROOT).rows}

    children = psutil.Process().children()  # of fixtures of other tests
    before = statuses()
    monkeypatch.setattr(host, "_PROBE_PATIENCE_SEC", 2.0)
    monkeypatch.setattr(libc, "openat2_in_root", hang)
    assert before["openat2"] == "ok"
    assert statuses() == {**before, "openat2": "degraded"}
    assert psutil.Process().children() == children


def test_host_without_cgroups_says_so_in_each_limit() -> None:
    """Without control groups every limit is missing, for the parent's reason and with its remedy."""
    found = probe_host(NOTHING, circumstances=ROOT)
    rows = [row for row in found.rows if row.feature == "cgroup" or row.feature.endswith(" limit")]
    assert [row.feature for row in rows] == [
        "cgroup",
        "memory limit",
        "swap limit",
        "cpus limit",
        "cpuset limit",
        "pids limit",
    ]
    assert {(row.status, row.detail, row.remedy) for row in rows} == {("missing", "nothing is writable", "become root")}
    assert rows[1].affects == ("memory",)
    assert (found.cgroup_version, found.enforced) == (0, False)
