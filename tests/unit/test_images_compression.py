"""Layers: decompression by content, digest of the stored bytes, limits."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import importlib
import io
import lzma
import sys
from collections.abc import Callable
from typing import Any

import pytest

from pytest_crate.errors import ImageError
from pytest_crate.images import compression
from pytest_crate.images.compression import LayerStream
from pytest_crate.images.tarstream import ArchiveError

PLAIN = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(20_000))


def zstd_compress(data: bytes) -> bytes:
    """Return data as zstd(1) compresses it, with a checksum; skip where Python can't."""
    zstd: Any = pytest.importorskip("compression.zstd" if sys.version_info >= (3, 14) else "zstandard")
    compressed: bytes
    if sys.version_info >= (3, 14):
        compressed = zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1})
    else:
        compressed = zstd.ZstdCompressor(write_checksum=True).compress(data)
    return compressed


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd_compress,
}
every_compressor = pytest.mark.parametrize("name", COMPRESSORS)
every_compression = pytest.mark.parametrize("name", [name for name in COMPRESSORS if name != "none"])


def layer(data: bytes, limit_bytes: int = 1 << 30) -> LayerStream:
    return LayerStream(io.BytesIO(data), reference="img", limit_bytes=limit_bytes)


def read_to_end(stream: LayerStream) -> bytes:
    data = b""
    while piece := stream.read(10_000):
        data += piece
    return data


@every_compressor
def test_bytes_come_out_as_they_were_and_the_digest_is_of_what_is_stored(name: str) -> None:
    """Every compression is found out by its first bytes; the digest is what sha256sum(1) says of the file."""
    stored = COMPRESSORS[name](PLAIN)
    stream = layer(stored)
    assert read_to_end(stream) == PLAIN
    assert stream.digest() == f"sha256:{hashlib.sha256(stored).hexdigest()}"


@every_compressor
def test_the_digest_covers_what_was_not_read(name: str) -> None:
    """A reader that stops at the archive's end still gets the digest of the whole file."""
    stored = COMPRESSORS[name](PLAIN)
    stream = layer(stored)
    assert stream.read(1000) == PLAIN[:1000]
    assert stream.digest() == f"sha256:{hashlib.sha256(stored).hexdigest()}"


@every_compression
def test_several_streams_in_a_row_are_one_file(name: str) -> None:
    """Parallel compressors (pigz, pbzip2, xz -T) write many streams; all of them are read."""
    compress = COMPRESSORS[name]
    assert read_to_end(layer(compress(PLAIN) + compress(b"tail"))) == PLAIN + b"tail"


@every_compression
def test_a_truncated_file_gives_an_error_or_at_most_what_is_there(name: str) -> None:
    """A file cut in half never gives all bytes; but for zstandard, whose reader can't tell, it is an error."""
    stored = COMPRESSORS[name](PLAIN)
    stream = layer(stored[: len(stored) // 2])
    if name == "zst" and sys.version_info < (3, 14):
        assert len(read_to_end(stream)) < len(PLAIN)
        return
    with pytest.raises(ArchiveError, match="truncated"):
        read_to_end(stream)


@every_compression
def test_damaged_data_is_an_error(name: str) -> None:
    """Bytes overwritten in the middle are found, at the latest when the digest is asked for."""
    stored = bytearray(COMPRESSORS[name](PLAIN))
    stored[len(stored) // 2 : len(stored) // 2 + 40] = bytes(40)
    stream = layer(bytes(stored))
    with pytest.raises(ArchiveError, match="damaged"):
        stream.digest()


@every_compressor
def test_a_bomb_is_stopped_at_the_limit(name: str) -> None:
    """64 MiB of zeros, a few KiB compressed, are not read beyond a limit of 1 MiB and one piece of 1 MiB."""
    read: list[int] = []
    stored = COMPRESSORS[name](bytes(64 << 20))
    stream = LayerStream(io.BytesIO(stored), reference="img", limit_bytes=1 << 20, on_read=read.append)
    with pytest.raises(ArchiveError, match=r"larger than the limit of 1 MiB"):
        stream.digest()
    assert max(read, default=0) <= 1 << 20


def test_padding_after_xz_streams_is_passed_over() -> None:
    """Null bytes may follow an xz stream, in the same read or alone (xz(1), --format)."""
    stored = lzma.compress(PLAIN) + bytes(8) + lzma.compress(b"tail") + bytes(2 << 20)
    assert read_to_end(layer(stored)) == PLAIN + b"tail"


@pytest.mark.parametrize("rest", [b"\0" * 100_000, b"garbage" * 20_000])
def test_what_follows_bz2_data_counts_for_the_digest(rest: bytes) -> None:
    """bzip2(1) ignores what follows the data; another file it is nevertheless."""
    stored = bz2.compress(PLAIN) + rest
    stream = layer(stored)
    assert read_to_end(stream) == PLAIN
    assert stream.digest() == f"sha256:{hashlib.sha256(stored).hexdigest()}"


def test_an_xz_file_can_not_ask_for_gigabytes_of_memory() -> None:
    """A dictionary of 1 GiB, which only its header claims, is refused."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 16}]
    stored = bytearray(lzma.compress(b"x" * 100, filters=filters))
    # The block header: size, flags, filter id 0x21, size of properties 1, the dictionary's size, padding, CRC32.
    assert stored[14:16] == b"\x21\x01"
    stored[16] = 36  # 1 GiB (The .xz File Format, 5.3.1)
    stored[20:24] = importlib.import_module("zlib").crc32(stored[12:20]).to_bytes(4, "little")
    with pytest.raises(ArchiveError, match=r"[Mm]emory"):
        read_to_end(layer(bytes(stored)))


def test_a_missing_zstd_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, a zst archive says what to install."""
    monkeypatch.setattr(compression, "importlib", _NothingToImport)
    with pytest.raises(ImageError, match=r"compressed with zstd.*pip install 'pytest-crate-sandbox\[zstd\]'"):
        layer(b"\x28\xb5\x2f\xfd" + bytes(20))


class _NothingToImport:
    @staticmethod
    def import_module(name: str) -> None:
        raise ModuleNotFoundError(name)


def test_errors_of_the_disk_stay_what_they_are() -> None:
    """An I/O error while the archive is read is not reported as damage of the archive."""

    class Disk(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 1000:
                raise OSError(5, "Input/output error")
            return super().read(min(size or 0, 500))

    stream = LayerStream(Disk(gzip.compress(PLAIN)), reference="img", limit_bytes=1 << 30)
    with pytest.raises(OSError, match="Input/output error"):
        stream.digest()
