"""The system calls that a crate's payload is refused, as a filter in classic BPF made before the fork."""

from __future__ import annotations

import dataclasses
import functools
import struct
from collections.abc import Mapping
from errno import EAFNOSUPPORT, EINVAL, ENOSYS, EPERM, EPROTONOSUPPORT

from pytest_crate.errors import HostError
from pytest_crate.kernel import libc
from pytest_crate.spec import CAPABILITIES

# Theory of operation. The filter lets through every call that it does not name: a test suite may
# do anything ordinary. It refuses what containers refuse: doors to parts of the kernel that
# belong to no namespace or have a record of privilege escalation. Capabilities and namespaces
# close most of these doors too; the filter is the second lock.
#
# An error, not a signal: software probes, and goes on without. ENOSYS where it then takes an older
# way to the same end, EPERM where there is none, which is what it meets in Docker.
#
# Calls that are newer than this file are unknown here, so they get ENOSYS, as on an older kernel.

# linux/sched.h
_CLONE_NEWTIME = 0x80
_CLONE_PTRACE = 0x2000
_NAMESPACE_FLAGS = (
    libc.CLONE_NEWNS | libc.CLONE_NEWCGROUP | libc.CLONE_NEWUTS | libc.CLONE_NEWIPC
    | libc.CLONE_NEWUSER | libc.CLONE_NEWPID | libc.CLONE_NEWNET
)  # fmt: skip

# linux/socket.h: AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET
_NETLINK = 16
_NAMESPACED_FAMILIES = (1, 2, 10, _NETLINK, 17)

# linux/netlink.h: NETLINK_ROUTE, _USERSOCK, _SOCK_DIAG, _XFRM, _SELINUX, _AUDIT, _NETFILTER, _KOBJECT_UEVENT, _GENERIC
_COMMON_PROTOCOLS = (0, 2, 4, 6, 7, 9, 12, 15, 16)

# asm-generic/ioctls.h
_TIOCEXCL = 0x540C
_TIOCSTI = 0x5412
_TIOCLINUX = 0x541C
_TIOCSETD = 0x5423

# linux/fcntl.h
_F_SETLEASE = 1024

# linux/personality.h
_PER_LINUX32 = 0x0008
_UNAME26 = 0x0020000
_ADDR_NO_RANDOMIZE = 0x0040000
_PERSONALITY_QUERY = 0xFFFFFFFF


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A test of one argument's lower 32 bits.

    All arguments tested here are 32 bits wide in the kernel. A filter that looks at 64 bits can be
    passed with a bit set in the upper half, which the kernel then ignores (CVE-2019-10063, CVE-2023-28100).

    :ivar argument: its index, from 0.
    :ivar any_bit_of: it matches if it has one of these bits; 0 if values are compared instead.
    :ivar one_of: it matches if it is one of these values.
    :ivar refuse_match: refuse what matches; False refuses what does not.
    :ivar nested: by this value of the argument, another argument decides instead.
    """

    argument: int
    any_bit_of: int = 0
    one_of: tuple[int, ...] = ()
    refuse_match: bool = True
    nested: Mapping[int, Nested] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Nested:
    """What decides on a call by one of its arguments, given another's value.

    :ivar errno: the error that the caller gets.
    """

    condition: Condition
    errno: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A system call that the filter refuses.

    :ivar numbers: its number by machine; a machine that lacks the call is missing.
    :ivar errno: the error that the caller gets.
    :ivar condition: refuse it only then; None refuses it always.
    :ivar unless: the capability that lifts the refusal, for whom the kernel checks what is allowed.
    :ivar makes_namespaces: part of making namespaces and mounting in them.
    """

    name: str
    numbers: Mapping[str, int]
    errno: int
    condition: Condition | None = None
    unless: str | None = None
    makes_namespaces: bool = False


