"""The filter's decisions, made by a small interpreter of classic BPF instead of the kernel."""

from __future__ import annotations

import errno
import fcntl
import re
import socket
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_crate.errors import HostError
from pytest_crate.kernel.capabilities import DEFAULT_CAPABILITIES, capability_numbers
from pytest_crate.kernel.seccomp import REFUSALS, build_filter

MACHINES = ("x86_64", "aarch64")
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ARCH_I386 = 0x40000003
ARCH_ARM = 0x40000028
ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
REFUSE = 0x00050000

# Written by hand from the headers, apart from the module's own table: what a crate shall refuse always.
ALWAYS_EPERM = {
    "x86_64": {
        "acct": 163, "add_key": 248, "bpf": 321, "clock_settime": 227, "delete_module": 176, "fanotify_init": 300,
        "finit_module": 313, "init_module": 175, "ioperm": 173, "iopl": 172, "kcmp": 312, "kexec_file_load": 320,
        "kexec_load": 246, "keyctl": 250, "lookup_dcookie": 212, "migrate_pages": 256, "mount": 165, "move_pages": 279,
        "open_by_handle_at": 304, "perf_event_open": 298, "pidfd_getfd": 438, "pivot_root": 155, "quotactl": 179,
        "quotactl_fd": 443, "reboot": 169, "request_key": 249, "setns": 308, "settimeofday": 164, "swapoff": 168,
        "swapon": 167, "syslog": 103, "umount2": 166, "userfaultfd": 323, "vhangup": 153,
    },
    "aarch64": {
        "acct": 89, "add_key": 217, "bpf": 280, "clock_settime": 112, "delete_module": 106, "fanotify_init": 262,
        "finit_module": 273, "init_module": 105, "kcmp": 272, "kexec_file_load": 294, "kexec_load": 104,
        "keyctl": 219, "lookup_dcookie": 18, "migrate_pages": 238, "mount": 40, "move_pages": 239,
        "open_by_handle_at": 265, "perf_event_open": 241, "pidfd_getfd": 438, "pivot_root": 41, "quotactl": 60,
        "quotactl_fd": 443, "reboot": 142, "request_key": 218, "setns": 268, "settimeofday": 170,
        "swapoff": 225, "swapon": 224, "syslog": 116, "umount2": 39, "userfaultfd": 282, "vhangup": 58,
    },
}  # fmt: skip
ALWAYS_ENOSYS = {
    "clone3": 435, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "mount_setattr": 442,
    "open_tree_attr": 467,
}  # fmt: skip
CONDITIONAL = {
    "x86_64": {
        "clone": 56, "unshare": 272, "ioctl": 16, "socket": 41, "socketpair": 53, "personality": 135, "fcntl": 72,
    },
    "aarch64": {
        "clone": 220, "unshare": 97, "ioctl": 29, "socket": 198, "socketpair": 199, "personality": 92, "fcntl": 25,
    },
}  # fmt: skip


def decide(program: bytes, *, arch: int, number: int, arguments: tuple[int, ...] = ()) -> int:
    """Run a filter as the kernel's interpreter would, and return its verdict."""
    padded = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, arch, 0, *(value & (2**64 - 1) for value in padded))
    instructions = list(struct.iter_unpack("<HBBI", program))
    accumulator = position = 0
    while True:
        code, if_true, if_false, value = instructions[position]
        position += 1
        match code:
            case 0x06:
                return int(value)
            case 0x20:
                assert value % 4 == 0
                accumulator = int.from_bytes(data[value : value + 4], "little")
            case 0x15:
                position += if_true if accumulator == value else if_false
            case 0x25:
                position += if_true if accumulator > value else if_false
            case 0x45:
                position += if_true if accumulator & value else if_false
            case _:
                raise AssertionError(f"no such instruction: {code:#x}")


def verdict(machine: str, name: str, *arguments: int, program: bytes | None = None) -> int | None:
    """Return the errno that a call is refused with, or None if it is let through."""
    table = {**CONDITIONAL[machine], **ALWAYS_EPERM[machine], **ALWAYS_ENOSYS}
    result = decide(program or build_filter(machine), arch=ARCH[machine], number=table[name], arguments=arguments)
    if result == ALLOW:
        return None
    assert result >> 16 == 0x0005, hex(result)
    return result & 0xFFFF


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> str:
    """Each machine that there is a filter for."""
    return str(request.param)


