"""Pseudo-terminals of a crate's own devpts, opened from the host."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import struct

from pytest_crate.kernel import libc

_STEP = "open a terminal in the crate"
# asm-generic/ioctls.h; the termios module has them from Python 3.13 on
_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Terminal:
    """A pair of descriptors, close-on-exec.

    :ivar master: the side that stands for keyboard and screen.
    :ivar slave: the side that is the program's terminal.
    """

    master: int
    slave: int


def open_terminal(root: int) -> Terminal:
    """Open a pseudo-terminal of a crate (pty(7), ioctl_tty(2)).

    A terminal of the host's would have a name that the crate doesn't know, so that ttyname(3) fails there, and
    would be the host's to attack. The slave is had from the master, never by a name that the crate could have
    put something else at (TIOCGPTPEER, kernel 4.13).

    :param root: descriptor of the crate's root directory.
    :raises SandboxError: the kernel refuses.
    """
    master = libc.open_in_root(_STEP, root, "/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
    try:
        with libc.os_step(_STEP, "ioctl", "TIOCSPTLCK"):
            fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
        with libc.os_step(_STEP, "ioctl", "TIOCGPTPEER"):
            slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except BaseException:
        os.close(master)
        raise
    return Terminal(master=master, slave=slave)
