"""The one line at the head of a run that says what enforces the crates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

_UNSUPPORTED = {
    "fail": "tests that need it fail",
    "skip": "tests that need it are skipped",
    "run": "tests that need it RUN UNSANDBOXED",
}


def header_line(
    *,
    kernel_release: str,
    cgroup_version: int | None,
    cgroup_parent: str = "",
    rootless: bool = False,
    rootfs: str = "",
    not_enforced: Sequence[str] = (),
    unsupported: Literal["fail", "skip", "run"] = "fail",
    off: bool = False,
    user_namespace: bool = True,
) -> str:
    """Return a line such as ``crate: cgroup v2 (systemd scope), rootless, overlay, kernel 6.8``.

    :param kernel_release: as uname(2) gives it; major and minor are shown.
    :param cgroup_version: 1, 2, or None if no cgroup can be used.
    :param cgroup_parent: how the crates' cgroups' parent was got, in words, such as ``"systemd scope"``.
    :param rootfs: how the copy-on-write root is made, such as ``"overlay"``.
    :param not_enforced: what this host can't enforce, such as ``["cpus", "pids"]``.
    :param unsupported: the policy for tests that need what it can't enforce.
    :param off: ``--crate-off`` was given.
    :param user_namespace: what runs in crates is in a user namespace.
    """
    if off:
        return "crate: OFF (--crate-off): marked tests run UNSANDBOXED, no limit is enforced"
    cgroup = "NO cgroup" if cgroup_version is None else f"cgroup v{cgroup_version}"
    if cgroup_version is not None and cgroup_parent:
        cgroup = f"{cgroup} ({cgroup_parent})"
    release = re.match(r"\d+\.\d+", kernel_release)
    who = "rootless" if rootless else "root" if user_namespace else "root WITHOUT a user namespace"
    parts = [cgroup, who, rootfs, f"kernel {release[0] if release else kernel_release}"]
    line = f"crate: {', '.join(part for part in parts if part)}"
    if not_enforced:
        line = f"{line}; NOT enforced: {', '.join(not_enforced)} ({_UNSUPPORTED[unsupported]})"
    return line