def test_decision_table(machine: str) -> None:
    """Of all known numbers exactly the listed ones are refused whatever their arguments, with the listed errno."""
    program = build_filter(machine)
    expected = dict.fromkeys(range(470), ALLOW)
    expected |= dict.fromkeys(ALWAYS_EPERM[machine].values(), REFUSE | errno.EPERM)
    expected |= dict.fromkeys(ALWAYS_ENOSYS.values(), REFUSE | errno.ENOSYS)
    for number in expected.keys() - set(CONDITIONAL[machine].values()):
        assert decide(program, arch=ARCH[machine], number=number) == expected[number], number
        assert decide(program, arch=ARCH[machine], number=number, arguments=(-1,) * 6) == expected[number], number


def test_every_call_is_refused_once(machine: str) -> None:
    """No number stands in the table twice, where its second row would never be reached."""
    numbers = [refusal.numbers[machine] for refusal in REFUSALS if machine in refusal.numbers]
    assert len(numbers) == len(set(numbers))
    assert len({refusal.name for refusal in REFUSALS}) == len(REFUSALS)


@pytest.mark.parametrize(
    ("machine", "header"),
    [("x86_64", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), ("aarch64", "/usr/include/asm-generic/unistd.h")],
)
def test_numbers_are_those_of_the_kernel_headers(machine: str, header: str) -> None:
    """Every number agrees with the kernel's header, wherever the installed header knows the call."""
    if not Path(header).exists():
        pytest.skip(f"{header} is not installed")
    known = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(header).read_text(encoding="ascii")))
    ours = {refusal.name: refusal.numbers.get(machine) for refusal in REFUSALS}
    if "open_tree_attr" not in known:  # Linux 6.15: newer than the headers of most distributions
        del ours["open_tree_attr"]
    # A name that is missing on both sides is a call that this machine lacks, such as iopl on aarch64.
    assert ours == {name: int(known[name]) if name in known else None for name in ours}


@pytest.mark.parametrize("number", [470, 511, 512, 547, 1000, 0x40000000 | 39, 0x40000000 | 165, 0xFFFFFFFF])
def test_unknown_and_x32_numbers(machine: str, number: int) -> None:
    """A number that is newer than the table, or of the x32 ABI, gets ENOSYS as on a kernel without it."""
    assert decide(build_filter(machine), arch=ARCH[machine], number=number) == REFUSE | errno.ENOSYS


@pytest.mark.parametrize("number", [0, 1, 20, 39, 90, 120, 165, 310, 435, 600])
def test_another_architecture_is_killed(machine: str, number: int) -> None:
    """Whatever the number, a call by another architecture's table ends the process."""
    program = build_filter(machine)
    others = {*ARCH.values(), ARCH_I386, ARCH_ARM} - {ARCH[machine]}
    assert {decide(program, arch=arch, number=number) for arch in others} == {KILL_PROCESS}


@pytest.mark.parametrize(
    "flag",
    [0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000],
    ids=["mount", "cgroup", "uts", "ipc", "user", "pid", "net"],
)
def test_clone_and_unshare_make_no_namespaces(machine: str, flag: int) -> None:
    """Each namespace flag is refused, alone and among others."""
    assert verdict(machine, "clone", flag | 17) == errno.EPERM
    assert verdict(machine, "clone", flag | 0x00000F00 | 17) == errno.EPERM
    assert verdict(machine, "unshare", flag) == errno.EPERM
    assert verdict(machine, "unshare", flag | 0x200) == errno.EPERM


def test_clone_gives_no_child_to_the_parent(machine: str) -> None:
    """A payload's parent is pytest or its launcher: CLONE_PARENT is refused, alone and among others."""
    assert verdict(machine, "clone", 0x8000 | 17) == errno.EPERM
    assert verdict(machine, "clone", 0x2000 | 17) == errno.EPERM  # CLONE_PTRACE: nor to its tracer
    assert verdict(machine, "clone", 0x8000 | 0x01200000 | 17) == errno.EPERM


def test_clone_of_processes_and_threads(machine: str) -> None:
    """The flags of fork(), vfork(), posix_spawn() and pthread_create() pass."""
    for flags in (17, 0x01200011, 0x4111, 0x003D0F00):
        assert verdict(machine, "clone", flags) is None


def test_unshare_of_time_and_files(machine: str) -> None:
    """unshare(2) makes no time namespace, but may part with shared files and directories."""
    assert verdict(machine, "unshare", 0x80) == errno.EPERM
    assert verdict(machine, "unshare", 0x400 | 0x200 | 0x40000) is None


