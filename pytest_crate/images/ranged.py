"""A store of images whose files belong to a range of ids: what changes it is done in a user namespace that has them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from pytest_crate.errors import SandboxError
from pytest_crate.images.ownership import Ownership
from pytest_crate.images.source import ImageSource
from pytest_crate.images.store import Image, ImageStore, Progress, StoredImage
from pytest_crate.kernel import host
from pytest_crate.kernel.id_range import IdRange, find_id_range
from pytest_crate.kernel.mapped_process import run_as_root


class RangedImageStore(ImageStore):
    """Extracts images with the owners that they state, for a user who has a range of ids.

    Each change is made by a root who has these ids. What is there already is found without.

    :param root: path of the store.
    """

    def __init__(self, root: str, ids: IdRange) -> None:
        super().__init__(root, ownership=Ownership(keep=True, name=ids.name))
        self.ids = ids

    def open(self, source: ImageSource | str, reference: str, progress: Progress | None = None) -> Image:
        """As :meth:`ImageStore.open`.

        :raises HostError: the ids can't be mapped.
        """
        found = self.find(source, reference)
        if found is not None:
            return found
        opened = super().open
        return Image(**self._as_root(lambda say: dataclasses.asdict(opened(source, reference, say)), progress))

    def remove(self, digest: str) -> None:
        """As :meth:`ImageStore.remove`."""
        removed = super().remove
        self._as_root(lambda _: removed(digest))

    def prune(self) -> tuple[StoredImage, ...]:
        """As :meth:`ImageStore.prune`."""
        pruned = super().prune
        images = self._as_root(lambda _: [dataclasses.asdict(image) for image in pruned()])
        return tuple(StoredImage(**image) for image in images)

    def _as_root(self, work: Callable[[Progress], object], progress: Progress | None = None) -> Any:
        try:
            return run_as_root(self.ids, work, said=progress)
        except SandboxError as error:
            raise host.explain(error) or error from None


def store_at(root: str, *, ranged: bool) -> ImageStore:
    """Return the store of images at a path.

    :param ranged: of images with the owners that they state, by the ids that subuid(5) gives.
    :raises HostError: there are no such ids.
    """
    return RangedImageStore(root, find_id_range()) if ranged else ImageStore(root)
