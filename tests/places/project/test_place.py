"""What a crate is, wherever it is made. Which of these tests fail where, and with what words: tests/places/judge.py."""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MIB = 1 << 20
KINDS = ("pid", "mnt", "net", "uts", "ipc", "cgroup")
# Taken where the module is imported: outside.
OUTSIDE = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in KINDS}
OUTSIDE_PID = os.getpid()
LEFT = "place-left-behind"


def status(name: str) -> str:
    """Return a field of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(line.split(":")[1].strip() for line in lines if line.startswith(f"{name}:"))


@pytest.mark.crate
@pytest.mark.parametrize("kind", KINDS)
def test_namespace(kind: str) -> None:
    """Each namespace is the crate's own."""
    assert os.readlink(f"/proc/self/ns/{kind}") != OUTSIDE[kind]


@pytest.mark.crate
def test_processes() -> None:
    """Only the crate's processes are to be seen."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    assert len(pids) <= 3
    assert os.getpid() in pids
    assert Path("/proc/1/comm").read_text() == "crate-init\n"


@pytest.mark.crate
def test_network_is_closed() -> None:
    """There is a loopback interface, and nothing else."""
    assert [name for _, name in socket.if_nameindex()] == ["lo"]
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        server.accept()[0].close()
        assert client.recv(1) == b""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outside, pytest.raises(OSError, match="unreachable"):
        outside.connect(("192.0.2.1", 9))


@pytest.mark.crate(network="host")
def test_network_of_the_host() -> None:
    """The host's network can be had by name."""
    assert os.readlink("/proc/self/ns/net") == OUTSIDE["net"]


@pytest.mark.crate(hostname="box", env={"PLACE": "here"}, workdir="/usr")
def test_surroundings() -> None:
    """Host name, variables and working directory are the spec's."""
    assert (socket.gethostname(), os.environ["PLACE"], os.getcwd()) == ("box", "here", "/usr")


@pytest.mark.crate
def test_writes() -> None:
    """The project can be written to, and what is written vanishes (the fixture ``untouched`` looks)."""
    (HERE / "kept.txt").write_text("changed\n")
    (HERE / "new.txt").write_text("new\n")
    assert (HERE / "kept.txt").read_text() == "changed\n"


@pytest.mark.crate
@pytest.mark.parametrize("directory", ["/tmp", "/var/tmp", "/dev/shm", "/run"])
def test_private_directory(directory: str) -> None:
    """It has nothing of another test's, and can be written to."""
    path = Path(directory, "place-file")
    assert not path.exists()
    path.write_text("mine")


@pytest.mark.crate
def test_private_directories_of_the_next_test() -> None:
    """What the tests before wrote is gone."""
    assert not Path("/tmp/place-file").exists()


@pytest.mark.crate
def test_basetemp_is_the_hosts(tmp_path: Path) -> None:
    """``tmp_path`` is there for a look afterwards; the judge looks."""
    (tmp_path / "kept").write_text("kept")


@pytest.mark.crate
def test_confined() -> None:
    """No new privileges, a filter, and no capability that root outside would have."""
    assert (status("NoNewPrivs"), status("Seccomp")) == ("1", "2")
    # Over the network, modules, devices' memory, other processes, everything, the clock.
    dangerous = sum(1 << number for number in (12, 16, 17, 19, 21, 25))
    assert int(status("CapEff"), 16) & dangerous == 0
    with pytest.raises(OSError, match=r"Read-only|denied|not permitted"):
        Path("/sys/place").mkdir()
    with pytest.raises(OSError, match=r"Read-only|denied|not permitted"):
        Path("/proc/sys/kernel/hostname").write_text("x")


@pytest.mark.crate
def test_leaves_a_daemon() -> None:
    """A process that outlives its test is gone with the crate; the judge looks for it."""
    script = f"setsid {sys.executable} -c 'import time; time.sleep(1000)' {LEFT} >/dev/null 2>&1 &"
    subprocess.run(["sh", "-c", script], check=True)


@pytest.mark.crate(timeout=5)
def test_hangs() -> None:
    """It is killed when its time is over."""
    threading.Event().wait()


