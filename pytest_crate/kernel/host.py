"""What this host offers to crates, found out by doing it, and why it refuses what it refuses."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import platform
import select
import signal
import socket
import stat
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, cast

from pytest_crate.errors import HostError, SandboxError
from pytest_crate.kernel import capabilities, id_range, identity, libc, mapped_process, network, overlay, seccomp
from pytest_crate.kernel.cgroup import CgroupOffer, explain_refusal
from pytest_crate.kernel.cgroupfs import LIMIT_KEYS, read_text

Status = Literal["ok", "degraded", "missing"]

_PROBE_PATIENCE_SEC = 5.0
_NO_DEVICE_ERRNOS = (errno.ENODEV, errno.ENOSYS)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the doctor's findings.

    :ivar feature: what is needed, such as ``"overlay"`` or ``"memory limit"``.
    :ivar status: ``degraded`` means that crates are as isolated and limited as specified, by a slower or less deep way,
        or can do less in them.
    :ivar detail: what was found, in words.
    :ivar affects: the marker keys that need it; empty means every crate.
    :ivar remedy: a command or setting that mends it; empty if there is none, or no need.
    """

    feature: str
    status: Status
    detail: str
    affects: tuple[str, ...] = ()
    remedy: str = ""

    def to_json(self) -> dict[str, object]:
        """Return the row as builtins."""
        return {**dataclasses.asdict(self), "affects": list(self.affects)}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What a host offers to crates.

    :ivar kernel: its release, for people to read: nothing is decided by it.
    :ivar privileged: we have CAP_SYS_ADMIN, so that crates need no user namespace.
    :ivar cgroup_version: 1 or 2; 0 if no control group can be made.
    :ivar cgroup_how: where control groups are made, in words.
    """

    kernel: str
    privileged: bool
    cgroup_version: int
    cgroup_how: str
    rows: tuple[Row, ...]

    @property
    def enforced(self) -> bool:
        """Whether every key of a spec can be enforced: no row is missing."""
        return all(row.status != "missing" for row in self.rows)

    def to_json(self) -> dict[str, object]:
        """Return the host as builtins."""
        return {
            "kernel": self.kernel,
            "privileged": self.privileged,
            "cgroup_version": self.cgroup_version,
            "cgroup_how": self.cgroup_how,
            "enforced": self.enforced,
            "rows": [row.to_json() for row in self.rows],
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What the host says of itself that tells why it refuses something; None where it says nothing.

    :ivar privileged: CAP_SYS_ADMIN is effective (``CapEff`` of proc_pid_status(5)).
    :ivar seccomp: a seccomp filter holds us (``Seccomp: 2``).
    :ivar apparmor: the AppArmor profile that confines us, without its mode; empty if none does.
    :ivar container: ``docker``, ``podman``, ``gitlab``, another manager's name, or empty.
    :ivar apparmor_restrict_userns: ``kernel.apparmor_restrict_unprivileged_userns``.
    :ivar userns_clone: ``kernel.unprivileged_userns_clone``, a sysctl of Debian's and Arch's kernels.
    :ivar max_user_namespaces: ``user.max_user_namespaces``.
    :ivar may_map_root: we aren't root, or CAP_SETFCAP is effective: a user namespace may have our user 0 (kernel 5.12).
    """

    privileged: bool
    seccomp: bool = False
    apparmor: str = ""
    container: str = ""
    apparmor_restrict_userns: int | None = None
    userns_clone: int | None = None
    max_user_namespaces: int | None = None
    may_map_root: bool = True


def read_circumstances(
    *, proc_root: str = "/proc", root: str = "/", environ: Mapping[str, str] = os.environ
) -> Circumstances:
    """Read what may explain a refusal.

    :param root: where to look for the files that container engines leave in a container.
    """
    status = read_text(f"{proc_root}/self/status") or ""
    effective = capabilities.parse_capabilities(status).effective
    mounting, mapping = (
        capabilities.capability_mask(capabilities.capability_numbers([name])) for name in ("sys_admin", "setfcap")
    )
    return Circumstances(
        privileged=bool(effective & mounting),
        may_map_root=bool(effective & mapping) or os.geteuid() != 0,
        seccomp="\nSeccomp:\t2\n" in status,
        apparmor=_apparmor_profile(f"{proc_root}/self/attr/current"),
        container=_container(root, environ),
        apparmor_restrict_userns=_sysctl(proc_root, "kernel/apparmor_restrict_unprivileged_userns"),
        userns_clone=_sysctl(proc_root, "kernel/unprivileged_userns_clone"),
        max_user_namespaces=_sysctl(proc_root, "user/max_user_namespaces"),
    )


