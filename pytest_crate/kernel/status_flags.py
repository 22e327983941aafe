"""The status flags of open files that a crate's processes share with pytest: what they set there is set back."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import libc


class StatusFlags:
    """The flags, noted now, of the files that some descriptors are open on.

    They belong to the open file, not to the descriptor (fcntl(2), F_SETFL): whoever has inherited it sets O_NONBLOCK or
    O_DIRECT for all, and pytest can't write there any more.

    :param descriptors: those that aren't open are left out.
    """

    def __init__(self, descriptors: Iterable[int]) -> None:
        self._noted: dict[int, int] = {}
        for descriptor in descriptors:
            self.note(descriptor)

    def note(self, descriptor: int) -> None:
        """Note the flags of one more."""
        with contextlib.suppress(OSError):
            self._noted[descriptor] = fcntl.fcntl(descriptor, fcntl.F_GETFL)

    def restore(self) -> None:
        """Set the flags as they were, of what is still open."""
        for descriptor, flags in self._noted.items():
            with contextlib.suppress(OSError):
                if fcntl.fcntl(descriptor, fcntl.F_GETFL) != flags:
                    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)


class KeptOpen:
    """Descriptors of open files, kept to set their flags back later: one of each file, however often it is given."""

    def __init__(self) -> None:
        self._descriptors: list[int] = []
        self._flags = StatusFlags(())

    def keep(self, descriptor: int) -> None:
        """Keep the open file of a descriptor until :meth:`close`, and note its flags if it is the first time.

        Later they may be what somebody has set who has it already.

        :raises OSError: it isn't open, or too many are.
        """
        if not any(_is_same(kept, descriptor) for kept in self._descriptors):
            self._descriptors.append(os.dup(descriptor))
            self._flags.note(self._descriptors[-1])

    def restore(self) -> None:
        """Set the flags as they were, of what is still kept."""
        self._flags.restore()

    def close(self) -> None:
        """Set the flags back for the last time, and close them; idempotent."""
        self.restore()
        self._flags = StatusFlags(())  # the descriptors may soon be of other files
        while self._descriptors:
            os.close(self._descriptors.pop())


def _is_same(one: int, other: int) -> bool:
    """Tell whether two descriptors are known to be of one open file (kcmp(2), KCMP_FILE)."""
    own = os.getpid()
    with contextlib.suppress(SandboxError):  # a kernel without it, or a filter that refuses it
        return libc.syscall("compare open files", "kcmp", own, own, 0, one, other) == 0
    return False
