"""Layers become a root filesystem: each archive entry is created inside one directory, and nowhere else."""

from __future__ import annotations

import dataclasses
import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pytest_crate.errors import ImageError, SandboxError
from pytest_crate.images.tarstream import ArchiveError, TarEntry, TarStream, shown
from pytest_crate.images.tree import remove_tree
from pytest_crate.kernel import libc
from pytest_crate.spec import format_size


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExtractLimits:
    """How large one image may be, against decompression bombs.

    :ivar size_bytes: most that each of its layers may decompress to, headers included.
    :ivar entries: most files, directories and links.
    :ivar kept_bytes: most that the names and attributes of its directories and device nodes may take, which are kept in
        memory until it is complete.
    """

    size_bytes: int = 16 << 30
    entries: int = 1_000_000
    kept_bytes: int = 64 << 20


@dataclasses.dataclass(slots=True, kw_only=True)
class Contents:
    """What was extracted, and what was left out.

    :ivar entries: the archive's entries, and the parent directories that it had none for.
    :ivar data_bytes: data written to files.
    :ivar devices_skipped: device nodes, which are never created: a crate has its own ``/dev``.
    :ivar xattrs_skipped: extended attributes that a crate must not have, or that could not be set.
    """

    entries: int = 0
    data_bytes: int = 0
    devices_skipped: int = 0
    xattrs_skipped: int = 0


