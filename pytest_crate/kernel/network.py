"""The crate's own network stack: its loopback interface up, with addresses for resolvers, its low ports free."""

from __future__ import annotations

import errno
import fcntl
import socket
import struct

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import libc

_SIOCSIFFLAGS = 0x8914  # linux/sockios.h
_IFF_UP = 0x1  # linux/if.h

# struct ifreq (netdevice(7)): the name in 16 bytes, the flags, and the rest of a 24-byte union
_LOOPBACK_UP = struct.pack("=16sH22x", b"lo", _IFF_UP)

# linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h
_RTM_NEWADDR = 20
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_EXCL, _NLM_F_CREATE = 0x1, 0x4, 0x200, 0x400
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RT_SCOPE_HOST = 254
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, sender
_ADDRESS = struct.Struct("=BBBBi")  # struct ifaddrmsg: family, bits of the prefix, flags, scope, interface
_ATTRIBUTE = struct.Struct("=HH")  # struct rtattr: length, type

# The kernel has none, or it is switched off for the interface: then there is no ::1 either.
_NO_IPV6 = (errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EACCES, errno.ENODEV)

# Why these are enough, and harmless: add_addresses().
_SECOND_ADDRESSES = ((socket.AF_INET, "127.0.0.2", 8), (socket.AF_INET6, "fe80::1", 128))


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


def add_addresses() -> None:
    """Give ``lo`` the addresses 127.0.0.2 and fe80::1 as well, for getaddrinfo(3) with ``AI_ADDRCONFIG``.

    Without an address besides 127.0.0.1 and ::1 the C library takes a family for not configured, and then resolves
    not even ``127.0.0.1`` (glibc, sysdeps/unix/sysv/linux/check_pf.c). Many clients ask that way: asyncio's
    and their libraries'.

    :raises SandboxError: the process has no CAP_NET_ADMIN over its network namespace, or ``lo`` is down.
    """
    step = "add an address to the loopback interface"
    with (
        libc.os_step(step, "netlink", "RTM_NEWADDR lo"),
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as control,
    ):
        index = socket.if_nametoindex("lo")
        for family, address, bits in _SECOND_ADDRESSES:
            control.send(_new_address(family, address, bits, index))
            # struct nlmsgerr: the errno, negative, after the header of the answer (netlink(7))
            (error,) = struct.unpack_from("=i", control.recv(4096), _HEADER.size)
            if error and not (family == socket.AF_INET6 and -error in _NO_IPV6):
                raise SandboxError(step, syscall="netlink", path=f"RTM_NEWADDR lo {address}", errno=-error)


def _new_address(family: int, address: str, bits: int, index: int) -> bytes:
    packed = socket.inet_pton(family, address)
    attributes = b"".join(_ATTRIBUTE.pack(4 + len(packed), kind) + packed for kind in (_IFA_LOCAL, _IFA_ADDRESS))
    body = _ADDRESS.pack(family, bits, 0, _RT_SCOPE_HOST, index) + attributes
    flags = _NLM_F_REQUEST | _NLM_F_ACK | _NLM_F_EXCL | _NLM_F_CREATE
    return _HEADER.pack(_HEADER.size + len(body), _RTM_NEWADDR, flags, 1, 0) + body


def allow_low_ports(proc: str = "/proc") -> None:
    """Let every process of the network namespace bind the ports below 1024, as Docker does.

    A crate's "root" may be a user without CAP_NET_BIND_SERVICE, and its ports are nobody else's. The
    setting is the namespace's own (ip_sysctl(7), kernel 4.11).

    :param proc: a mounted procfs whose ``sys`` is still writable.
    :raises SandboxError: the file is missing or read-only.
    """
    libc.write_file("allow low ports", f"{proc}/sys/net/ipv4/ip_unprivileged_port_start", "0")
