"""Whatever an archive holds: a root filesystem, or an error that says so; nothing outside of it changes."""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_crate.errors import ImageError, SpecError
from pytest_crate.images.compression import LayerStream
from pytest_crate.images.names import read_image_names
from pytest_crate.images.rootfs import ExtractLimits, RootfsBuilder
from pytest_crate.images.tarstream import ArchiveError, TarStream
from pytest_crate.images.tree import remove_tree

KINDS = [
    tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE,
]  # fmt: skip
COMPONENTS = st.sampled_from(["a", "b", "..", ".", "victim", "x" * 150, "\N{SNOWMAN}", ""]) | st.text(max_size=4)
NAMES = st.lists(COMPONENTS, min_size=1, max_size=5).map("/".join)
MEMBERS = st.lists(st.tuples(NAMES, st.sampled_from(KINDS), NAMES, st.integers(0, 0o7777)), max_size=8)


def archive(members: list[tuple[str, bytes, str, int]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, errors="surrogatepass") as tar:
        for name, kind, target, mode in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode = kind, target, mode
            data = b"data" if kind == tarfile.REGTYPE else b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@settings(deadline=None)
@given(MEMBERS)
def test_any_members_stay_inside(members: list[tuple[str, bytes, str, int]]) -> None:
    """Names and links of any kind, in any order: extracted below the root, or refused; the file beside it stays."""
    with tempfile.TemporaryDirectory() as name:
        outside = Path(name)
        (outside / "victim").write_text("untouched")
        (outside / "rootfs").mkdir()
        before = (outside / "victim").stat()
        root = os.open(outside / "rootfs", os.O_RDONLY | os.O_DIRECTORY)
        builder = RootfsBuilder(
            root, reference="img", where="the store", limits=ExtractLimits(entries=1000), keep_owners=False
        )
        try:
            builder.add_layer(io.BytesIO(archive(members)).read, origin="img.tar")
            builder.finish()
        except ImageError:
            pass
        finally:
            os.close(root)
            descriptor = os.open(outside, os.O_RDONLY | os.O_DIRECTORY)
            remove_tree(descriptor, b"rootfs")
            os.close(descriptor)
        assert os.listdir(outside) == ["victim"]
        assert (outside / "victim").read_text() == "untouched"
        after = (outside / "victim").stat()
        assert (after.st_mode, after.st_nlink, after.st_ino) == (before.st_mode, before.st_nlink, before.st_ino)


@settings(deadline=None)
@given(st.binary(max_size=2000), st.data())
def test_any_bytes_are_entries_or_an_error(noise: bytes, data: st.DataObject) -> None:
    """A tar stream with any bytes of it exchanged gives entries, or an ArchiveError."""
    stream = bytearray(archive([("a", tarfile.REGTYPE, "", 0o644), ("b" * 120, tarfile.SYMTYPE, "c", 0o777)]))
    start = data.draw(st.integers(0, len(stream)))
    stream[start : start + len(noise)] = noise
    if data.draw(st.booleans()):  # with the checksum of the first header made good
        stream[148:156] = b"%06o\0 " % (sum(stream[:148]) + 256 + sum(stream[156:512]))
    entries = TarStream(io.BytesIO(bytes(stream)).read)
    try:
        for entry in entries.entries():
            assert b"\0" not in entry.name
            assert sum(len(piece) for _, piece in entries.data(entry)) <= len(stream)
    except ArchiveError:
        return


@settings(deadline=None)
@given(st.sampled_from([b"", b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"]), st.binary(max_size=500))
def test_any_bytes_are_a_layer_or_an_error(magic: bytes, noise: bytes) -> None:
    """After the first bytes of every kind of compression, noise is an error of the archive's or the image's."""
    stream = LayerStream(io.BytesIO(magic + noise), reference="img", limit_bytes=1 << 20)
    try:
        while stream.read(1000):
            pass
    except (ArchiveError, ImageError):
        return


@settings(deadline=None)
@given(
    st.binary(max_size=200) | st.text(max_size=100).map(lambda text: f"[tool.pytest-crate]\nimages = {text}".encode())
)
def test_any_pyproject_names_images_or_is_an_error_of_the_users(text: bytes) -> None:
    """A project's file of any content gives names with absolute paths, or a SpecError."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "pyproject.toml")
        path.write_bytes(text)
        try:
            names = read_image_names(str(path))
        except SpecError:
            return
        assert all(os.path.isabs(each) for each in names.values())
