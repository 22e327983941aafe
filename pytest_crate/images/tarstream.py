"""A forward-only, strict reader of tar streams: v7, ustar, GNU and PAX, sparse files included."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Literal

# Not the standard library's tarfile: it takes a broken header for the end of the archive, reads extended headers
# of any length into memory, and in early 3.11s loops or backtracks for ever on some (CVE-2025-8194, CVE-2024-6232).

BLOCK_BYTES = 512
MAX_EXTENSION_BYTES = 1 << 20
"""Most that an entry's extended headers, or its sparse map, may take: an xattr has at most 64 KiB, a path 4 KiB."""

_CHUNK_BYTES = 1 << 20
_MAX_SIZE_BYTES = (1 << 63) - 1
_MAX_SECONDS = 1 << 40
_MAX_OWNER = (1 << 32) - 2  # (uid_t) -1 means "leave it as it is" to chown(2)

Kind = Literal["file", "hardlink", "symlink", "directory", "fifo", "device"]

_KINDS: dict[bytes, Kind] = {
    b"1": "hardlink",
    b"2": "symlink",
    b"3": "device",
    b"4": "device",
    b"5": "directory",
    b"6": "fifo",
    b"D": "directory",  # GNU: a directory whose data lists its names (tar --incremental)
}
_XATTR = b"SCHILY.xattr."

_Segments = tuple[tuple[int, int], ...]
_Records = list[tuple[bytes, bytes]]


class ArchiveError(Exception):
    """An archive's bytes are not what they should be; the message says how."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TarEntry:
    """One member of an archive, as written there: nothing in it has been made safe.

    :ivar mode: permission bits with setuid, setgid and sticky.
    :ivar size_bytes: the file's size with its holes; 0 for anything that is not a file.
    :ivar target: what a symlink says, or the name that a hard link refers to.
    :ivar segments: offset and length, in the file, of each piece of data that the archive holds.
    :ivar xattrs: extended attributes by name.
    """

    name: bytes
    kind: Kind
    mode: int
    uid: int = 0
    gid: int = 0
    mtime_nsec: int = 0
    size_bytes: int = 0
    target: bytes = b""
    segments: _Segments = ()
    xattrs: dict[bytes, bytes] = dataclasses.field(default_factory=dict)


def shown(name: bytes) -> str:
    """Return an archive's name for a message: in quotes, at most 200 characters, control characters escaped."""
    text = name.decode("utf-8", "backslashreplace")
    return repr(text if len(text) <= 200 else f"{text[:200]}…")


