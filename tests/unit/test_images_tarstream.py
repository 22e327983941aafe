"""Reading of tar streams, well-formed and hostile."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_crate.images.tarstream import MAX_EXTENSION_BYTES, ArchiveError, TarEntry, TarStream

END = bytes(1024)


def header(
    name: bytes = b"f",
    *,
    kind: bytes = b"0",
    size: bytes = b"0",
    target: bytes = b"",
    uid: bytes = b"0",
    mtime: bytes = b"0",
    magic: bytes = b"ustar\x0000",
    at: dict[int, bytes] | None = None,
) -> bytes:
    """Return one header with a right checksum; ``at`` overwrites bytes before it is made."""
    fields = {0: name, 100: b"0644", 108: uid, 116: b"0", 124: size, 136: mtime, 156: kind, 157: target, 257: magic}
    block = bytearray(512)
    for offset, value in (fields | (at or {})).items():
        block[offset : offset + len(value)] = value
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def record(key: bytes, value: bytes) -> bytes:
    """Return a PAX record, whose length includes the length's own digits."""
    size = len(key) + len(value) + 3
    while len(b"%d" % size) + len(key) + len(value) + 3 != size:
        size = len(b"%d" % size) + len(key) + len(value) + 3
    return b"%d %s=%s\n" % (size, key, value)


def pax(*records: bytes, kind: bytes = b"x") -> bytes:
    data = b"".join(records)
    return header(b"pax", kind=kind, size=b"%o" % len(data)) + padded(data)


def read_all(data: bytes) -> list[tuple[TarEntry, bytes]]:
    stream = TarStream(io.BytesIO(data).read)
    found = []
    for entry in stream.entries():
        content = bytearray(min(entry.size_bytes, 1 << 24))
        for offset, piece in stream.data(entry):
            content[offset : offset + len(piece)] = piece
        found.append((entry, bytes(content)))
    return found


def names(data: bytes) -> list[bytes]:
    return [entry.name for entry, _ in read_all(data)]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_reads_as_tarfile_wrote_it(form: int) -> None:
    """Kinds, modes, owners, times, links and data survive in each of the three formats."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, kind, data, link in [
            ("etc", tarfile.DIRTYPE, b"", ""),
            ("etc/passwd", tarfile.REGTYPE, b"root:x:0:0\n" * 100, ""),
            ("etc/" + "l" * 90 + "/" + "n" * 60, tarfile.REGTYPE, b"long", ""),
            ("sh", tarfile.SYMTYPE, b"", "/bin/busybox"),
            ("hard", tarfile.LNKTYPE, b"", "etc/passwd"),
            ("pipe", tarfile.FIFOTYPE, b"", ""),
            ("null", tarfile.CHRTYPE, b"", ""),
        ]:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = kind, len(data), link
            member.mode, member.uid, member.gid, member.mtime = 0o4751, 1000, 2000, 1700000000
            archive.addfile(member, io.BytesIO(data))
    found = read_all(buffer.getvalue())
    assert [(entry.name.rstrip(b"/"), entry.kind, entry.target, data) for entry, data in found] == [
        (b"etc", "directory", b"", b""),
        (b"etc/passwd", "file", b"", b"root:x:0:0\n" * 100),
        (b"etc/" + b"l" * 90 + b"/" + b"n" * 60, "file", b"", b"long"),
        (b"sh", "symlink", b"/bin/busybox", b""),
        (b"hard", "hardlink", b"etc/passwd", b""),
        (b"pipe", "fifo", b"", b""),
        (b"null", "device", b"", b""),
    ]
    assert {(entry.mode, entry.uid, entry.gid, entry.mtime_nsec) for entry, _ in found} == {
        (0o4751, 1000, 2000, 1700000000 * 10**9)
    }


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_longer_than_a_header_and_owners_larger_than_octal_are_read(form: int) -> None:
    """GNU's long names and base-256 numbers, and PAX's records, carry what ustar's fields can't."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as archive:
        member = tarfile.TarInfo("d/" * 150 + "caf\udce9")
        member.type, member.linkname, member.uid, member.mtime = tarfile.SYMTYPE, "t/" * 200, 4_000_000_000, -5
        archive.addfile(member)
    ((entry, _),) = read_all(buffer.getvalue())
    assert (entry.name, entry.target) == (b"d/" * 150 + b"caf\xe9", b"t/" * 200)
    assert (entry.uid, entry.mtime_nsec) == (4_000_000_000, -5 * 10**9)


