"""Whose the files of an extracted image are: the archive's owners', or all the user's."""

from __future__ import annotations

import dataclasses
import os
import re

# linux/capability.h: what owners, modes, and setgid bits of others' files take.
_CHOWN, _DAC_OVERRIDE, _FOWNER, _FSETID = 0, 1, 3, 4
_ROOTS_IDS = 65536


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ownership:
    """What an extraction does with owners; files extracted under one are wrong under another.

    :ivar keep: files get the owners that the archive states; else all belong to the user.
    :ivar name: tells ownerships apart in a path: ``"root"``, ``"uid1000"``, ``"root-from-100000"``, and of a range
        that is of several parts ``"root-from-1000-100000"``.
    """

    keep: bool
    name: str


def current_ownership() -> Ownership:
    """Return what this process can do: to keep owners takes root's powers over a whole range of ids.

    Source: ``/proc/self/status`` (CapEff) and ``/proc/self/uid_map`` (user_namespaces(7)). A container's root with
    its own range counts; a user namespace that maps nobody but the user does not.
    """
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        match = re.search(r"^CapEff:\s*([0-9a-f]+)$", status.read(), re.MULTILINE)
    capabilities = int(match[1], 16) if match else 0
    with open("/proc/self/uid_map", encoding="ascii") as uid_map:
        ranges = [tuple(map(int, line.split())) for line in uid_map]
    powers = all(capabilities >> bit & 1 for bit in (_CHOWN, _DAC_OVERRIDE, _FOWNER, _FSETID))
    known, parts = 0, []
    # A rootless container's map has its user as root, and then the range (Podman: "0 1000 1" and "1 100000 65536").
    for inner, outer, count in sorted(ranges):
        if inner == known:
            known += count
            parts.append(outer)
    if powers and known >= _ROOTS_IDS:
        return Ownership(keep=True, name=f"root-from-{'-'.join(map(str, parts))}" if parts != [0] else "root")
    # As seen from outside, so that one user's store is one, be it used in a user namespace or not.
    user = os.geteuid()
    outside = next((outer + user - inner for inner, outer, count in ranges if inner <= user < inner + count), user)
    return Ownership(keep=False, name=f"uid{outside}")