class RootfsBuilder:
    """Extracts layers, lowest first, into one directory; :meth:`finish` completes it.

    Until then the directory must be nobody else's. Names are resolved by the kernel with the directory as the root:
    the archive's symlinks lead where they will lead inside a crate (``lib -> usr/lib`` and then ``lib/x`` is common
    in real images), and never out of it. The last component of a name is never followed.

    :param root: descriptor of the directory, which is empty. It stays the caller's.
    :param where: that directory, for messages.
    :param remedy: what ends the message where the disk is full.
    :param keep_owners: set the owners that the archive states, which takes root; else all is the user's.
    """

    def __init__(
        self, root: int, *, reference: str, where: str, limits: ExtractLimits, keep_owners: bool, remedy: str = ""
    ) -> None:
        self.contents = Contents()
        self._root = root
        self._reference = reference
        self._where = where
        self._remedy = remedy
        self._limits = limits
        self._keep_owners = keep_owners
        # By device and inode, as one directory may have many names, and one name may come to mean another directory.
        self._directories: dict[tuple[int, int], tuple[bytes, TarEntry]] = {}
        self._devices: set[bytes] = set()
        self._kept_bytes = 0
        self._parent = -1
        self._parent_path: bytes | None = None

    def add_layer(
        self, read: Callable[[int], bytes], *, origin: str, started: Callable[[], None] | None = None
    ) -> None:
        """Extract one layer over what is there.

        :param read: gives the layer's uncompressed tar stream, as :class:`TarStream` wants it.
        :param origin: where it comes from, for messages.
        :param started: called at the first entry: it is an archive.
        :raises ImageError: the archive is damaged, hostile or too large, or the disk refused. It names the entry.
        """
        layer = TarStream(read)
        name = b""
        try:
            for entry in layer.entries():
                if started is not None and not name:
                    started()
                name = entry.name
                self._add(entry, layer)
        except ArchiveError as error:
            place = f"{origin}, at or after {shown(name)}" if name else origin
            raise ImageError(self._reference, f"{place}: {error}") from error
        except OSError as error:
            raise ImageError(
                self._reference,
                f"{origin}: cannot extract {shown(name)} into {self._where}: {error.strerror} (errno {error.errno})"
                f"{self._remedy if error.errno in (errno.ENOSPC, errno.EDQUOT) else ''}",
            ) from error
        finally:
            self._close_parent()

    def finish(self) -> Contents:
        """Give every directory its owner, mode and times, which had to wait until all was in it.

        :raises ImageError: the disk refused.
        """
        name = b""
        try:
            # Children before parents, whose modes may shut their owner out.
            for identity, (name, entry) in reversed(self._directories.items()):
                self._complete_directory(identity, name, entry)
        except OSError as error:
            raise ImageError(
                self._reference,
                f"cannot complete {shown(name)} in {self._where}: {error.strerror} (errno {error.errno})",
            ) from error
        return self.contents

    def _add(self, entry: TarEntry, layer: TarStream) -> None:
        self._count_entry()
        path = _components(entry.name)
        if not path:
            if entry.kind != "directory":
                raise ArchiveError("it makes its root something else than a directory")
            self._remember_directory(self._root, b"", entry)
            return
        if entry.kind == "device":
            # Not as root either: a device node is power over the host, and 0:0 is overlayfs's whiteout.
            self.contents.devices_skipped += 1
            self._keep(entry)
            self._devices.add(b"/".join(path))
            return
        name = path.pop()
        parent = self._open_parent(b"/".join(path), entry)
        match entry.kind:
            case "directory":
                self._add_directory(parent, name, entry)
            case "hardlink":
                self._add_hardlink(parent, name, entry)
            case "symlink":
                self._make_room(parent, name)
                os.symlink(entry.target, name, dir_fd=parent)
                self._set_symlink_metadata(parent, name, entry)
            case "fifo":
                self._make_room(parent, name)
                os.mkfifo(name, 0o600, dir_fd=parent)
                with _opened(parent, name, os.O_RDONLY | os.O_NONBLOCK) as descriptor:
                    self._set_metadata(descriptor, entry)
            case "file":
                self._make_room(parent, name)
                with _opened(parent, name, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor:
                    self._write_data(descriptor, entry, layer)
                    self._set_metadata(descriptor, entry)

    def _count_entry(self) -> None:
        self.contents.entries += 1
        if self.contents.entries > self._limits.entries:
            raise ArchiveError(f"it has more entries than the limit of {self._limits.entries}")

    def _keep(self, entry: TarEntry) -> None:
        """Count what is kept of an entry: each of its texts may be as long as a whole extended header."""
        attributes = sum(len(key) + len(value) for key, value in entry.xattrs.items())
        self._kept_bytes += len(entry.name) + len(entry.target) + attributes
        if self._kept_bytes > self._limits.kept_bytes:
            most = format_size(self._limits.kept_bytes)
            raise ArchiveError(
                f"names and attributes of its directories and devices take more than the limit of {most}"
            )

    def _open_parent(self, path: bytes, entry: TarEntry) -> int:
        """Return a descriptor of an entry's parent directory, which stays this object's.

        The latest is kept, as neighbours in an archive mostly share it. Only a removal can change what a path leads
        to, so :meth:`_make_room` makes this look anew.
        """
        if self._parent_path != path:
            self._close_parent()
            try:
                self._parent = _open_in_root(self._root, path)
            except FileNotFoundError:
                self._make_parents(path, entry)
                self._parent = _open_in_root(self._root, path)
            self._parent_path = path
        return self._parent

    def _close_parent(self) -> None:
        if self._parent >= 0:
            os.close(self._parent)
        self._parent, self._parent_path = -1, None

    def _make_parents(self, path: bytes, entry: TarEntry) -> None:
        """Create the directories that the archive has no entries for; they are root's, with the usual mode."""
        implied = TarEntry(name=path, kind="directory", mode=0o755, mtime_nsec=entry.mtime_nsec)
        above, names = b"", path.split(b"/")
        for name in names:
            directory = _open_in_root(self._root, above)
            above = b"/".join((above, name)) if above else name
            try:
                os.mkdir(name, 0o700, dir_fd=directory)
            except FileExistsError:
                if not _leads_somewhere(self._root, above):
                    raise ArchiveError(f"{shown(above)} is a symlink that leads nowhere") from None
            else:
                self._count_entry()
                with _opened(directory, name, os.O_RDONLY | os.O_DIRECTORY) as created:
                    self._remember_directory(created, above, implied)
            finally:
                os.close(directory)

    def _add_directory(self, parent: int, name: bytes, entry: TarEntry) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
                self._make_room(parent, name)
                os.mkdir(name, 0o700, dir_fd=parent)
        with _opened(parent, name, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
            self._remember_directory(descriptor, b"/".join(_components(entry.name)), entry)

    def _add_hardlink(self, parent: int, name: bytes, entry: TarEntry) -> None:
        path = _components(entry.target)
        if not path:
            raise ArchiveError("it is a hard link to the root")
        target = path.pop()
        try:
            directory = _open_in_root(self._root, b"/".join(path))
            try:
                status = os.lstat(target, dir_fd=directory)
                if stat.S_ISDIR(status.st_mode):
                    raise ArchiveError(f"it is a hard link to the directory {shown(entry.target)}")
                if _is_same(status, parent, name):
                    return
                self._make_room(parent, name)
                os.link(target, name, src_dir_fd=directory, dst_dir_fd=parent, follow_symlinks=False)
            finally:
                os.close(directory)
        except FileNotFoundError:
            if b"/".join((*path, target)) not in self._devices:
                raise ArchiveError(
                    f"it is a hard link to {shown(entry.target)}, which the archive does not have before it"
                ) from None
            self.contents.devices_skipped += 1

    def _make_room(self, parent: int, name: bytes) -> None:
        """Remove what an earlier entry, or a lower layer, created under this name."""
        try:
            os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            return
        except IsADirectoryError:
            remove_tree(parent, name)
        self._parent_path = None

    def _write_data(self, descriptor: int, entry: TarEntry, layer: TarStream) -> None:
        end = 0
        for start, piece in layer.data(entry):
            written = 0
            while written < len(piece):
                written += os.pwrite(descriptor, piece[written:] if written else piece, start + written)
            end = start + written
            self.contents.data_bytes += written
        if end < entry.size_bytes:
            os.ftruncate(descriptor, entry.size_bytes)

    def _remember_directory(self, descriptor: int, path: bytes, entry: TarEntry) -> None:
        """Keep a directory's owner, mode and times for :meth:`finish`; until then it must be its owner's to write."""
        self._keep(entry)
        status = os.fstat(descriptor)
        self._directories[status.st_dev, status.st_ino] = (path, entry)

    def _complete_directory(self, identity: tuple[int, int], path: bytes, entry: TarEntry) -> None:
        above, _, name = path.rpartition(b"/")
        try:
            parent = _open_in_root(self._root, above)
        except (FileNotFoundError, NotADirectoryError):
            return  # a later entry replaced it
        try:
            with _opened(parent, name or b".", os.O_RDONLY | os.O_DIRECTORY) as descriptor:
                status = os.fstat(descriptor)
                if (status.st_dev, status.st_ino) == identity:
                    self._set_metadata(descriptor, entry)
        except (FileNotFoundError, NotADirectoryError):
            return
        finally:
            os.close(parent)

    def _set_metadata(self, descriptor: int, entry: TarEntry) -> None:
        # In this order: chown(2) clears setuid bits and file capabilities.
        if self._keep_owners:
            os.fchown(descriptor, entry.uid, entry.gid)
        for key, value in entry.xattrs.items():
            self._set_xattr(descriptor, key, value)
        os.fchmod(descriptor, entry.mode)
        os.utime(descriptor, ns=(entry.mtime_nsec, entry.mtime_nsec))

    def _set_symlink_metadata(self, parent: int, name: bytes, entry: TarEntry) -> None:
        if self._keep_owners:
            os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        self.contents.xattrs_skipped += len(entry.xattrs)
        os.utime(name, ns=(entry.mtime_nsec, entry.mtime_nsec), dir_fd=parent, follow_symlinks=False)

    def _set_xattr(self, descriptor: int, key: bytes, value: bytes) -> None:
        # Labels and ACLs name the ids and policies of another system. overlayfs obeys xattrs of its own in a lower
        # layer: trusted.overlay.*, or user.overlay.* when mounted with userxattr.
        wanted = key.startswith(b"user.") and not key.startswith(b"user.overlay.")
        if wanted or (key == b"security.capability" and self._keep_owners):
            try:
                os.setxattr(descriptor, key, value)
                return
            except OSError as error:
                # A file system without them; user.* on something else than a file or a directory (xattr(7)).
                if error.errno not in (errno.ENOTSUP, errno.EPERM):
                    raise
        self.contents.xattrs_skipped += 1


def _components(name: bytes) -> list[bytes]:
    """Return a name's components. An absolute name is relative to the root, as for tar(1)."""
    components = [component for component in name.split(b"/") if component not in (b"", b".")]
    if b".." in components:
        raise ArchiveError(f"{shown(name)} contains '..'")
    return components


def _open_in_root(root: int, path: bytes) -> int:
    """Open a directory by a path whose symlinks are followed, but never out of the root."""
    try:
        return libc.open_in_root(
            "open a directory of the image", root, os.fsdecode(path) or ".", os.O_RDONLY | os.O_DIRECTORY
        )
    except SandboxError as error:
        number = error.errno or errno.EIO
        raise OSError(number, os.strerror(number), path) from error


def _leads_somewhere(root: int, path: bytes) -> bool:
    try:
        os.close(_open_in_root(root, path))
    except FileNotFoundError:
        return False
    return True


@contextmanager
def _opened(parent: int, name: bytes, flags: int) -> Iterator[int]:
    descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_same(status: os.stat_result, parent: int, name: bytes) -> bool:
    try:
        other = os.lstat(name, dir_fd=parent)
    except FileNotFoundError:
        return False
    return (status.st_dev, status.st_ino) == (other.st_dev, other.st_ino)
