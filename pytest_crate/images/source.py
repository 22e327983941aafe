"""Where the layers of an image come from."""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from pytest_crate.images.compression import ByteStream


class ImageSource(Protocol):
    """Something that an image's root filesystem can be extracted from."""

    @property
    def origin(self) -> str:
        """Where it is, in words, for messages: a path, an address."""

    def identity(self) -> str:
        """Return what certainly changes when the image does, and is cheap to tell: not its digest.

        :raises OSError: it is not there, or may not be read.
        """

    def layers(self) -> Iterator[AbstractContextManager[ByteStream]]:
        """Yield the layers' bytes, lowest first, each a tar archive that may be compressed.

        :raises OSError: it is not there, or may not be read.
        """


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveFile:
    """A root filesystem in one tar archive on disk.

    :ivar path: the file's absolute path.
    """

    path: str

    @property
    def origin(self) -> str:
        """The path."""
        return self.path

    def identity(self) -> str:
        """Return path, device, inode, size and times; ctime, as mtime can be set back (utimensat(2))."""
        path = os.path.realpath(self.path)
        with self._open() as file:
            status = os.fstat(file.fileno())
        numbers = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return f"{path}\0{' '.join(map(str, numbers))}"

    def layers(self) -> Iterator[AbstractContextManager[ByteStream]]:
        """Yield the file."""
        yield self._open()

    def _open(self) -> io.FileIO:
        # O_NONBLOCK: opening a FIFO would wait for a writer.
        descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "neither a file nor a directory", self.path)
            return io.FileIO(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
