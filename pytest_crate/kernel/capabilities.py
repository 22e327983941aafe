"""Capabilities: the set that a crate's payload keeps, and giving up every other one for good."""

from __future__ import annotations

import dataclasses
import errno
import struct
from collections.abc import Iterable

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import libc
from pytest_crate.spec import CAPABILITIES

DEFAULT_CAPABILITIES: tuple[str, ...] = (
    # What "root" needs to install and run software in its own root filesystem: Docker's default 14 less two.
    "chown",  # dpkg, tar and install give files to their owners
    "dac_override",  # root reads and writes files whatever their mode; package managers count on it
    "fowner",  # chmod, utime and setxattr on files of another owner
    "fsetid",  # keeps set-id bits when a file is written or changes its group
    "kill",  # a service's root process signals its workers, which run as another user
    "setgid",  # daemons, su, and apt's _apt user give up root
    "setuid",  # the same
    "setpcap",  # daemons and setpriv(1) narrow their own bounding set
    "net_bind_service",  # ports below 1024
    "net_raw",  # ping, and packet sockets: on "lo" of the crate's own network
    "sys_chroot",  # sshd, postfix, debootstrap
    "setfcap",  # setcap(8) in packages' install scripts
    # Not "mknod": a device node reaches the host's disk wherever no user namespace forbids it; /dev is ours.
    # Not "audit_write": the audit log is the host's and belongs to no namespace. In a user namespace the
    # capability is of no use: audit sockets answer ECONNREFUSED there, which PAM takes for "no audit".
)
"""Names of the capabilities that a payload keeps unless its spec adds some (``cap_add``)."""

_MAX_CAPABILITY = 63  # kernel_cap_t is 64 bits wide; which numbers exist is the running kernel's affair

# linux/capability.h: version 3, for 64-bit sets
_HEADER = struct.pack("=Ii", 0x20080522, 0)

_NO_BOUNDING_DETAILS = {errno.EPERM: "it takes CAP_SETPCAP"}
_STEP_BOUNDING = "limit the capability bounding set"
_STEP_SETS = "set the capabilities"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """A thread's capability sets as bit masks: bit n is capability number n (capabilities(7)).

    :ivar no_new_privs: execve(2) can't raise them any more.
    """

    inheritable: int
    permitted: int
    effective: int
    bounding: int
    ambient: int
    no_new_privs: bool


def capability_numbers(names: Iterable[str]) -> frozenset[int]:
    """Return the numbers of capabilities named as in :data:`pytest_crate.spec.CAPABILITIES`.

    :raises ValueError: a name is not one of them.
    """
    numbers = {name: number for number, name in enumerate(CAPABILITIES)}
    wanted = set(names)
    unknown = wanted - numbers.keys()
    if unknown:
        raise ValueError(f"no capability: {', '.join(sorted(unknown))}")
    return frozenset(numbers[name] for name in wanted)


def capability_mask(numbers: Iterable[int]) -> int:
    """Return the bit mask of capability numbers."""
    mask = 0
    for number in numbers:
        mask |= 1 << number
    return mask


def last_capability(proc: str = "/proc") -> int:
    """Return the number of the last capability that the running kernel knows (kernel 3.2).

    :raises SandboxError: the file can't be read.
    """
    path = f"{proc}/sys/kernel/cap_last_cap"
    with libc.os_step("read the kernel's last capability", "open", path), open(path, encoding="ascii") as file:
        return int(file.read())


def bounding_to_drop(keep: frozenset[int], last: int = _MAX_CAPABILITY) -> tuple[int, ...]:
    """Return every number up to the last one, ascending, but for the ones to keep.

    It goes beyond the names that we know: a newer kernel's capability must not stay by oversight.
    """
    return tuple(number for number in range(last + 1) if number not in keep)


