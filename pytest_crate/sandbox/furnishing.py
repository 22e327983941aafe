"""What is a crate's own, made in the namespaces of its init: private layer, network, host name, at last the root."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import libc, network
from pytest_crate.sandbox import steps
from pytest_crate.sandbox.design import Design
from pytest_crate.sandbox.workshop import HOST, PRIVATE, PROC, ROOT, Workshop
from pytest_crate.spec import format_size


def prepare_base(size_bytes: int | None, *, call: libc.Caller = libc.syscall) -> None:
    """Make a private layer the root of the calling process's own, new mount namespace, with the host's tree in it.

    :param size_bytes: of the layer; None is the kernel's default, half of the memory.
    :raises SandboxError: the kernel refuses a step.
    """
    step = "prepare the private layer"
    libc.mount("make mounts private", "none", "/", flags=libc.MS_REC | libc.MS_PRIVATE, call=call)
    base = next((path for path in ("/tmp", "/run", "/mnt", "/var") if os.path.isdir(path)), None)
    if base is None:
        raise SandboxError(step, path="/tmp", errno=errno.ENOENT)
    options = "mode=0755" + (f",size={size_bytes}" if size_bytes is not None else "")
    libc.mount(step, "crate", base, "tmpfs", libc.MS_NOSUID | libc.MS_NODEV, options, call=call)
    full = {} if size_bytes is None else {errno.ENOSPC: _too_small(size_bytes)}
    for name in (HOST, ROOT, PROC, PRIVATE):
        mode = 0o700 if name == PRIVATE else 0o755
        path = base + name
        call(step, "mkdirat", libc.AT_FDCWD, path.encode(), mode, path=path, details=full)
    # It shows the PID namespace of who mounts it: the crate's, in which no builder lives.
    flags = libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC
    libc.mount("mount /proc", "proc", base + PROC, "proc", flags, call=call)
    libc.pivot_root(step, base, base + HOST, call=call)
    call(step, "chdir", b"/", path="/")


def furnish(
    design: Design, kinds: frozenset[str], clock: steps.Clock, *, rootless: bool, one_user: bool = False
) -> None:
    """Set up what is a crate's own in the namespaces that the calling process is in, its root at last.

    Afterwards the host's tree isn't reachable: the old root is detached, not just covered.

    :param rootless: in a user namespace.
    :param one_user: that knows one user only, to whom nobody else's file can be given.
    :raises SandboxError: the kernel refuses a step.
    """
    if "net" in kinds:
        network.loopback_up()
        network.add_addresses()
        if not rootless:
            # A payload's root has no power over the network: ports below 1024 are open to all in it.
            network.allow_low_ports()
    clock.done("set up the network")
    with libc.os_step("set the host name", "sethostname", design.hostname):
        socket.sethostname(design.hostname)
    clock.done("set the host name")
    os.umask(0o022)
    shop = Workshop(rootless=rootless, one_user=one_user)
    try:
        with _named_when_full(design.tmpfs_bytes):
            for operation in design.operations:
                try:
                    operation.perform(shop)
                except OSError as error:  # of what has no step of its own
                    described = " ".join(operation.describe().split())
                    step = f"build the crate's root: {described}"
                    raise SandboxError(step, path=str(error.filename or ""), errno=error.errno) from error
    finally:
        shop.close()
    step = "enter the new root"
    libc.umount(step, HOST, libc.MNT_DETACH)
    with libc.os_step(step, "chdir", ROOT):
        os.chdir(ROOT)
    # With both paths the same, the old root is stacked under the new one, and detached from there
    # (pivot_root(2), "pivot_root(".", ".")").
    libc.pivot_root(step, ".", ".")
    libc.umount(step, ".", libc.MNT_DETACH)
    with libc.os_step(step, "chdir", "/"):
        os.chdir("/")
    clock.done("mount the root")


def _too_small(size_bytes: int) -> str:
    return f"the private layer is full: tmpfs={format_size(size_bytes)} is too small to build the crate"


@contextmanager
def _named_when_full(size_bytes: int | None) -> Iterator[None]:
    """Name the spec's key where the private layer is too small for what a root needs."""
    try:
        yield
    except SandboxError as error:
        if error.errno != errno.ENOSPC or size_bytes is None:
            raise
        raise SandboxError(error.step, path=error.path, errno=error.errno, detail=_too_small(size_bytes)) from error
