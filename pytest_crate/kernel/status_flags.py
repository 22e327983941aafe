"""The status flags of open files that a crate's processes share with pytest: what they set there is set back."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterable


class StatusFlags:
    """The flags, noted now, of the files that some descriptors are open on.

    They belong to the open file, not to the descriptor (fcntl(2), F_SETFL): whoever has inherited it sets O_NONBLOCK or
    O_DIRECT for all, and pytest can't write there any more.

    :param descriptors: those that aren't open are left out.
    """

    def __init__(self, descriptors: Iterable[int]) -> None:
        self._noted: dict[int, int] = {}
        for descriptor in descriptors:
            with contextlib.suppress(OSError):
                self._noted[descriptor] = fcntl.fcntl(descriptor, fcntl.F_GETFL)

    def restore(self) -> None:
        """Set the flags as they were, of what is still open."""
        for descriptor, flags in self._noted.items():
            with contextlib.suppress(OSError):
                if fcntl.fcntl(descriptor, fcntl.F_GETFL) != flags:
                    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