def _sysctl(proc_root: str, name: str) -> int | None:
    try:
        return int(read_text(f"{proc_root}/sys/{name}") or "")
    except (SandboxError, ValueError):  # hidden from us, or not there: it explains nothing
        return None


def _apparmor_profile(path: str) -> str:
    try:
        label = (read_text(path) or "").strip("\0\n ")
    except SandboxError:  # EINVAL: no security module keeps such a label
        return ""
    return "" if label == "unconfined" else label.partition(" (")[0]


def _container(root: str, environ: Mapping[str, str]) -> str:
    if environ.get("GITLAB_CI") and os.path.exists(f"{root}/.dockerenv"):
        return "gitlab"
    if os.path.exists(f"{root}/.dockerenv"):
        return "docker"
    if os.path.exists(f"{root}/run/.containerenv"):
        return "podman"
    return environ.get("container", "")  # set by systemd-nspawn, LXC and others: container interface of systemd


# --- why a step was refused -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Feature:
    """What a row is about.

    ``without`` is the status of a host that lacks it, ``instead`` what is done there.
    """

    name: str
    affects: tuple[str, ...] = ()
    without: Status = "missing"
    instead: str = ""


_USER_NAMESPACES = _Feature(name="user namespaces")
_NAMESPACES = _Feature(name="namespaces")
_MOUNTS = _Feature(name="private mounts")
_OVERLAY = _Feature(
    name="overlay",
    without="degraded",
    instead="images are copied, and the host's root is read-only but for private directories",
)
_PROC = _Feature(name="fresh proc")
_SYS = _Feature(name="fresh sys")
_HOST_NAME = _Feature(name="host name")
_PIVOT_ROOT = _Feature(name="pivot_root")
_SECCOMP = _Feature(name="seccomp", affects=("seccomp",))
_OPENAT2 = _Feature(name="openat2", without="degraded", instead="paths below a root are walked step by step")
_CLONE3 = _Feature(name="clone3", without="degraded", instead="processes are moved into their control group")
_NEED_NO_NAMESPACE = (_SECCOMP, _OPENAT2, _CLONE3)

_CGROUP_FILES = {
    "memory.memsw": "swap",
    "memory.swap": "swap",
    "memory": "memory",
    "cpuset": "cpuset",
    "cpu": "cpus",
    "pids": "pids",
}
_REFUSALS = (
    errno.EPERM,
    errno.EACCES,
    errno.ENOSPC,
    errno.EUSERS,
    errno.ENOSYS,
    errno.ENODEV,
    errno.EROFS,
)


def _feature_of(error: SandboxError) -> _Feature | None:
    """Return what a step needed, if its error is one by which a host refuses; cgroups are not looked at."""
    call, path = error.syscall, error.path
    if error.errno not in _REFUSALS:
        # An overlay is refused with EINVAL where lowerdir holds locked mounts or upper can't be one.
        return _OVERLAY if call == "mount" and " type overlay" in path and error.errno == errno.EINVAL else None
    if call in ("unshare", "clone", "clone3"):
        flags = int(path, 16) if path.startswith("0x") else 0
        return _USER_NAMESPACES if flags & libc.CLONE_NEWUSER else _NAMESPACES
    if call == "write" and path.endswith(("/uid_map", "/gid_map", "/setgroups")):
        return _USER_NAMESPACES
    if call in ("ioctl", "netlink") and path.startswith(("SIOC", "RTM_")):
        # The first to be refused where AppArmor lets a user namespace be made and takes its capabilities away.
        return _NAMESPACES
    if call == "mount":
        if " type overlay" in path:
            return _OVERLAY
        if " type sysfs" in path:
            return _SYS
        return _PROC if " type proc" in path else _MOUNTS
    if call == "openat2":
        # Any other error is the path's own: no room for a mount point in a full private layer, a shut directory.
        # A policy that skips what a host can't do is not to skip these.
        return _OPENAT2 if error.errno in (errno.ENOSYS, errno.EPERM) else None
    if call == "prctl" and path == str(libc.PR_SET_SECCOMP):
        return _SECCOMP
    return {
        "sethostname": _HOST_NAME,
        "pivot_root": _PIVOT_ROOT,
        "seccomp": _SECCOMP,
        "open_tree": _MOUNTS,
        "move_mount": _MOUNTS,
        "mount_setattr": _MOUNTS,
        "umount2": _MOUNTS,
    }.get(call)