@pytest.mark.crate(image="./image.tar")
def test_image() -> None:
    """A body runs on an image, with the interpreter and the project in it."""
    assert Path("/etc/os-release").read_text() == "ID=place\n"
    assert not Path("/etc/shadow").exists()
    Path("/root/file").write_text("x")
    done = subprocess.run(["/bin/sh", "-c", "id -u"], capture_output=True, text=True, check=True)
    assert done.stdout == f"{os.getuid()}\n"


@pytest.mark.crate(image="./image.tar")
def test_programs_on_an_image(crate_sandbox) -> None:  # type: ignore[no-untyped-def]
    """A program on an image is root in it, and its files are root's."""
    assert crate_sandbox.run(["id", "-u"]).stdout == "0\n"
    script = "cat /etc/os-release; echo x > /etc/new; cat /etc/new"
    assert crate_sandbox.run(["sh", "-c", script]).stdout == "ID=place\nx\n"


def test_programs(crate_sandbox) -> None:  # type: ignore[no-untyped-def]
    """Programs run in a crate, with their output and status."""
    done = crate_sandbox.run(["sh", "-c", "cat; echo err >&2; exit 3"], input="in")
    assert (done.returncode, done.stdout, done.stderr) == (3, "in", "err\n")
    assert crate_sandbox.run(["sh", "-c", "readlink /proc/self/ns/net"]).stdout.strip() != OUTSIDE["net"]


@pytest.mark.crate(mounts=["shared:/shared:ro"])
def test_mount() -> None:
    """A directory of the project's can be had elsewhere, read-only."""
    assert Path("/shared/file").read_text() == "shared"
    with pytest.raises(OSError, match="Read-only"):
        Path("/shared/new").write_text("x")


@pytest.mark.crate(mounts=["written:/written:rw"])
def test_mount_to_write_to() -> None:
    """What is written to a mount that says so stays; the judge looks."""
    Path("/written/new").write_text("written")


# -- limits; the name says which key a test needs --------------------------------------------------------


@pytest.mark.crate(memory="256m")
def test_memory_of_nothing() -> None:
    """What a body costs that does nothing; the judge compares."""


@pytest.mark.crate(memory="256m")
def test_memory_of_50_mib() -> None:
    """Holds 50 MiB."""
    with mmap.mmap(-1, 50 * MIB) as area:
        for offset in range(0, 50 * MIB, mmap.PAGESIZE):
            area[offset] = 1


@pytest.mark.crate(memory="64m")
def test_memory_exceeded() -> None:
    """Takes 200 MiB."""
    bytearray(200 * MIB)


@pytest.mark.crate(memory="64m")
def test_memory_exceeded_by_a_child() -> None:
    """A program that it starts takes 200 MiB."""
    subprocess.run([sys.executable, "-c", f"bytearray({200 * MIB})"], check=False)


def test_memory_exceeded_by_a_driven_program(crate_sandbox_factory) -> None:  # type: ignore[no-untyped-def]
    """A limit that a driven program meets is in its result."""
    done = crate_sandbox_factory(memory="64m").run([sys.executable, "-S", "-c", f"bytearray({200 * MIB})"])
    assert (done.returncode, done.exceeded) == (-9, ("memory",))


@pytest.mark.crate(cpus=0.5)
def test_cpus_held_back(record_property) -> None:  # type: ignore[no-untyped-def]
    """Three seconds of work for two processes, at 0.5 CPUs; the judge compares with what the kernel counted."""
    child = os.fork()
    end = time.process_time() + 1.5
    while time.process_time() < end:
        pass
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    times = os.times()
    record_property("own_cpu_usec", round(sum(times[:4]) * 1e6))


@pytest.mark.crate(pids=16)
def test_pids_exceeded() -> None:
    """Starts 40 processes."""
    for _ in range(40):
        subprocess.Popen(["sleep", "100"])


@pytest.mark.crate(cpuset="0")
def test_cpuset() -> None:
    """Only the first CPU is there."""
    assert os.sched_getaffinity(0) == {0}