def test_pax_records_give_nanoseconds_sizes_and_binary_xattrs() -> None:
    """What PAX says wins over the header, to the nanosecond and byte for byte; an empty record counts for nothing."""
    capability = b"\x01\0\0\x02\0=\n\0\xff"
    archive = (
        pax(record(b"uid", b"77"), record(b"comment", b"git"), kind=b"g")
        + pax(
            record(b"mtime", b"-1.5"),
            record(b"size", b"3"),
            record(b"path", b"named"),
            record(b"linkpath", b""),
            record(b"SCHILY.xattr.security.capability", capability),
        )
        + header(size=b"7777")
        + padded(b"abc")
        + header(b"plain")
        + END
    )
    (first, data), (second, _) = read_all(archive)
    assert (first.name, first.mtime_nsec, first.uid, data) == (b"named", -1_500_000_000, 77, b"abc")
    assert first.xattrs == {b"security.capability": capability}
    assert (second.name, second.mtime_nsec, second.uid, second.xattrs) == (b"plain", 0, 77, {})


def test_the_oldest_format_is_read() -> None:
    """A v7 header has no magic, and its directories are files whose names end in a slash."""
    archive = header(b"bin/", kind=b"\0", magic=b"") + header(b"bin/x", kind=b"\0", magic=b"", at={345: b"junk"}) + END
    assert [(entry.name, entry.kind) for entry, _ in read_all(archive)] == [(b"bin/", "directory"), (b"bin/x", "file")]


def test_data_of_an_entry_that_was_not_read_is_passed_over() -> None:
    """A caller may ignore a file's data, or read part of it, and still gets the next entry."""
    archive = header(b"a", size=b"3000") + bytes(b"x" * 1536) + header(b"b", size=b"1") + padded(b"y") + END
    stream = TarStream(io.BytesIO(archive).read)
    assert [entry.name for entry in stream.entries()] == [b"a", b"b"]


@pytest.mark.parametrize(
    "options", ["--format=gnu", *(f"--format=posix --sparse-version={version}" for version in ("0.0", "0.1", "1.0"))]
)
@pytest.mark.needs("gnu tar")
def test_sparse_files_are_read_as_gnu_tar_writes_them(options: str, tmp_path: Path) -> None:
    """All four ways to store a sparse file give its data at the right offsets, and its whole size."""
    expected = bytearray((60 << 17) + 777)
    with (tmp_path / "sparse").open("wb") as file:
        for at in range(0, 60 << 17, 1 << 17):
            expected[at : at + 5000] = os.urandom(5000)
            os.pwrite(file.fileno(), expected[at : at + 5000], at)
        file.truncate(len(expected))
    (tmp_path / "hole").write_bytes(b"")
    os.truncate(tmp_path / "hole", 1 << 20)
    if os.stat(tmp_path / "sparse").st_blocks * 512 >= len(expected):
        pytest.skip("this file system stores no holes")
    archive = subprocess.check_output(
        ["tar", "--sparse", *options.split(), "-C", str(tmp_path), "-cf", "-", "sparse", "hole"]
    )
    (sparse, data), (hole, nothing) = read_all(archive)
    assert len(archive) < len(expected) // 2
    assert (sparse.name, sparse.size_bytes) == (b"sparse", len(expected))
    assert data == bytes(expected)
    assert (hole.name, nothing) == (b"hole", bytes(1 << 20))


def small_archive() -> bytes:
    return (
        header(b"dir/", kind=b"5")
        + pax(record(b"mtime", b"1.5"), record(b"path", b"dir/file"))
        + header(size=b"1130")
        + padded(b"z" * 0o1130)
        + header(b"link", kind=b"2", target=b"dir/file")
        + END
    )


def test_an_archive_cut_off_anywhere_is_an_error() -> None:
    """No prefix of an archive passes for a shorter one, be the cut in a header, in data or between entries."""
    archive = small_archive()
    assert names(archive) == [b"dir/", b"dir/file", b"link"]
    for length in range(0, len(archive) - len(END), 64):
        with pytest.raises(ArchiveError, match=r"truncated|is empty"):
            read_all(archive[:length])


