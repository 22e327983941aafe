"""Where a root is built: a private base in init's own mount namespace, with the host's tree and the new root in it."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import libc

# While the root is being built, `/` is a private tmpfs, the *base*, with these directories. It
# stays alive, detached, for as long as a mount in the crate refers to it; its size bounds all
# that the crate writes.
HOST = "/host"  # the host's tree as init found it
ROOT = "/root"  # the crate's root in the making
PROC = "/proc"  # of the crate's PID namespace
PRIVATE = "/private"  # one directory per overlay layer and private directory

# What a less privileged mount namespace may not clear (mount_namespaces(7), "locked" flags).
_KEPT_FLAGS = {
    os.ST_NOSUID: libc.MS_NOSUID,
    os.ST_NODEV: libc.MS_NODEV,
    os.ST_NOEXEC: libc.MS_NOEXEC,
    os.ST_NOATIME: libc.MS_NOATIME,
    os.ST_NODIRATIME: libc.MS_NODIRATIME,
    os.ST_RELATIME: libc.MS_RELATIME,
}


_IS_THE_HOSTS = (
    "it is a symbolic link in a directory of the host's that is mounted rw, and is not replaced: mount where it leads"
)


class Workshop:
    """Where operations are performed: the base tmpfs, the root in the making and what is held aside."""

    def __init__(self, *, rootless: bool, one_user: bool) -> None:
        self.rootless = rootless
        self.one_user = one_user
        self.captured: dict[str, int] = {}
        self.shared: set[int] = set()
        """The file systems (``st_dev``) of the host's directories that may be written to: nothing is removed there."""
        self._private_count = 0
        self._stack = ExitStack()
        self._root: int | None = None

    @property
    def root(self) -> int:
        """A descriptor of the root in the making, opened once its first mount is there."""
        if self._root is None:
            with libc.os_step("open the new root", "open", ROOT):
                self._root = self.hold(os.open(ROOT, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        return self._root

    def hold(self, descriptor: int) -> int:
        """Close a descriptor when the work is done."""
        self._stack.callback(os.close, descriptor)
        return descriptor

    def close(self) -> None:
        """Close every descriptor held."""
        self._stack.close()

    def new_private(self, mode: int) -> str:
        """Make an empty directory on the base and return its path."""
        self._private_count += 1
        path = f"{PRIVATE}/{self._private_count}"
        with libc.os_step("make a private directory", "mkdir", path):
            os.mkdir(path)
            os.chmod(path, mode)
        return path

    @contextmanager
    def target(self, path: str, *, directory: bool) -> Iterator[str]:
        """Give a path that stands for a place in the root, made if it is missing.

        It is resolved inside the root and held open, so that no symlink of an image leads the
        mount out of it (CVE-2021-30465, CVE-2025-31133). A symlink at the place itself is replaced, unless it is
        the host's.
        """
        descriptor = self._open(path, directory=directory)
        try:
            yield f"{HOST}/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)

    def _open(self, path: str, *, directory: bool) -> int:
        step = "make a mount point"
        if path == "/":
            return os.dup(self.root)
        parent_path, name = os.path.split(path)
        for _ in range(2):
            try:
                descriptor = libc.open_in_root(step, self.root, path, os.O_PATH | os.O_NOFOLLOW)
            except SandboxError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                    raise
                descriptor = -1
            if descriptor >= 0:
                mode = os.fstat(descriptor).st_mode
                if stat.S_ISDIR(mode) == directory and not stat.S_ISLNK(mode):
                    return descriptor
                os.close(descriptor)
            parent = self.directory(parent_path)
            try:
                with libc.os_step(step, "mkdirat", path):
                    if descriptor >= 0:
                        if os.fstat(parent).st_dev in self.shared:
                            raise SandboxError(step, path=path, detail=_IS_THE_HOSTS)
                        # Of the wrong kind, or a symlink: the private layer gets what is needed instead.
                        if directory:
                            os.unlink(name, dir_fd=parent)
                        elif stat.S_ISDIR(mode):
                            os.rmdir(name, dir_fd=parent)
                        else:
                            os.unlink(name, dir_fd=parent)
                    if directory:
                        os.mkdir(name, 0o755, dir_fd=parent)
                    else:
                        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=parent))
            finally:
                os.close(parent)
        raise SandboxError(step, path=path, detail="it could not be made a place of the right kind")

    def directory(self, path: str) -> int:
        """Open a directory in the root, following its symlinks inside the root; make it if it is missing."""
        try:
            return libc.open_in_root("make a mount point", self.root, path, os.O_PATH | os.O_DIRECTORY)
        except SandboxError as error:
            if error.errno != errno.ENOENT:
                raise
        return self._open(path, directory=True)

    def source(self, path: str) -> str:
        """Return the path by which a host path is reached while the root is built."""
        return HOST + path

    def restrict(self, step: str, path: str, attributes: int, *, recursive: bool = False) -> None:
        """Add attributes, such as read-only, to the mount at a path; with ``recursive`` to those below it as well."""
        with libc.os_step(step, "open", path):
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            libc.set_mount_attributes(step, place, attributes, recursive=recursive, path=path)
        except SandboxError as error:
            if error.errno != errno.ENOSYS:  # kernel 5.12
                raise
            with libc.os_step(step, "readlink", path):
                mount = os.readlink(f"{HOST}/proc/self/fd/{place}")
            for point in (mount, *(_mounts_below(mount) if recursive else ())):
                self._remount(step, point, attributes)
        finally:
            os.close(place)

    @staticmethod
    def _remount(step: str, path: str, attributes: int) -> None:
        with libc.os_step(step, "statvfs", path):
            flags = os.statvfs(path).f_flag
        kept = sum(value for bit, value in _KEPT_FLAGS.items() if flags & bit and not attributes & value)
        # MOUNT_ATTR_RDONLY, NOSUID, NODEV and NOEXEC have the values of the MS_ flags of these names.
        libc.mount(step, "none", path, flags=libc.MS_REMOUNT | libc.MS_BIND | attributes | kept)

    def bind(self, step: str, source: str, place: str, *, recursive: bool = False) -> None:
        """Bind-mount a path of the building view on an open place."""
        libc.mount(step, source, place, flags=libc.MS_BIND | (libc.MS_REC if recursive else 0))


def _mounts_below(path: str) -> list[str]:
    with open(f"{HOST}/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape", newline="\n") as stream:
        points = [re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), line.split(" ")[4]) for line in stream]
    return [point for point in points if point.startswith(f"{path}/")]