# asm/unistd_64.h of x86_64 and asm-generic/unistd.h; from 424 on they are the same.
_NUMBERS: Mapping[str, tuple[int | None, int | None]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "clock_settime": (227, 112),
    "clone": (56, 220),
    "clone3": (435, 435),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "fcntl": (72, 25),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioctl": (16, 29),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "migrate_pages": (256, 238),
    "lookup_dcookie": (212, 18),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "vhangup": (153, 58),
}

# The last call known here: file_setattr, Linux 6.17.
_LAST_NUMBER = 469

# linux/audit.h
_AUDIT_ARCH: Mapping[str, int] = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def _refuse(
    names: str,
    errno: int,
    *,
    condition: Condition | None = None,
    unless: str | None = None,
    makes_namespaces: bool = False,
) -> tuple[Refusal, ...]:
    return tuple(
        Refusal(
            name=name,
            numbers={m: n for m, n in zip(_AUDIT_ARCH, _NUMBERS[name], strict=True) if n is not None},
            errno=errno,
            condition=condition,
            unless=unless,
            makes_namespaces=makes_namespaces,
        )
        for name in names.split()
    )


REFUSALS: tuple[Refusal, ...] = (
    # First what is refused by its arguments only: these calls are frequent, and since Linux 5.11 the
    # kernel skips the filter for those which it always lets through.
    #
    # TIOCSTI types into the terminal that pytest was started from (CVE-2017-5226), TIOCLINUX pastes
    # into a console (CVE-2023-28100). TIOCSETD makes a terminal one that nobody can read any more, and loads modules of
    # line disciplines; TIOCEXCL keeps others from opening it.
    *_refuse("ioctl", EPERM, condition=Condition(argument=1, one_of=(_TIOCSTI, _TIOCLINUX, _TIOCSETD, _TIOCEXCL))),
    # A lease on a file of the host's, which its owner can take through a read-only view, holds up whoever opens it
    # there (fcntl(2), /proc/sys/fs/lease-break-time: 45 s, again and again). File systems that have none say EINVAL.
    *_refuse("fcntl", EINVAL, condition=Condition(argument=1, one_of=(_F_SETLEASE,))),
    # Only families that network namespaces hold. AF_VSOCK reaches the hypervisor, AF_ALG the kernel's
    # crypto code (CVE-2026-31431); others load modules of long record on first use (TIPC, RDS, CAN …). So do netlink's
    # protocols of drivers, which no namespace holds either (iSCSI, CVE-2021-27365). SELinux's only listens; libselinux
    # makes a socket of it.
    *_refuse(
        "socket socketpair",
        EAFNOSUPPORT,
        condition=Condition(
            argument=0,
            one_of=_NAMESPACED_FAMILIES,
            refuse_match=False,
            nested={
                _NETLINK: Nested(
                    condition=Condition(argument=2, one_of=_COMMON_PROTOCOLS, refuse_match=False),
                    errno=EPROTONOSUPPORT,
                )
            },
        ),
    ),
    # A new user namespace has all capabilities in it, and with them many more paths into the kernel.
    # CLONE_PARENT gives a child to the caller's own parent: to pytest, or its launcher, which would not know of it;
    # while nobody waits for it, the crate's init can't end (pid_namespaces(7)). CLONE_PTRACE gives it to the caller's
    # tracer likewise, which its parent can be made (PTRACE_TRACEME).
    *_refuse(
        "clone",
        EPERM,
        condition=Condition(argument=0, any_bit_of=_NAMESPACE_FLAGS | libc.CLONE_PARENT | _CLONE_PTRACE),
        unless="sys_admin",
        makes_namespaces=True,
    ),
    # CLONE_NEWTIME is for unshare(2) and clone3(2) only: in clone(2) the bit belongs to the exit signal.
    *_refuse(
        "unshare",
        EPERM,
        condition=Condition(argument=0, any_bit_of=_NAMESPACE_FLAGS | _CLONE_NEWTIME),
        unless="sys_admin",
        makes_namespaces=True,
    ),
    # Docker's list of harmless ones, and ADDR_NO_RANDOMIZE: sanitizers and debuggers ask for it, and it
    # weakens only the process itself. Others bring back old, little tested behaviour.
    *_refuse(
        "personality",
        EPERM,
        condition=Condition(
            argument=0,
            one_of=(
                _PERSONALITY_QUERY,
                *(
                    domain | uname | layout
                    for domain in (0, _PER_LINUX32)
                    for uname in (0, _UNAME26)
                    for layout in (0, _ADDR_NO_RANDOMIZE)
                ),
            ),
            refuse_match=False,
        ),
    ),
    # Its flags are in memory, where a filter can't look. C libraries fall back to clone(2) on ENOSYS.
    *_refuse("clone3", ENOSYS, unless="sys_admin", makes_namespaces=True),
    *_refuse("setns mount umount2 pivot_root", EPERM, unless="sys_admin", makes_namespaces=True),
    # mount(8) and systemd fall back to mount(2) on ENOSYS, and say there what is wrong.
    *_refuse(
        "open_tree open_tree_attr move_mount fsopen fsconfig fsmount fspick mount_setattr",
        ENOSYS,
        unless="sys_admin",
        makes_namespaces=True,
    ),
    # It submits calls that no filter sees, and had many escalations. libuv, tokio and others fall back.
    *_refuse("io_uring_setup io_uring_enter io_uring_register", ENOSYS),
    # Keyrings belong to no namespace.
    *_refuse("keyctl add_key request_key", EPERM),
    *_refuse("bpf", EPERM, unless="bpf"),
    *_refuse("perf_event_open", EPERM, unless="perfmon"),
    # Stops the kernel in the middle of a copy from user memory: it makes races exploitable.
    *_refuse("userfaultfd", EPERM, unless="sys_ptrace"),
    # Opens files of the whole file system by inode number, whatever the root directory (Docker, 2014).
    # name_to_handle_at(2) only makes the handle, and systemd uses it to find mounts.
    *_refuse("open_by_handle_at", EPERM, unless="dac_read_search"),
    # ptrace(2) and process_vm_readv(2) are the kernel's to judge: it compares ids, capabilities and PID
    # namespaces, and debuggers must work. These two are needed by checkpointing and little else.
    *_refuse("kcmp pidfd_getfd", EPERM, unless="sys_ptrace"),
    # mbind(2) and set_mempolicy(2) act on the caller's own memory and are let through; these on others'.
    *_refuse("move_pages migrate_pages", EPERM, unless="sys_nice"),
    # Watches whole mounts, which are the host's underneath; inotify does for tests.
    *_refuse("fanotify_init", EPERM, unless="sys_admin"),
    # Paths of the whole machine's files, by cookies that its profiler made (until Linux 6.7).
    *_refuse("lookup_dcookie", EPERM, unless="sys_admin"),
    # The machine's, not the crate's: kernel, modules, ports, clock, log, swap, quota, accounting, terminals.
    *_refuse("kexec_load kexec_file_load", EPERM),
    *_refuse("init_module finit_module delete_module", EPERM, unless="sys_module"),
    *_refuse("reboot", EPERM, unless="sys_boot"),
    *_refuse("iopl ioperm", EPERM, unless="sys_rawio"),
    *_refuse("settimeofday clock_settime", EPERM, unless="sys_time"),
    *_refuse("syslog", EPERM, unless="syslog"),
    *_refuse("swapon swapoff quotactl quotactl_fd", EPERM, unless="sys_admin"),
    *_refuse("acct", EPERM, unless="sys_pacct"),
    *_refuse("vhangup", EPERM, unless="sys_tty_config"),
)
"""What the filter refuses, in its order; each call once."""

