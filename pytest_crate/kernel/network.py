"""The crate's own network stack: its loopback interface up, its low ports free."""

from __future__ import annotations

import fcntl
import socket
import struct

from pytest_crate.kernel import libc

_SIOCSIFFLAGS = 0x8914  # linux/sockios.h
_IFF_UP = 0x1  # linux/if.h

# struct ifreq (netdevice(7)): the name in 16 bytes, the flags, and the rest of a 24-byte union
_LOOPBACK_UP = struct.pack("=16sH22x", b"lo", _IFF_UP)


def loopback_up() -> None:
    """Bring ``lo`` up in the network namespace of the calling process: 127.0.0.1, and ::1 if there is IPv6.

    The kernel adds both addresses itself when the interface goes up. A new namespace has IPv6 unless the
    kernel was booted without it, or the host copies ``disable_ipv6`` (net.core.devconf_inherit_init_net).

    :raises SandboxError: the process has no CAP_NET_ADMIN over its network namespace.
    """
    with (
        libc.os_step("bring the loopback interface up", "ioctl", "SIOCSIFFLAGS lo"),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control,
    ):
        fcntl.ioctl(control, _SIOCSIFFLAGS, _LOOPBACK_UP)


def allow_low_ports(proc: str = "/proc") -> None:
    """Let every process of the network namespace bind the ports below 1024, as Docker does.

    A crate's "root" may be a user without CAP_NET_BIND_SERVICE, and its ports are nobody else's. The
    setting is the namespace's own (ip_sysctl(7), kernel 4.11).

    :param proc: a mounted procfs whose ``sys`` is still writable.
    :raises SandboxError: the file is missing or read-only.
    """
    libc.write_file("allow low ports", f"{proc}/sys/net/ipv4/ip_unprivileged_port_start", "0")