def _remedy(feature: _Feature, number: int | None, host: Circumstances) -> tuple[str, str]:
    """Return why a step was refused, as far as the circumstances tell, and what mends it."""
    makes_user_namespace = feature is _USER_NAMESPACES or (feature is _NAMESPACES and not host.privileged)
    in_user_namespace = not host.privileged and feature not in _NEED_NO_NAMESPACE
    if makes_user_namespace and host.max_user_namespaces == 0:
        return "user.max_user_namespaces is 0", "sudo sysctl -w user.max_user_namespaces=15000"
    if makes_user_namespace and number in (errno.ENOSPC, errno.EUSERS):
        return (
            "the limit on the number of namespaces, or of nested ones, is reached",
            "sudo sysctl -w user.max_user_namespaces=15000",
        )
    if in_user_namespace and host.userns_clone == 0:
        return "kernel.unprivileged_userns_clone is 0", "sudo sysctl -w kernel.unprivileged_userns_clone=1"
    if in_user_namespace and host.apparmor_restrict_userns:
        # AppArmor may let unshare(2) succeed and take the namespace's capabilities away: later steps fail.
        return (
            "AppArmor restricts user namespaces of ordinary users, but for programs whose profile has `userns,`",
            "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        )
    if feature in (_PROC, _SYS) and number in (errno.EPERM, errno.EACCES):
        # The kernel's mount_too_revealing(): the one that is there must not be covered in places.
        return (
            f"{'/proc' if feature is _PROC else '/sys'} is partly masked, and a fresh one would reveal what is hidden",
            "Docker: --security-opt systempaths=unconfined; Podman: --security-opt unmask=ALL",
        )
    if number in _NO_DEVICE_ERRNOS:
        return "the kernel lacks it, or a seccomp filter hides it", ""
    if host.container == "gitlab":
        return "GitLab's docker executor confines its jobs", "privileged = true in the runner's config.toml"
    # What makes or moves mounts is AppArmor's business; the calls that seccomp filters are refused first.
    if host.apparmor and feature not in (_USER_NAMESPACES, _NAMESPACES, _HOST_NAME, *_NEED_NO_NAMESPACE):
        return f"the AppArmor profile {host.apparmor} denies it", "Docker, Podman: --security-opt apparmor=unconfined"
    if host.seccomp and number == errno.EPERM:
        return "a seccomp filter denies it", "Docker, Podman: --security-opt seccomp=unconfined"
    if feature is _OVERLAY:
        return "in a user namespace it needs kernel 5.11, upper on a tmpfs, and lower without mounts below it", ""
    return "", ""


def _row(feature: _Feature, error: SandboxError, host: Circumstances) -> Row:
    if error.path.endswith("/uid_map") and error.errno == errno.EPERM and not host.may_map_root:
        reason = "for root it takes CAP_SETFCAP (kernel 5.12), which a container may lack"
        remedy = "Docker, Podman: --cap-add SETFCAP; or in it run pytest as another user than root"
    else:
        reason, remedy = _remedy(feature, error.errno, host)
    detail = f"{error}; {reason}" if reason else str(error)
    if feature.instead:
        detail = f"{detail}; without it {feature.instead}"
    return Row(feature=feature.name, status=feature.without, detail=detail, affects=feature.affects, remedy=remedy)


def explain(error: SandboxError, *, circumstances: Circumstances | None = None) -> HostError | None:
    """Turn the kernel's refusal of a set-up step into the doctor's words, with the remedy.

    :param circumstances: read from this host if None.
    :returns: None if the error is not one by which a host refuses a feature.
    """
    if error.syscall in ("mkdir", "write") and "/cgroup" in error.path:
        if error.errno not in (*_REFUSALS, errno.EBUSY):
            return None
        version = 2 if os.path.exists(f"{os.path.dirname(error.path)}/cgroup.controllers") else 1
        refusal = explain_refusal(error, version=version)
        return HostError(f"{error}; {refusal.reason}", feature=_cgroup_feature(error.path), hint=refusal.hint)
    feature = _feature_of(error)
    if feature is None:
        return None
    row = _row(feature, error, circumstances or read_circumstances())
    return HostError(row.detail, feature=row.feature, hint=row.remedy)


def _cgroup_feature(path: str) -> str:
    name = os.path.basename(path)
    for prefix, key in _CGROUP_FILES.items():
        if name.startswith(f"{prefix}."):
            return f"{key} limit"
    return "cgroup"


# --- doing it ---------------------------------------------------------------------------------------


class _Findings:
    """The probing process's end of the pipe: one JSON line for each feature, so that a crash loses none."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @contextmanager
    def probe(self, feature: _Feature, detail: str) -> Iterator[None]:
        """Report a feature as working if the block raises nothing; report and raise otherwise."""
        try:
            yield
        except SandboxError as error:
            self._send({"feature": feature.name, "error": error.to_json()})
            raise
        except OSError as error:
            refused = SandboxError(feature.name, path=str(error.filename or ""), errno=error.errno)
            self._send({"feature": feature.name, "error": refused.to_json()})
            raise
        self._send({"feature": feature.name, "detail": detail})

    def _send(self, finding: Mapping[str, object]) -> None:
        os.write(self._descriptor, json.dumps(finding).encode() + b"\n")


def _fork(child: Callable[[], None]) -> int:
    """Fork a process that makes system calls only, and ends without any of the parent's clean-up."""
    with warnings.catch_warnings():
        # Python 3.12 warns of fork with threads about; this child takes no lock that they may hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        child()
        status = 0
    except (SandboxError, OSError):
        status = 2  # reported already
    finally:
        os._exit(status)


def _findings_of(probe: Callable[[_Findings], None]) -> dict[str, Mapping[str, object]]:
    """Run a probe in a process of its own; return its findings by feature.

    If it hangs it is killed after 5 seconds; what it found until then counts.
    """
    reading, writing = os.pipe()

    def child() -> None:
        os.close(reading)
        libc.prctl("die with the prober", libc.PR_SET_PDEATHSIG, signal.SIGKILL)
        probe(_Findings(writing))

    pid = _fork(child)
    os.close(writing)
    try:
        text = _read_all(reading, time.monotonic() + _PROBE_PATIENCE_SEC)
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGKILL)  # it has closed its end, or hangs; as a zombie it takes no harm
        os.waitpid(pid, 0)
    lines = [cast("Mapping[str, object]", json.loads(line)) for line in text.splitlines()]
    return {str(line["feature"]): line for line in lines}