# linux/bpf_common.h, linux/filter.h
_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS: a 32-bit word of struct seccomp_data
_JUMP_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JUMP_GREATER = 0x25  # BPF_JMP | BPF_JGT | BPF_K
_JUMP_ANY_BIT = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K

# linux/seccomp.h
_SECCOMP_SET_MODE_FILTER = 1
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_KILL_PROCESS = 0x80000000
_OFFSET_NUMBER = 0
_OFFSET_ARCH = 4
_OFFSET_ARGUMENTS = 16  # eight bytes each, the lower half first on little-endian machines, as both are


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """Return a struct sock_filter; the jumps count the instructions to skip."""
    return struct.pack("<HBBI", code, if_true, if_false, value)


def _return_if(test: int, value: int, action: int) -> bytes:
    """Return instructions that end the filter with an action if the test holds, and go on otherwise."""
    return _instruction(test, value, if_false=1) + _instruction(_RETURN, action)


def _decision(condition: Condition | None, errno: int) -> bytes:
    """Return instructions that decide on a call whose number has matched."""
    refused = _ERRNO | errno
    if condition is None:
        return _instruction(_RETURN, refused)
    match, other = (refused, _ALLOW) if condition.refuse_match else (_ALLOW, refused)
    code = _instruction(_LOAD, _OFFSET_ARGUMENTS + 8 * condition.argument)
    if condition.any_bit_of:
        code += _return_if(_JUMP_ANY_BIT, condition.any_bit_of, match)
    for value, nested in condition.nested.items():
        decision = _decision(nested.condition, nested.errno)
        code += _instruction(_JUMP_EQUAL, value, if_false=len(decision) // 8) + decision
    for value in condition.one_of:
        code += _return_if(_JUMP_EQUAL, value, match)
    return code + _instruction(_RETURN, other)


@functools.lru_cache(maxsize=8)
def build_filter(machine: str, *, capabilities: frozenset[int] = frozenset(), allow_namespaces: bool = False) -> bytes:
    """Return the filter for :func:`install`: an array of ``struct sock_filter``.

    :param machine: ``x86_64`` or ``aarch64``, as uname(2) says it.
    :param capabilities: numbers of the payload's capabilities. One that was added lifts the refusals
        that it makes pointless, as in Docker: what remains is the kernel's own check.
    :param allow_namespaces: let the payload make namespaces and mount in them, for sandboxes in a crate.
    :raises HostError: the machine's system call numbers are not known here.
    """
    if machine not in _AUDIT_ARCH:
        raise HostError(
            f"there is no system call filter for {machine}", feature="seccomp", hint="seccomp=False in the marker"
        )
    held = {CAPABILITIES[number] for number in capabilities}
    program = [
        # Another architecture has other numbers: i386 on x86_64, 32-bit ARM on aarch64. Killed, because a
        # program that can't even make its exit call may spin forever.
        _instruction(_LOAD, _OFFSET_ARCH),
        _instruction(_JUMP_EQUAL, _AUDIT_ARCH[machine], if_true=1),
        _instruction(_RETURN, _KILL_PROCESS),
        _instruction(_LOAD, _OFFSET_NUMBER),
        # This holds x32 off as well: its numbers have bit 30 set. Kernels without it say ENOSYS too.
        _return_if(_JUMP_GREATER, _LAST_NUMBER, _ERRNO | ENOSYS),
    ]
    for refusal in REFUSALS:
        number = refusal.numbers.get(machine)
        if number is None or refusal.unless in held or (allow_namespaces and refusal.makes_namespaces):
            continue
        decision = _decision(refusal.condition, refusal.errno)
        program += (_instruction(_JUMP_EQUAL, number, if_false=len(decision) // 8), decision)
    program.append(_instruction(_RETURN, _ALLOW))
    return b"".join(program)


def install(program: bytes, *, call: libc.Caller = libc.syscall) -> None:
    """Put the calling thread, and all that it starts, under a filter for good (seccomp(2)).

    Call it last, after :func:`pytest_crate.kernel.capabilities.no_new_privs`.

    :param program: what :func:`build_filter` returned.
    :raises SandboxError: no_new_privs is not set (EACCES), or the kernel has no filters (EINVAL, ENOSYS).
    """
    length = len(program) // 8
    # struct sock_fprog: a short, and a pointer in the next word; both machines are little-endian.
    described = libc.Words((length, program))
    path = f"{length} instructions"
    call("install the system call filter", "seccomp", _SECCOMP_SET_MODE_FILTER, 0, described, path=path)
