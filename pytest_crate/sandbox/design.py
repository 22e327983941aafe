"""What a crate is to be: as pytest asks for it, and as the launcher reads it from the wire."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_crate.kernel import capabilities, seccomp
from pytest_crate.sandbox import mounts
from pytest_crate.spec import CrateSpec

LIMIT_FIELDS = ("memory_bytes", "swap_bytes", "cpu_quota_usec", "cpuset", "pids")
"""The fields of a spec that become limits of a cgroup."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What pytest asks a crate to be, and the same as the launcher reads it."""

    spec: CrateSpec
    operations: Sequence[mounts.Operation]
    keep: frozenset[int]
    seccomp: bytes
    data: Mapping[str, object]

    @classmethod
    def of(cls, spec: CrateSpec, operations: Sequence[mounts.Operation]) -> Order:
        """Return what a crate of a spec, with such a root, is to be."""
        keep = _kept_capabilities(spec)
        program = seccomp.build_filter(os.uname().machine, capabilities=keep) if spec.seccomp else b""
        data = {
            "limits": {name: getattr(spec, name) for name in LIMIT_FIELDS},
            "asked": sorted(spec.asked),
            "network": spec.network,
            "hostname": spec.hostname,
            "tmpfs_bytes": spec.tmpfs_bytes,
            "operations": mounts.to_json(operations),
            "keep": sorted(keep),
            "cap_add": list(spec.cap_add),
            "seccomp": program.hex(),
            "as_root": spec.image is not None,
            "user": spec.user,
        }
        return cls(spec=spec, operations=operations, keep=keep, seccomp=program, data=data)

    def is_of(self, spec: CrateSpec, operations: Sequence[mounts.Operation]) -> bool:
        """Tell whether this is what such a crate is to be; operations that were planned once are seen so at once."""
        return (self.spec, self.operations) == (spec, operations)


def _kept_capabilities(spec: CrateSpec) -> frozenset[int]:
    names = set(capabilities.DEFAULT_CAPABILITIES)
    if spec.network == "host":
        # There it would let a payload listen to the whole host.
        names.discard("net_raw")
    # A host, such as a container, may lack some of the defaults; what is asked for by name it must have.
    permitted = capabilities.read_capabilities().permitted
    numbers = capabilities.capability_numbers(names)
    if permitted:
        numbers = frozenset(number for number in numbers if permitted >> number & 1)
    return numbers | capabilities.capability_numbers(spec.cap_add)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """What a crate is to be, as the wire brings it; crates made one after the other often have it in common.

    :ivar as_root: its user namespace, where it is made without rights, shows our user as root.
    :ivar user: who its payloads are, if nobody says otherwise.
    """

    limits: CrateSpec
    network: str
    hostname: str
    tmpfs_bytes: int | None
    operations: Sequence[mounts.Operation]
    keep: frozenset[int]
    cap_add: Sequence[str]
    seccomp: bytes
    as_root: bool
    user: str | None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Design:
        """Rebuild a design that pytest's side wrote."""
        values = {name: data["limits"][name] for name in LIMIT_FIELDS}
        return cls(
            limits=CrateSpec(**values, asked=frozenset(data["asked"])),
            network=data["network"],
            hostname=data["hostname"],
            tmpfs_bytes=data["tmpfs_bytes"],
            operations=mounts.from_json(data["operations"]),
            keep=frozenset(data["keep"]),
            cap_add=data["cap_add"],
            seccomp=bytes.fromhex(data["seccomp"]),
            as_root=data["as_root"],
            user=data["user"],
        )