def _read_all(descriptor: int, deadline: float) -> str:
    chunks: list[bytes] = []
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        chunk = os.read(descriptor, 65536)
        if not chunk:
            break
        chunks.append(chunk)
    return b"".join(chunks).decode()


_EACH_NAMESPACE = {
    "mount": libc.CLONE_NEWNS,
    "pid": libc.CLONE_NEWPID,
    "network": libc.CLONE_NEWNET,
    "uts": libc.CLONE_NEWUTS,
    "ipc": libc.CLONE_NEWIPC,
    "cgroup": libc.CLONE_NEWCGROUP,
}


def _enter_user_namespace() -> None:
    maps = identity.single_id_map(os.geteuid(), os.getegid())
    libc.unshare("enter a user namespace", libc.CLONE_NEWUSER)
    identity.write_id_maps("self", *maps, deny_setgroups=True)
    # AppArmor may let a user namespace be made and take its capabilities away; then it is of no use.
    libc.unshare("use the user namespace", libc.CLONE_NEWUTS)


def _probe_user_namespace(findings: _Findings) -> None:
    with findings.probe(_USER_NAMESPACES, "unshare and id maps"):
        _enter_user_namespace()


def _probe_root_filesystem(findings: _Findings, *, privileged: bool) -> None:
    """Do what building a crate does, step by step; the first step refused ends it."""
    if not privileged:
        _enter_user_namespace()
    with findings.probe(_NAMESPACES, f"{', '.join(_EACH_NAMESPACE)}; loopback up"):
        for name, flag in _EACH_NAMESPACE.items():
            libc.unshare(f"enter a new {name} namespace", flag)
        network.loopback_up()
    with (
        findings.probe(_HOST_NAME, "the crate's own can be set"),
        libc.os_step("set a host name", "sethostname", "crate"),
    ):
        # Podman's filter lets unshare(2) make the namespace, and then refuses this.
        socket.sethostname("crate")
    # The new pid namespace begins with the next child, and proc can be mounted only from inside it.
    pid = _fork(lambda: _probe_mounts(findings, privileged=privileged))
    os.waitpid(pid, 0)


