"""Whether this host has overlays for crates, found out by mounting one as they do."""

from __future__ import annotations

import os

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import hierarchies, identity, libc, namespaces

_REFUSED = 3


def directory_without_mounts(mountinfo: str) -> str:
    """Return a top-level directory that an overlay can lie over in a user namespace: one without mounts below.

    :param mountinfo: the text of ``/proc/self/mountinfo`` (proc(5)).
    """
    points = [line.split(" ")[4] for line in hierarchies.lines_of(mountinfo)]
    for directory in ("/usr", "/etc", "/var", "/opt", "/home"):
        if os.path.isdir(directory) and not any(f"{point}/".startswith(f"{directory}/") for point in points):
            return directory
    return "/usr"


def is_refused(*, rootless: bool) -> bool:
    """Tell whether the kernel refuses an overlay over the host's root, or in a user namespace over a part of it.

    It does where it has none, where one is not for user namespaces (before 5.11), and on a root that is itself an
    overlay over an overlay, as in a container in a container. What else stands in the way of a crate is nothing to
    this: a crate will meet it. The caller has a single thread.
    """
    flags = libc.CLONE_NEWNS | (libc.CLONE_NEWUSER if rootless else 0)
    maps = identity.single_id_map(os.geteuid(), os.getegid())
    try:
        pid = namespaces.fork_into("try an overlay", flags)
    except SandboxError:
        return False
    if pid == 0:
        status = 0
        try:
            if rootless:
                identity.write_id_maps("self", *maps, deny_setgroups=True)
            status = _REFUSED if _try(rootless=rootless) else 0
        except (SandboxError, OSError):
            status = 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == _REFUSED


def _try(*, rootless: bool) -> bool:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape", newline="\n") as stream:
        lower = directory_without_mounts(stream.read()) if rootless else "/"
    libc.mount("make mounts private", "none", "/", flags=libc.MS_REC | libc.MS_PRIVATE)
    libc.mount("mount a tmpfs", "crate", "/tmp", "tmpfs", flags=libc.MS_NOSUID | libc.MS_NODEV)
    for name in ("upper", "work", "merged"):
        os.mkdir(f"/tmp/{name}")
    options = f"lowerdir={lower},upperdir=/tmp/upper,workdir=/tmp/work{',userxattr' if rootless else ''}"
    try:
        libc.mount("try an overlay", "crate", "/tmp/merged", "overlay", data=options)
    except SandboxError:
        return True
    return False