def test_a_damaged_header_is_an_error_and_not_the_end() -> None:
    """A wrong checksum in the middle is reported; reading it as the end would lose files in silence."""
    archive = bytearray(small_archive())
    archive[archive.rindex(b"link")] ^= 1
    with pytest.raises(ArchiveError, match="checksum"):
        read_all(bytes(archive))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"#!/bin/sh\necho this is no archive\n", "not a tar archive"),
        (b"PK\x03\x04" + b"z" * 600, "not a tar archive"),
        (header(size=b"\xff" * 12) + END, "size is -1"),
        (header(size=b"\x80" + b"\xff" * 11) + END, "size is"),
        (header(size=b"12x") + END, "number"),
        (header(b"long", kind=b"L", size=b"\xff" * 12) + END, "size is -1"),
        (header(b"long", kind=b"L", size=b"77777777777") + END, "extended headers take more"),
        (pax(record(b"size", b"-5")) + header() + END, "number"),
        (pax(record(b"size", b"9" * 5000)) + header() + END, "number"),
        (pax(record(b"mtime", b"nan")) + header() + END, "time"),
        (pax(record(b"mtime", b"9" * 18)) + header() + END, "out of range"),
        (pax(record(b"uid", b"4294967295")) + header() + END, "not a valid id"),
        (header(uid=b"\xff" * 8) + END, "not a valid id"),
        (pax(record(b"path", b"etc/passwd\0.txt")) + header() + END, "null byte"),
        (pax(record(b"linkpath", b"a\0b")) + header(kind=b"2") + END, "null byte"),
        (pax(record(b"SCHILY.xattr.user.\0", b"v")) + header() + END, "null byte"),
        (pax(b"1000 path=short\n") + header() + END, "PAX header is damaged"),
        (pax(b"0 path=short\n") + header() + END, "PAX header is damaged"),
        (pax(b"path=short\n") + header() + END, "PAX header is damaged"),
        (pax(b"-9 path=x\n") + header() + END, "PAX header is damaged"),
        (header(kind=b"M", size=b"10") + END, "several"),
        (pax(record(b"GNU.sparse.map", b"0,5")) + header() + END, "number is b''"),
        (pax(record(b"GNU.sparse.map", b"0,5"), record(b"GNU.sparse.size", b"4")) + header(size=b"5") + END, "fit"),
        (
            pax(record(b"GNU.sparse.map", b"9,1,0,1"), record(b"GNU.sparse.size", b"99")) + header(size=b"2") + END,
            "order",
        ),
        (pax(record(b"GNU.sparse.major", b"1")) + header(size=b"1000") + padded(b"9" * 512) + END, "no end"),
        (pax(record(b"GNU.sparse.major", b"1")) + header() + END, "no end"),
    ],
)
def test_hostile_or_broken_archives_say_what_is_wrong(data: bytes, message: str) -> None:
    """Each trick with sizes, numbers, names and maps is an error that names it."""
    with pytest.raises(ArchiveError, match=message):
        read_all(data)


def test_headers_can_not_fill_memory_by_coming_in_numbers() -> None:
    """The limit on extended headers is on all that come before one entry."""
    piece = pax(record(b"comment", b"c" * (MAX_EXTENSION_BYTES // 4)))
    assert names(piece * 3 + header() + END) == [b"f"]
    with pytest.raises(ArchiveError, match="extended headers take more"):
        read_all(piece * 4 + header() + END)


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g"])
def test_nor_by_having_nothing_in_them(kind: bytes) -> None:
    """A header without data is a part of the limit, too."""
    empty = header(kind=kind)
    assert names(empty * 100 + header() + END) == [b"f"]
    with pytest.raises(ArchiveError, match="extended headers take more"):
        read_all(empty * (MAX_EXTENSION_BYTES // 512 + 1) + header() + END)


def test_a_sparse_map_can_not_go_on_for_ever() -> None:
    """The old GNU map's chain of blocks, each of which says that there is another, ends at the limit."""
    sparse = header(kind=b"S", magic=b"ustar  \0", at={482: b"\x01"})
    with pytest.raises(ArchiveError, match="extended headers take more"):
        read_all(sparse + (bytes(504) + b"\x01" + bytes(7)) * (MAX_EXTENSION_BYTES // 504 + 2) + END)


def test_reading_a_hostile_pax_header_takes_no_quadratic_time() -> None:
    """A megabyte of digits, which made tarfile's regular expressions backtrack (CVE-2024-6232), is refused at once."""
    started = time.monotonic()
    with pytest.raises(ArchiveError, match="damaged"):
        read_all(pax(b"1" * (MAX_EXTENSION_BYTES - 1024)) + header() + END)
    assert time.monotonic() - started < 1


@given(st.lists(st.tuples(st.integers(0, len(small_archive()) - 1), st.integers(0, 255)), max_size=8), st.booleans())
def test_no_damage_makes_another_error_than_archive_error(damage: list[tuple[int, int]], mend: bool) -> None:
    """Whatever bytes are overwritten, with the checksum made right or not, reading ends well or with ArchiveError."""
    archive = bytearray(small_archive())
    for at, value in damage:
        archive[at] = value
        if mend:
            start = at - at % 512
            archive[start + 148 : start + 156] = b"        "
            archive[start + 148 : start + 156] = b"%06o\0 " % sum(archive[start : start + 512])
    with contextlib.suppress(ArchiveError):
        assert len(read_all(bytes(archive))) <= 5