class TarStream:
    """The entries of a tar stream in order, and the data of the latest one.

    :param read: returns up to that many bytes, and fewer only at the stream's end.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._data_left_bytes = 0
        self._padding_bytes = 0

    def entries(self) -> Iterator[TarEntry]:
        """Yield every entry; data of it that was not read is passed over.

        :raises ArchiveError: the stream is no tar archive, is damaged, or ends before its end-of-archive marker.
        """
        header = self._read(BLOCK_BYTES)
        if not header:
            raise ArchiveError("it is empty")
        defaults: dict[bytes, bytes] = {}
        records: _Records = []
        extension_bytes = 0
        while any(header):
            _verify_header(header)
            flag = header[156:157]
            if flag in b"LKxXg":
                extension_bytes += BLOCK_BYTES  # so that there is an end of those without data, too
                data = self._extension(_size(header), extension_bytes)
                extension_bytes += len(data)
                if flag in b"LK":
                    records.append((b"path" if flag == b"L" else b"linkpath", _text(data)))
                elif flag == b"g":
                    # Only what makes sense for every file; git and pax write comments here.
                    defaults |= {key: value for key, value in _pax_records(data) if key in (b"mtime", b"uid", b"gid")}
                else:
                    records.extend(_pax_records(data))
            elif flag in b"MNV":
                raise ArchiveError(f"it has an entry of type {flag.decode()}: one volume of several, or a label")
            else:
                yield self._entry(header, defaults, records)
                self._skip()
                records, extension_bytes = [], 0
            header = self._read(BLOCK_BYTES)
            if not header:
                raise ArchiveError("it ends without an end-of-archive marker: it is truncated")

    def data(self, entry: TarEntry) -> Iterator[tuple[int, bytes]]:
        """Yield the latest entry's data in pieces of at most 1 MiB, each with its offset in the file.

        :raises ArchiveError: the stream ends before the data does.
        """
        for start, length in entry.segments:
            for offset in range(start, start + length, _CHUNK_BYTES):
                yield offset, self._take(min(start + length - offset, _CHUNK_BYTES))

    def _read_exactly(self, size_bytes: int) -> bytes:
        data = self._read(size_bytes)
        if len(data) != size_bytes:
            raise ArchiveError("it ends in the middle of an entry: it is truncated")
        return data

    def _take(self, size_bytes: int) -> bytes:
        self._data_left_bytes -= size_bytes
        return self._read_exactly(size_bytes)

    def _skip(self) -> None:
        left = self._data_left_bytes + self._padding_bytes
        while left:
            left -= len(self._read_exactly(min(left, _CHUNK_BYTES)))

    def _extension(self, size_bytes: int, earlier_bytes: int) -> bytes:
        if earlier_bytes + size_bytes > MAX_EXTENSION_BYTES:
            raise ArchiveError(f"an entry's extended headers take more than {MAX_EXTENSION_BYTES} bytes")
        return self._read_exactly(size_bytes + -size_bytes % BLOCK_BYTES)[:size_bytes]

    def _entry(self, header: bytes, defaults: dict[bytes, bytes], records: _Records) -> TarEntry:
        # An empty value takes a record back (pax(1), "Pax Header Block").
        fields = {key: value for key, value in (defaults | dict(records)).items() if value}
        flag = header[156:157]
        name = fields.get(b"path", _name(header))
        # POSIX asks that unknown types be taken for files.
        kind = _KINDS.get(flag, "file")
        if flag in (b"\0", b"0") and name.endswith(b"/"):
            kind = "directory"  # v7 had no type for directories
        stored = _decimal(fields[b"size"]) if b"size" in fields else _size(header)
        if kind != "file" and flag != b"D":
            stored = 0  # POSIX: the others have no data, whatever the size field says
        self._data_left_bytes, self._padding_bytes = stored, -stored % BLOCK_BYTES
        size, segments = 0, _Segments()
        if flag == b"S":
            size, segments = self._gnu_sparse_map(header)
        elif kind == "file" and any(key.startswith(b"GNU.sparse.") for key in fields):
            name = fields.get(b"GNU.sparse.name", name)
            size, segments = self._pax_sparse_map(fields, records)
        elif kind == "file":
            size, segments = stored, ((0, stored),)
        _verify_segments(segments, size, self._data_left_bytes if kind == "file" else 0)
        mtime = _nanoseconds(fields[b"mtime"]) if b"mtime" in fields else _number(header[136:148]) * 10**9
        if abs(mtime) > _MAX_SECONDS * 10**9:
            raise ArchiveError(f"the modification time of {shown(name)} is out of range")
        uid = _decimal(fields[b"uid"]) if b"uid" in fields else _number(header[108:116])
        gid = _decimal(fields[b"gid"]) if b"gid" in fields else _number(header[116:124])
        if not (0 <= uid <= _MAX_OWNER and 0 <= gid <= _MAX_OWNER):
            raise ArchiveError(f"the owner of {shown(name)}, {uid}:{gid}, is not a valid id")
        target = fields.get(b"linkpath", _text(header[157:257]))
        xattrs = {key.removeprefix(_XATTR): value for key, value in fields.items() if key.startswith(_XATTR)}
        if any(b"\0" in text for text in (name, target, *xattrs)):
            raise ArchiveError(f"the name of {shown(name)}, or of what belongs to it, contains a null byte")
        return TarEntry(
            name=name,
            kind=kind,
            mode=_number(header[100:108]) & 0o7777,
            uid=uid,
            gid=gid,
            mtime_nsec=mtime,
            size_bytes=size,
            target=target,
            segments=segments,
            xattrs=xattrs,
        )

    def _gnu_sparse_map(self, header: bytes) -> tuple[int, _Segments]:
        """Read the map of a type S entry: four pairs in the header, and blocks of 21 more while a flag says so."""
        pairs, more = bytearray(header[386:482]), header[482]
        while more:
            block = self._extension(BLOCK_BYTES, len(pairs))
            pairs += block[:504]
            more = block[504]
        starts = [at for at in range(0, len(pairs), 24) if pairs[at]]
        segments = ((_number(pairs[at : at + 12]), _number(pairs[at + 12 : at + 24])) for at in starts)
        return _number(header[483:495]), tuple(segments)

    def _pax_sparse_map(self, fields: dict[bytes, bytes], records: _Records) -> tuple[int, _Segments]:
        """Read the map of a PAX sparse file, whose three versions keep it in three places (GNU tar's manual)."""
        if b"GNU.sparse.major" in fields:
            numbers = self._leading_numbers()
        elif b"GNU.sparse.map" in fields:
            numbers = [_decimal(number) for number in fields[b"GNU.sparse.map"].split(b",")]
        else:
            pair = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
            numbers = [_decimal(value) for key, value in records if key in pair]
        size = fields.get(b"GNU.sparse.realsize", fields.get(b"GNU.sparse.size", b""))
        return _decimal(size), tuple(zip(numbers[::2], numbers[1::2], strict=False))

    def _leading_numbers(self) -> list[int]:
        """Read version 1.0's map, whole blocks before the data: the count of pairs, then the numbers, a line each."""
        blocks: list[bytes] = []
        lines, wanted = 0, 1
        while lines < wanted:
            if self._data_left_bytes < BLOCK_BYTES or len(blocks) * BLOCK_BYTES >= MAX_EXTENSION_BYTES:
                raise ArchiveError("a sparse file's map has no end")
            blocks.append(self._take(BLOCK_BYTES))
            lines += blocks[-1].count(b"\n")
            if wanted == 1 and lines:
                wanted += 2 * _decimal(blocks[0].split(b"\n")[0])
        return [_decimal(line) for line in b"".join(blocks).split(b"\n")[1:wanted]]


def _verify_header(header: bytes) -> None:
    if len(header) < BLOCK_BYTES:
        raise ArchiveError("it ends in the middle of a header: it is truncated, or not a tar archive")
    blank = header[:148] + b" " * 8 + header[156:]
    checksum = _text(header[148:156]).strip(b" ")
    # Some early tars summed signed characters.
    sums = (sum(blank), sum(blank) - 256 * sum(byte > 127 for byte in blank))
    if not re.fullmatch(rb"[0-7]+", checksum) or int(checksum, 8) not in sums:
        raise ArchiveError("it is not a tar archive, or is damaged: the checksum of a header is wrong")


def _verify_segments(segments: _Segments, size_bytes: int, stored_bytes: int) -> None:
    end = 0
    for offset, length in segments:
        if offset < end or length < 0:
            raise ArchiveError("a sparse file's map is out of order")
        end = offset + length
    if not end <= size_bytes <= _MAX_SIZE_BYTES or sum(length for _, length in segments) != stored_bytes:
        raise ArchiveError("a sparse file's map does not fit its size")


def _text(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _name(header: bytes) -> bytes:
    name = _text(header[0:100])
    # Only POSIX has a prefix; where GNU's magic is "ustar  ", times and a sparse map are in its place.
    if header[257:263] == b"ustar\0" and (prefix := _text(header[345:500])):
        return prefix + b"/" + name
    return name


def _number(field: bytes | bytearray) -> int:
    """Return a header's number: octal digits, or GNU's base 256 when the first bit is set."""
    if field[0] & 0x80:
        bits = 8 * len(field) - 1
        value = int.from_bytes(field, "big") & ((1 << bits) - 1)
        return value - (1 << bits) if value >> (bits - 1) else value
    digits = _text(bytes(field)).strip(b" ")
    if not re.fullmatch(rb"[0-7]*", digits):
        raise ArchiveError(f"a header's number is {digits!r}")
    return int(digits or b"0", 8)


def _size(header: bytes) -> int:
    size = _number(header[124:136])
    if not 0 <= size <= _MAX_SIZE_BYTES:
        raise ArchiveError(f"an entry's size is {size}")
    return size


def _decimal(digits: bytes) -> int:
    # Bounded, as int() takes quadratic time.
    if not re.fullmatch(rb"[0-9]{1,18}", digits):
        raise ArchiveError(f"an extended header's number is {digits[:40]!r}")
    return int(digits)


def _nanoseconds(seconds: bytes) -> int:
    match = re.fullmatch(rb"(-?)([0-9]{1,18})(?:\.([0-9]*))?", seconds)
    if not match:
        raise ArchiveError(f"an extended header's time is {seconds[:40]!r}")
    value = int(match[2]) * 10**9 + int((match[3] or b"")[:9].ljust(9, b"0"))
    return -value if match[1] else value


def _pax_records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the records ``"<length> <key>=<value>\\n"`` of a PAX header; the length counts the whole record."""
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 8)
        if space < 0 or not data[at:space].isdigit():
            raise ArchiveError("a PAX header is damaged")
        end = at + int(data[at:space])
        if not space + 1 < end <= len(data) or data[end - 1 : end] != b"\n":
            raise ArchiveError("a PAX header is damaged")
        key, _, value = data[space + 1 : end - 1].partition(b"=")
        yield key, value
        at = end
