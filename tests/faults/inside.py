"""What a payload sees of its confinement: run inside, as a function or a program, and needs nothing but Python."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys
from collections.abc import Mapping

KINDS = ("user", "mnt", "pid", "net", "uts", "ipc", "cgroup")
_STATUS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Uid", "Gid", "Groups")


def namespaces() -> dict[str, str]:
    """Return the namespaces that the calling process is in."""
    return {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in KINDS}


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def _mounts(place: str) -> list[str]:
    # Without what differs from one crate to the next: numbers of mounts and devices, directories of the private layer.
    found = []
    for line in _text("/proc/self/mountinfo").splitlines():
        fields, kind = line.split(" - ")
        words = fields.split()
        # What other programs of the machine have put there may be gone in the next crate.
        others = words[4].startswith(("/tmp/", "/var/tmp/", "/run/", "/dev/shm")) or "/pytest-crate-tests/" in words[4]
        if others and not words[4].startswith(place):
            continue
        found.append(f"{words[4]} {words[5]} {kind.split()[0]}")
    return sorted(found)


_CALLS: tuple[tuple[str, tuple[object, ...]], ...] = (
    ("unshare", (0x10000000,)),
    ("mount", (b"none", b"/mnt", b"tmpfs", 0, None)),
    ("setns", (0, 0)),
    ("sethostname", (b"x", 1)),
)


def _refused() -> dict[str, str]:
    found = {}
    libc = ctypes.CDLL(None, use_errno=True)
    for name, arguments in _CALLS:
        found[name] = os.strerror(ctypes.get_errno()) if libc[name](*arguments) == -1 else "done"
    for path in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/sys/kernel/uevent_helper"):
        try:
            os.close(os.open(path, os.O_WRONLY))
            found[path] = "opened"
        except OSError as error:
            found[path] = "refused" if error.errno else ""
    return found


def _low_ports() -> list[int]:
    # An ordinary user's body has no power over its network.
    with socket.socket() as low:
        try:
            low.bind(("127.0.0.1", 80))
        except PermissionError:
            return []
        return [80]


def look(outside: Mapping[str, str]) -> dict[str, object]:
    """Return what there is to see of the confinement.

    :param outside: :func:`namespaces` as pytest is in them, and the ``place`` of the test's own files.
    """
    status = dict(line.split(":\t", 1) for line in _text("/proc/self/status").splitlines() if ":\t" in line)
    here = namespaces()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        reachable = server.getsockname()[0]
    return {
        "status": {name: status[name].split() for name in _STATUS},
        "uid_map": _text("/proc/self/uid_map").split(),
        "own namespaces": sorted(kind for kind in KINDS if here[kind] != outside[kind]),
        "cgroup": sorted({line.split(":", 2)[2] for line in _text("/proc/self/cgroup").splitlines()}),
        "mounts": _mounts(outside["place"]),
        "devices": sorted(os.listdir("/dev")),
        "network": sorted(line.split(":")[0].strip() for line in _text("/proc/net/dev").splitlines()[2:]),
        "bound": [reachable, *_low_ports()],
        "hostname": socket.gethostname(),
        "hosts": "box" in _text("/etc/hosts"),
        "session": os.getsid(0) == os.getpid(),
        "cwd": os.getcwd(),
        "umask": os.umask(0o022),
        "refused": _refused(),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "processes": sorted(name for name in os.listdir("/proc") if name.isdecimal()) == ["1", str(os.getpid())],
    }


if __name__ == "__main__":
    print(json.dumps(look(json.loads(sys.argv[1]))))
