"""A layer's bytes on their way in: hashed as they are stored, decompressed, counted against a limit."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import importlib
import io
import lzma
import sys
import zlib
from collections.abc import Callable
from typing import Any, Protocol, cast

from pytest_crate.errors import ImageError
from pytest_crate.images.tarstream import ArchiveError
from pytest_crate.spec import format_size

_CHUNK_BYTES = 1 << 20
# xz's strongest preset needs 65 MiB to decompress (xz(1)); a hostile header may ask for 4 GiB.
_XZ_MEMORY_BYTES = 256 << 20


class ByteStream(Protocol):
    """What bytes are read from."""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to ``size`` bytes, none only at the end."""


class LayerStream:
    """One layer, compressed or not: what its first bytes say counts, not its name.

    :param raw: the bytes as stored or downloaded; it need not be seekable.
    :param limit_bytes: most that it may decompress to.
    :param on_read: called with the number of decompressed bytes so far.
    """

    def __init__(
        self, raw: ByteStream, *, reference: str, limit_bytes: int, on_read: Callable[[int], None] | None = None
    ) -> None:
        self._limit_bytes = limit_bytes
        self._on_read = on_read
        self._read_bytes = 0
        self._stored = _HashedStream(raw)
        self._plain = _decompressed(self._stored, reference)

    def read(self, size: int) -> bytes:
        """Return ``size`` decompressed bytes, or fewer at the end.

        :raises ArchiveError: the compressed data is damaged, truncated, or decompresses to more than the limit.
        """
        pieces = []
        while size > 0 and (piece := self._read_some(size)):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def digest(self) -> str:
        """Read to the end, so that the compressed data's own checksums are verified, and return ``"sha256:…"``.

        The digest is of the bytes as stored.
        """
        while self._read_some(_CHUNK_BYTES):
            continue
        while self._stored.read(_CHUNK_BYTES):
            continue
        return f"sha256:{self._stored.hash.hexdigest()}"

    def _read_some(self, size: int) -> bytes:
        try:
            data = self._plain.read(size)
        except EOFError as error:
            raise ArchiveError("its compressed data ends too early: it is truncated") from error
        except (zlib.error, lzma.LZMAError) as error:
            raise ArchiveError(f"its compressed data is damaged: {error}") from error
        except OSError as error:
            if error.errno is not None:  # the disk's, not gzip's or bz2's, which carry no errno
                raise
            raise ArchiveError(f"its compressed data is damaged: {error}") from error
        self._read_bytes += len(data)
        if self._read_bytes > self._limit_bytes:
            raise ArchiveError(f"it is larger than the limit of {format_size(self._limit_bytes)}")
        if self._on_read:
            self._on_read(self._read_bytes)
        return data


class _HashedStream(io.RawIOBase):
    """Passes bytes on and hashes them; its first bytes can be looked at."""

    def __init__(self, raw: ByteStream) -> None:
        self._raw = raw
        self._peeked = b""
        self.hash = hashlib.sha256()

    def peek(self, size: int) -> bytes:
        while len(self._peeked) < size and (data := self._raw.read(size - len(self._peeked))):
            self._peeked += data
        return self._peeked

    def read(self, size: int = -1) -> bytes:
        if self._peeked:
            end = len(self._peeked) if size < 0 else size
            data, self._peeked = self._peeked[:end], self._peeked[end:]
        else:
            data = self._raw.read(size)
        self.hash.update(data)
        return data


class _XzStream:
    """xz data of one or more streams, within a limit on memory; :class:`lzma.LZMAFile` offers none."""

    def __init__(self, stored: ByteStream) -> None:
        self._stored = stored
        self._decoder = self._new_decoder()

    def _new_decoder(self) -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)

    def read(self, size: int = -1, /) -> bytes:
        while True:
            data = b""
            if self._decoder.eof:
                # Streams may follow each other, with padding of null bytes between and after them (xz(1)).
                data = self._decoder.unused_data.lstrip(b"\0")
                while not data and (more := self._stored.read(_CHUNK_BYTES)):
                    data = more.lstrip(b"\0")
                if not data:
                    return b""
                self._decoder = self._new_decoder()
            elif self._decoder.needs_input and not (data := self._stored.read(_CHUNK_BYTES)):
                raise EOFError
            if plain := self._decoder.decompress(data, size):
                return plain


class _ZstdStream:
    """zstd data, by the standard library from Python 3.14 on, by the package zstandard before."""

    def __init__(self, stored: _HashedStream, reference: str) -> None:
        name = "compression.zstd" if sys.version_info >= (3, 14) else "zstandard"
        try:
            zstd: Any = importlib.import_module(name)
        except ImportError as error:
            raise ImageError(
                reference,
                f"it is compressed with zstd, for which Python's {name} is missing: "
                "pip install 'pytest-crate-sandbox[zstd]'",
            ) from error
        self._error: type[Exception] = zstd.ZstdError
        if name == "zstandard":
            self._plain = zstd.ZstdDecompressor().stream_reader(stored, read_across_frames=True)
        else:
            self._plain = zstd.ZstdFile(stored)
        self._stored = stored

    def read(self, size: int = -1, /) -> bytes:
        try:
            return cast("bytes", self._plain.read(size))
        except self._error as error:
            raise ArchiveError(f"its compressed data is damaged: {error}") from error


def _decompressed(stored: _HashedStream, reference: str) -> ByteStream:
    magic = stored.peek(6)
    if magic.startswith(b"\x1f\x8b"):
        return cast("ByteStream", gzip.GzipFile(fileobj=stored))
    if magic.startswith(b"BZh"):
        return bz2.BZ2File(stored)
    if magic == b"\xfd7zXZ\0":
        return _XzStream(stored)
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        return _ZstdStream(stored, reference)
    return stored
