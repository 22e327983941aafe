"""Copies a directory tree: files, links, owners, modes, times and the attributes that an image's files may have."""

from __future__ import annotations

import errno
import os
import stat

_CHUNK_BYTES = 1 << 26


def copy_tree(source: int, target: int, *, owners: bool) -> None:
    """Copy what is in a directory, and its metadata, into an empty one; no symlink is followed.

    Device nodes and sockets are left out: an image in the store has none.

    :param source: descriptor of the directory.
    :param target: descriptor of the empty one.
    :param owners: set the owners, too; else all is the calling user's.
    :raises OSError: something could not be copied.
    """
    _Copier(owners=owners).copy(source, target)


class _Copier:
    def __init__(self, *, owners: bool) -> None:
        self._owners = owners
        # Of files with several names: the first copy's directory, kept open, and name.
        self._links: dict[tuple[int, int], tuple[int, str]] = {}

    def copy(self, source: int, target: int) -> None:
        try:
            self._copy(source, target)
        finally:
            for directory, _ in self._links.values():
                os.close(directory)

    def _copy(self, source: int, target: int) -> None:
        with os.scandir(source) as listing:
            names = [entry.name for entry in listing]
        for name in names:
            status = os.lstat(name, dir_fd=source)
            if stat.S_ISDIR(status.st_mode):
                self._copy_directory(source, target, name)
            elif stat.S_ISLNK(status.st_mode):
                os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
                self._complete_link(target, name, status)
            elif stat.S_ISREG(status.st_mode) and not self._linked(status, target, name):
                self._copy_file(source, target, name)
            elif stat.S_ISFIFO(status.st_mode):
                os.mkfifo(name, 0o600, dir_fd=target)
                self._complete_link(target, name, status)
                os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=target)
        # Last: what was made in it has changed its times, and its mode may shut its owner out.
        self._complete(source, target)

    def _copy_directory(self, source: int, target: int, name: str) -> None:
        os.mkdir(name, 0o700, dir_fd=target)
        inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
        try:
            copy = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=target)
            try:
                self._copy(inner, copy)
            finally:
                os.close(copy)
        finally:
            os.close(inner)

    def _linked(self, status: os.stat_result, target: int, name: str) -> bool:
        """Make another name of a file that has been copied already; False if it has not."""
        if status.st_nlink == 1:
            return False
        known = self._links.get((status.st_dev, status.st_ino))
        if known is None:
            self._links[status.st_dev, status.st_ino] = os.dup(target), name
            return False
        directory, first = known
        os.link(first, name, src_dir_fd=directory, dst_dir_fd=target, follow_symlinks=False)
        return True

    def _copy_file(self, source: int, target: int, name: str) -> None:
        original = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
        try:
            copy = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
            try:
                while os.sendfile(copy, original, None, _CHUNK_BYTES):
                    continue
                self._complete(original, copy)
            finally:
                os.close(copy)
        finally:
            os.close(original)

    def _complete(self, source: int, target: int) -> None:
        status = os.fstat(source)
        # In this order: chown(2) clears setuid bits and file capabilities.
        if self._owners:
            os.fchown(target, status.st_uid, status.st_gid)
        for key in os.listxattr(source):
            if key.startswith("user.") or (key == "security.capability" and self._owners):
                try:
                    os.setxattr(target, key, os.getxattr(source, key))
                except OSError as error:
                    # tmpfs has user.* since kernel 6.6 only.
                    if error.errno != errno.ENOTSUP:
                        raise
        os.fchmod(target, stat.S_IMODE(status.st_mode))
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))

    def _complete_link(self, directory: int, name: str, status: os.stat_result) -> None:
        if self._owners:
            os.chown(name, status.st_uid, status.st_gid, dir_fd=directory, follow_symlinks=False)
        os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=directory, follow_symlinks=False)
