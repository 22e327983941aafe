"""The command ``pytest-crate image``, which keeps the store of extracted images."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence

from pytest_crate.cli.messages import say_progress
from pytest_crate.cli.options import add_store_option, find_image, open_store
from pytest_crate.cli.parser import Commands
from pytest_crate.errors import ImageError
from pytest_crate.images import Image, ImageStore, StoredImage
from pytest_crate.spec import format_size

_DESCRIPTION = """\
Keep the store of extracted images. A tarball is extracted once per content, by the first crate that wants it; a
directory is used where it is and never stored.
"""
_DIGITS = 12  # of a digest, to tell a few images apart


def add_image(commands: Commands) -> None:
    """Add the command's parser, with those of its own commands."""
    parser = commands.add_parser("image", help="keep the store of extracted images", description=_DESCRIPTION)
    actions = parser.add_subparsers(title="commands", metavar="ACTION", required=True)

    shown = actions.add_parser("list", help="list the images in the store")
    shown.set_defaults(function=_list)

    added = actions.add_parser("add", help="extract an image now, and print its digest")
    added.add_argument("image", metavar="IMAGE", help="a tarball, or a name from ./pyproject.toml")
    added.set_defaults(function=_add)

    path = actions.add_parser("path", help="print the directory of an image's root filesystem, extracted if need be")
    path.add_argument("image", metavar="IMAGE", help="a tarball, a directory, or a name from ./pyproject.toml")
    path.set_defaults(function=_path)

    removed = actions.add_parser("rm", help="remove images from the store")
    removed.add_argument("digests", metavar="DIGEST", nargs="+", help="an image's digest, or the beginning of it")
    removed.set_defaults(function=_remove)

    pruned = actions.add_parser("prune", help="remove the images whose tarball is gone or has changed")
    pruned.set_defaults(function=_prune)

    for action in (shown, added, path, removed, pruned):
        add_store_option(action)


def _list(arguments: argparse.Namespace) -> int:
    print(f"{'DIGEST':{_DIGITS}}  {'SIZE':>10}  {'EXTRACTED':16}  FROM")
    for image in open_store(arguments).images():
        extracted = time.strftime("%Y-%m-%d %H:%M", time.localtime(image.extracted_sec))
        print(f"{_short(image.digest)}  {format_size(image.data_bytes):>10}  {extracted}  {image.origin}")
    return 0


def _add(arguments: argparse.Namespace) -> int:
    image = _open(arguments)
    if not image.digest:
        raise ImageError(image.reference, "a directory is used where it is: there is nothing to add")
    print(image.digest)
    return 0


def _path(arguments: argparse.Namespace) -> int:
    print(_open(arguments).rootfs)
    return 0


def _remove(arguments: argparse.Namespace) -> int:
    store = open_store(arguments)
    for digest in [_digest(store.images(), text) for text in arguments.digests]:
        store.remove(digest)
        print(digest)
    return 0


def _prune(arguments: argparse.Namespace) -> int:
    for image in open_store(arguments).prune():
        print(f"{_short(image.digest)}  {format_size(image.data_bytes):>10}  {image.origin}")
    return 0


def _open(arguments: argparse.Namespace) -> Image:
    reference, path = find_image(arguments.image, os.getcwd())
    store: ImageStore = open_store(arguments)
    return store.open(path, reference, progress=say_progress)


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:_DIGITS]


def _digest(images: Sequence[StoredImage], text: str) -> str:
    """Return the whole digest of the one image that a text is the beginning of.

    :raises ImageError: there is none, or more than one.
    """
    found = [image.digest for image in images if image.digest.removeprefix("sha256:").startswith(_hex(text))]
    if len(found) != 1:
        what = f"it is the beginning of {len(found)} digests" if found else "no image has this digest"
        raise ImageError(text, f"{what}; 'pytest-crate image list' shows them")
    return found[0]


def _hex(text: str) -> str:
    return text.removeprefix("sha256:").lower()