def test_ioctl(machine: str) -> None:
    """Typing into a terminal, pasting into a console, and what makes a terminal useless are refused; others pass."""
    for request in (0x5412, 0x541C, 0x5423, 0x540C):
        assert verdict(machine, "ioctl", 0, request) == errno.EPERM
    for request in (0x5401, 0x5411, 0x5413, 0x541B, 0x541D, 0x5414, 0x8914):
        assert verdict(machine, "ioctl", 0, request) is None
    # The request is the second argument: the first, a descriptor, doesn't matter.
    assert verdict(machine, "ioctl", 0x5412, 0x5413) is None


def test_leases(machine: str) -> None:
    """A lease on a file is refused; the other commands of fcntl(2) pass, locks among them."""
    assert verdict(machine, "fcntl", 3, fcntl.F_SETLEASE) == errno.EINVAL
    for command in (fcntl.F_GETLEASE, fcntl.F_SETFL, fcntl.F_SETLK, fcntl.F_DUPFD_CLOEXEC, fcntl.F_NOTIFY):
        assert verdict(machine, "fcntl", 3, command) is None


@pytest.mark.parametrize("call", ["socket", "socketpair"])
def test_netlink_protocols(machine: str, call: str) -> None:
    """Of netlink's protocols those of drivers are unsupported, and those not known here; another family's of the same
    number is none of them."""
    common = {0, 2, 4, 6, 7, 9, 12, 15, 16}
    for protocol in range(40):
        refused = None if protocol in common else errno.EPROTONOSUPPORT
        assert verdict(machine, call, socket.AF_NETLINK, socket.SOCK_RAW, protocol) == refused, protocol
        assert verdict(machine, call, socket.AF_INET, socket.SOCK_RAW, protocol) is None
    assert verdict(machine, call, 1 << 32 | socket.AF_NETLINK, socket.SOCK_RAW, 1 << 32 | 8) == errno.EPROTONOSUPPORT


@pytest.mark.parametrize("call", ["socket", "socketpair"])
def test_socket_families(machine: str, call: str) -> None:
    """Of all families, only those that a network namespace holds can be used."""
    allowed = {family for family in range(64) if verdict(machine, call, family, 1) is None}
    assert allowed == {
        socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET
    }  # fmt: skip
    assert verdict(machine, call, socket.AF_VSOCK, 1) == errno.EAFNOSUPPORT
    assert verdict(machine, call, socket.AF_ALG, 5) == errno.EAFNOSUPPORT


def test_personality(machine: str) -> None:
    """Reading it, 32-bit names, old kernel numbers and addresses without randomness pass; the rest doesn't."""
    for persona in (0xFFFFFFFF, 0, 8, 0x20000, 0x20008, 0x40000, 0x40008, 0x60000, 0x60008):
        assert verdict(machine, "personality", persona) is None
    for persona in (1, 0x0400000, 0x0100000, 0x0200000, 0x0440000, 0xFFFFFFFE):
        assert verdict(machine, "personality", persona) == errno.EPERM


# Calls with their arguments: half of them are refused.
ARGUMENTS: list[tuple[str, tuple[int, ...]]] = [
    ("fcntl", (3, 1024)), ("fcntl", (3, 1025)),
    ("socket", (16, 3, 8)), ("socket", (16, 3, 0)),
    ("ioctl", (0, 0x5412)), ("socket", (38,)), ("socket", (40,)), ("socket", (1,)), ("ioctl", (0, 0x5401)),
    ("clone", (0x10000011,)), ("clone", (17,)), ("unshare", (0x80,)), ("unshare", (0x200,)),
    ("personality", (0x0400000,)), ("personality", (0,)),
]  # fmt: skip


@given(high=st.integers(0, 2**32 - 1), machine=st.sampled_from(MACHINES), call=st.sampled_from(ARGUMENTS))
def test_upper_halves_of_arguments_do_not_matter(high: int, machine: str, call: tuple[str, tuple[int, ...]]) -> None:
    """Bits that the kernel ignores change no decision (CVE-2019-10063, CVE-2023-28100)."""
    name, arguments = call
    disguised = tuple(value | high << 32 for value in arguments)
    assert verdict(machine, name, *disguised) == verdict(machine, name, *arguments)


