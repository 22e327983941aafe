"""Files that are handed over to be read, and that who gets them can't open anew to write to."""

from __future__ import annotations

import fcntl
import os
import stat

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import libc

_STEP = "open a file by a read-only mount"


def reopened(descriptor: int) -> int | None:
    """Return a descriptor of the same file, by a mount of its own that is read-only.

    An open file leads to its mount: by ``/proc/self/fd`` its owner can open it anew for writing or change its mode, but
    not where that mount is read-only (mount_setattr(2), kernel 5.12). It is read from where it was; from then on each
    descriptor has a place of its own.

    :returns: None if it is no regular file, or can be written to, or if we may not mount.
    """
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    if flags & (os.O_ACCMODE | os.O_PATH) != os.O_RDONLY or not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return None
    try:
        mount = libc.open_tree(_STEP, descriptor, "")
        try:
            libc.set_mount_attributes(_STEP, mount, libc.MOUNT_ATTR_RDONLY, recursive=False)
            own = os.open(f"/proc/self/fd/{mount}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(mount)
    except (SandboxError, OSError):
        return None
    try:
        os.lseek(own, os.lseek(descriptor, 0, os.SEEK_CUR), os.SEEK_SET)
    except BaseException:
        os.close(own)
        raise
    return own
