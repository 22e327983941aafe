"""Image references become root filesystems in a content-addressed store."""

from __future__ import annotations

from pytest_crate.images.names import read_image_names, resolve_reference
from pytest_crate.images.ranged import RangedImageStore, store_at
from pytest_crate.images.rootfs import ExtractLimits
from pytest_crate.images.source import ArchiveFile, ImageSource
from pytest_crate.images.store import Image, ImageStore, StoredImage, default_store_root

__all__ = [
    "ArchiveFile",
    "ExtractLimits",
    "Image",
    "ImageSource",
    "ImageStore",
    "RangedImageStore",
    "StoredImage",
    "default_store_root",
    "read_image_names",
    "resolve_reference",
    "store_at",
]