@given(
    arch=st.sampled_from([*ARCH.values(), ARCH_I386]),
    machine=st.sampled_from(MACHINES),
    number=st.integers(0, 2**32 - 1) | st.integers(0, 600),
    arguments=st.tuples(*[st.integers(0, 2**64 - 1)] * 6),
)
def test_every_call_gets_one_of_the_known_verdicts(
    arch: int, machine: str, number: int, arguments: tuple[int, ...]
) -> None:
    """The filter ends for any input, in one of its five verdicts."""
    assert decide(build_filter(machine), arch=arch, number=number, arguments=arguments) in {
        ALLOW,
        KILL_PROCESS,
        REFUSE | errno.EPERM,
        REFUSE | errno.ENOSYS,
        REFUSE | errno.EAFNOSUPPORT,
    }


def test_program_is_valid(machine: str) -> None:
    """It meets the kernel's rules: at most 4096 whole instructions, jumps that stay inside, a return at the end."""
    program = build_filter(machine)
    instructions = list(struct.iter_unpack("<HBBI", program))
    assert 100 < len(instructions) < 4096
    for position, (code, if_true, if_false, _value) in enumerate(instructions):
        if code not in (0x06, 0x20):
            assert position + 1 + max(if_true, if_false) < len(instructions)
    assert instructions[-1] == (0x06, 0, 0, ALLOW)


def lifted(machine: str, program: bytes) -> set[str]:
    """Return the names of the calls that this program refuses less of than the default one."""
    calls: dict[str, tuple[int, ...]] = dict.fromkeys((*ALWAYS_EPERM[machine], *ALWAYS_ENOSYS), ())
    calls |= {"clone": (0x10000000,), "unshare": (0x80,), "ioctl": (0, 0x5412), "socket": (38,), "personality": (1,)}
    assert all(verdict(machine, name, *arguments) is not None for name, arguments in calls.items())
    return {name for name, arguments in calls.items() if verdict(machine, name, *arguments, program=program) is None}


NAMESPACES = {
    "clone", "clone3", "unshare", "setns", "mount", "umount2", "pivot_root", "open_tree", "open_tree_attr",
    "move_mount", "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr",
}  # fmt: skip


def test_default_capabilities_lift_nothing(machine: str) -> None:
    """What every crate's payload holds leaves the filter as it is."""
    default = build_filter(machine, capabilities=capability_numbers(DEFAULT_CAPABILITIES))
    assert default == build_filter(machine)


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ("sys_time", {"settimeofday", "clock_settime"}),
        ("sys_admin", NAMESPACES | {"fanotify_init", "lookup_dcookie", "swapon", "swapoff", "quotactl", "quotactl_fd"}),
        ("bpf", {"bpf"}),
        ("perfmon", {"perf_event_open"}),
        ("sys_ptrace", {"kcmp", "pidfd_getfd", "userfaultfd"}),
        ("sys_module", {"init_module", "finit_module", "delete_module"}),
        ("dac_read_search", {"open_by_handle_at"}),
        ("net_admin", set()),
    ],
)
def test_added_capability_lifts_its_calls(machine: str, capability: str, expected: set[str]) -> None:
    """A capability that the user adds opens the calls that it is for, and no others."""
    program = build_filter(machine, capabilities=capability_numbers([capability]))
    assert lifted(machine, program) == expected


def test_all_capabilities_leave_what_is_nobodys(machine: str) -> None:
    """With every capability held, some doors stay closed: terminals, odd sockets, keyrings, io_uring, kexec."""
    program = build_filter(machine, capabilities=frozenset(range(41)))
    refused = {*ALWAYS_EPERM[machine], *ALWAYS_ENOSYS} - lifted(machine, program)
    assert refused == {
        "keyctl", "add_key", "request_key", "io_uring_setup", "io_uring_enter", "io_uring_register",
        "kexec_load", "kexec_file_load",
    }  # fmt: skip
    assert verdict(machine, "ioctl", 0, 0x5412, program=program) == errno.EPERM
    assert verdict(machine, "socket", socket.AF_VSOCK, program=program) == errno.EAFNOSUPPORT
    assert verdict(machine, "personality", 0x0400000, program=program) == errno.EPERM


def test_allow_namespaces(machine: str) -> None:
    """It opens making namespaces and mounting, and nothing else."""
    assert lifted(machine, build_filter(machine, allow_namespaces=True)) == NAMESPACES


def test_unknown_machine() -> None:
    """A machine without a table is an error that names it and the way out, never a crate without a filter."""
    with pytest.raises(HostError, match="no system call filter for riscv64") as caught:
        build_filter("riscv64")
    assert caught.value.feature == "seccomp"
    assert caught.value.hint == "seccomp=False in the marker"
