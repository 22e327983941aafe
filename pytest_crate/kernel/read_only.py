"""Files that are handed over to be read, and that who gets them can't open anew to write to."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import libc

_STEP = "open a file by a read-only mount"


class Reopened:
    """A file that is open for reading, opened anew by a mount of its own that is read-only.

    An open file leads to its mount: by ``/proc/self/fd`` its owner can open it anew for writing or change its mode, but
    not where that mount is read-only (mount_setattr(2), kernel 5.12).

    :ivar descriptor: of the file, at the place where it was; from then on that place is its own, until :meth:`close`.
    """

    def __init__(self, original: int, descriptor: int) -> None:
        self.descriptor = descriptor
        self._original = original

    @classmethod
    def of(cls, descriptor: int) -> Reopened | None:
        """Open a file anew.

        :returns: None if it is no regular file, or can be written to, or if we may not mount.
        """
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        if flags & (os.O_ACCMODE | os.O_PATH) != os.O_RDONLY or not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        with contextlib.ExitStack() as undo:
            try:
                mount = libc.open_tree(_STEP, descriptor, "")
                undo.callback(os.close, mount)
                libc.set_mount_attributes(_STEP, mount, libc.MOUNT_ATTR_RDONLY, recursive=False)
                own = os.open(f"/proc/self/fd/{mount}", os.O_RDONLY | os.O_CLOEXEC)
            except (SandboxError, OSError):
                return None
            with contextlib.ExitStack() as failed:
                failed.callback(os.close, own)
                os.lseek(own, os.lseek(descriptor, 0, os.SEEK_CUR), os.SEEK_SET)
                original = os.dup(descriptor)
                failed.pop_all()
        return cls(original, own)

    def close(self) -> None:
        """Close it, with the original at the place up to which it has been read; idempotent."""
        if self.descriptor >= 0:
            os.lseek(self._original, os.lseek(self.descriptor, 0, os.SEEK_CUR), os.SEEK_SET)
            os.close(self.descriptor)
            os.close(self._original)
            self.descriptor = -1