def limit_bounding_set(keep: frozenset[int], last: int = _MAX_CAPABILITY, *, call: libc.Caller = libc.syscall) -> None:
    """Drop all capabilities but these from the bounding set, which no execve(2) goes beyond again.

    It can't be undone, and needs CAP_SETPCAP: call it before :func:`set_capabilities`, and before
    the payload gives up user id 0.

    :param last: :func:`last_capability`, read before the fork: it saves the time of being told.
    :raises SandboxError: CAP_SETPCAP is missing (errno EPERM): nothing more is dropped.
    """
    for number in bounding_to_drop(keep, last):
        path = f"PR_CAPBSET_DROP {number}"
        try:
            call(
                _STEP_BOUNDING, "prctl", libc.PR_CAPBSET_DROP, number, 0, 0, 0, path=path, details=_NO_BOUNDING_DETAILS
            )
        except SandboxError as error:
            # Numbers ascend, so that this one and all that follow are unknown to the kernel (prctl(2)).
            # It checks for CAP_SETPCAP first: EINVAL never hides a lack of it.
            if error.errno == errno.EINVAL:
                return
            raise


def set_capabilities(mask: int, inheritable: int = 0, *, call: libc.Caller = libc.syscall) -> None:
    """Make the effective and the permitted set of the calling thread this mask, and clear the ambient set.

    An empty inheritable set matters too: capabilities left in it come back through files that
    have them in their own inheritable set (CVE-2022-27649 and its kin).

    :param mask: bits of capability numbers; those which the thread does not have can't be gained.
    :raises SandboxError: the mask has a bit that is not in the permitted set (errno EPERM).
    """
    clear = (libc.PR_CAP_AMBIENT, libc.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    call(_STEP_SETS, "prctl", *clear, path="PR_CAP_AMBIENT_CLEAR_ALL")
    low, high = mask & 0xFFFFFFFF, mask >> 32
    data = struct.pack(
        "=6I", low, low, inheritable & 0xFFFFFFFF, high, high, inheritable >> 32
    )  # effective, permitted, inheritable: first the lower 32 bits of each, then the upper
    call(_STEP_SETS, "capset", _HEADER, data, path=f"permitted {mask:#x}")


def keep_over_change_of_ids(*, call: libc.Caller = libc.syscall) -> None:
    """Leave the permitted set as it is when the calling thread becomes another user than root, until execve(2).

    The effective and the ambient set are cleared all the same (capabilities(7)).
    """
    call(_STEP_SETS, "prctl", libc.PR_SET_KEEPCAPS, 1, 0, 0, 0, path="PR_SET_KEEPCAPS")


def no_new_privs(*, call: libc.Caller = libc.syscall) -> None:
    """Make execve(2) never grant privileges again: set-id bits and file capabilities lose their effect.

    It can't be undone, and a filter can't be installed without it (prctl(2), PR_SET_NO_NEW_PRIVS).
    """
    call("forbid new privileges", "prctl", libc.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, path="PR_SET_NO_NEW_PRIVS")


def parse_capabilities(status: str) -> Capabilities:
    """Return the sets that the text of ``/proc/<pid>/status`` names (proc_pid_status(5)).

    :raises KeyError: a line is missing: the kernel is older than 4.10.
    """
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    return Capabilities(
        inheritable=int(fields["CapInh"], 16),
        permitted=int(fields["CapPrm"], 16),
        effective=int(fields["CapEff"], 16),
        bounding=int(fields["CapBnd"], 16),
        ambient=int(fields["CapAmb"], 16),
        no_new_privs=fields["NoNewPrivs"].strip() == "1",
    )


def read_capabilities(pid: int | str = "self") -> Capabilities:
    """Return the capability sets of a process.

    :raises SandboxError: its status can't be read.
    """
    path = f"/proc/{pid}/status"
    with libc.os_step("read the capabilities", "open", path), open(path, encoding="utf-8", errors="replace") as file:
        return parse_capabilities(file.read())


def can_mount() -> bool:
    """Return whether this process has CAP_SYS_ADMIN: it needs no user namespace to make crates.

    :raises SandboxError: its status can't be read.
    """
    return bool(read_capabilities().effective & capability_mask(capability_numbers(["sys_admin"])))