def _probe_mounts(findings: _Findings, *, privileged: bool) -> None:
    """Life of the pid namespace's init: it builds a root in a tmpfs on /tmp, enters it and ends; all goes with it."""
    libc.prctl("die with the prober", libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    with findings.probe(_MOUNTS, "propagation off, tmpfs"):
        libc.mount("keep mounts to ourselves", "none", "/", flags=libc.MS_REC | libc.MS_SLAVE)
        libc.mount("mount a tmpfs", "tmpfs", "/tmp", kind="tmpfs", flags=libc.MS_NOSUID | libc.MS_NODEV)
        for name in ("upper", "work", "merged", "proc", "sys"):
            os.mkdir(f"/tmp/{name}", 0o700)
    lower = "/" if privileged else overlay.directory_without_mounts(read_text("/proc/self/mountinfo") or "")
    options = f"lowerdir={lower},upperdir=/tmp/upper,workdir=/tmp/work{'' if privileged else ',userxattr'}"
    # What follows does not need it.
    with (
        contextlib.suppress(SandboxError),
        findings.probe(_OVERLAY, f"lowerdir={lower}, upper on a tmpfs{'' if privileged else ', userxattr'}"),
    ):
        libc.mount("mount an overlay", "overlay", "/tmp/merged", kind="overlay", data=options)
    with findings.probe(_PROC, "mounted in a new pid namespace"):
        flags = libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC
        libc.mount("mount a fresh proc", "proc", "/tmp/proc", kind="proc", flags=flags)
    with findings.probe(_SYS, "of the new network namespace"):
        libc.mount("mount a fresh sysfs", "sysfs", "/tmp/sys", kind="sysfs", flags=flags | libc.MS_RDONLY)
    with findings.probe(_PIVOT_ROOT, "old root detached"):
        os.chdir("/tmp")
        libc.pivot_root("change the root", ".", ".")
        libc.umount("detach the old root", ".", libc.MNT_DETACH)


def _probe_seccomp(findings: _Findings) -> None:
    with findings.probe(_SECCOMP, "the payload's filter can be installed"):
        try:
            program = seccomp.build_filter(platform.machine())
        except HostError as error:
            raise SandboxError("build the system call filter", syscall="seccomp", detail=error.message) from error
        capabilities.no_new_privs()
        seccomp.install(program)


def _probe_openat2(findings: _Findings) -> None:
    with findings.probe(_OPENAT2, "RESOLVE_IN_ROOT"):
        root = os.open("/", os.O_PATH | os.O_DIRECTORY)
        descriptor = libc.openat2_in_root("open below a root", root, "../..", os.O_PATH)
        outside = not os.path.samestat(os.fstat(descriptor), os.fstat(root))
        if outside or not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise SandboxError("open below a root", syscall="openat2", path="../..", detail="it left the root")


def _probe_clone3(findings: _Findings) -> None:
    with findings.probe(_CLONE3, "answers"):
        try:
            libc.syscall("ask for clone3", "clone3", None, 0)
        except SandboxError as error:
            # A size of 0 is EINVAL by the call itself (clone3(2)); a filter or an old kernel says something else.
            if error.errno != errno.EINVAL:
                raise


def probe_host(cgroups: CgroupOffer, *, circumstances: Circumstances | None = None) -> Host:
    """Find out what the host offers to crates by doing it, in child processes and new namespaces.

    :param cgroups: what the control groups of a run can enforce; that has been found out by making one.
    :param circumstances: what explains refusals; read from this host if None.
    """
    host = circumstances or read_circumstances()
    findings = {
        **_findings_of(_probe_user_namespace),
        **_findings_of(lambda pipe: _probe_root_filesystem(pipe, privileged=host.privileged)),
        **_findings_of(_probe_seccomp),
        **_findings_of(_probe_openat2),
        **_findings_of(_probe_clone3),
    }
    chain = (_NAMESPACES, _HOST_NAME, _MOUNTS, _OVERLAY, _PROC, _SYS, _PIVOT_ROOT, _SECCOMP, _OPENAT2, _CLONE3)
    user_namespaces = _finding_row(_USER_NAMESPACES, findings, host)
    if host.privileged and user_namespaces.status == "missing":
        # With CAP_SYS_ADMIN a crate can do without; its payload then has one wall less around it.
        user_namespaces = dataclasses.replace(user_namespaces, status="degraded")
    return Host(
        kernel=platform.release(),
        privileged=host.privileged,
        cgroup_version=cgroups.version,
        cgroup_how=cgroups.how,
        rows=(
            user_namespaces,
            *(_finding_row(feature, findings, host) for feature in chain),
            _id_range_row(host, user_namespaces),
            *_cgroup_rows(cgroups),
        ),
    )


def _id_range_row(host: Circumstances, user_namespaces: Row) -> Row:
    """Say whether an image's crate can have other users than our own, which crate_id_map = range asks for."""
    row = Row(feature=id_range.FEATURE, status="degraded", detail="", affects=("image", "user"))
    if host.privileged:
        return dataclasses.replace(row, status="ok", detail="not needed: root has the ids of this user namespace")
    if user_namespaces.status == "missing":
        return dataclasses.replace(row, detail="not tried: a step before it failed")
    try:
        ids = id_range.find_id_range()
        mapped_process.run_as_root(ids, lambda _: None)
    except HostError as error:
        only = "an image's crate has one user, its root, who is you"
        return dataclasses.replace(row, detail=f"{error.message}; {only}", remedy=error.hint)
    except SandboxError as error:
        return dataclasses.replace(row, detail=str(error))
    count = sum(count for _, count in ids.uids)
    return dataclasses.replace(row, status="ok", detail=f"newuidmap, {count} ids, for crate_id_map = range")


def _finding_row(feature: _Feature, findings: Mapping[str, Mapping[str, object]], host: Circumstances) -> Row:
    finding = findings.get(feature.name)
    if finding is None:
        return Row(
            feature=feature.name,
            status=feature.without,
            detail="not tried: a step before it failed",
            affects=feature.affects,
        )
    if "error" in finding:
        error = SandboxError.from_json(cast("dict[str, str | int | None]", finding["error"]))
        return _row(feature, error, host)
    return Row(feature=feature.name, status="ok", detail=str(finding["detail"]), affects=feature.affects)


def _cgroup_rows(cgroups: CgroupOffer) -> tuple[Row, ...]:
    missing = {limit.key: limit for limit in cgroups.missing}
    if cgroups.version:
        cgroup = Row(feature="cgroup", status="ok", detail=f"v{cgroups.version}, {cgroups.how}", affects=LIMIT_KEYS)
    else:
        why = missing["memory"]
        cgroup = Row(feature="cgroup", status="missing", detail=why.reason, affects=LIMIT_KEYS, remedy=why.hint)
    rows = [cgroup]
    for key in LIMIT_KEYS:
        row = Row(feature=f"{key} limit", status="ok", detail="enforced", affects=(key,))
        if key in missing:
            limit = missing[key]
            row = dataclasses.replace(row, status="missing", detail=limit.reason, remedy=limit.hint)
        elif key not in cgroups.limits:
            row = dataclasses.replace(row, detail="the host has nothing to limit")
        rows.append(row)
    return tuple(rows)
