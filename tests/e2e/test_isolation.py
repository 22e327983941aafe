"""What a crate keeps apart from the host, seen by bodies and programs in real crates."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import RunCrated

pytestmark = pytest.mark.needs("crates")


def test_processes(run_crated: RunCrated) -> None:
    """A crate sees its own processes only; the host's can't be signalled or looked at, and its init can't be killed."""
    run = run_crated("""
        import os, signal, subprocess
        import psutil
        import pytest

        pytestmark = pytest.mark.crate

        @pytest.fixture(scope="session", autouse=True)
        def victim():
            with subprocess.Popen(["sleep", "100"]) as process:
                yield process.pid
                assert process.poll() is None
                process.kill()

        def test_only_own_are_seen():
            listing = subprocess.run(["ls"], capture_output=True, text=True)
            assert "test_inner.py" in listing.stdout.split()
            assert {process.pid for process in psutil.process_iter()} == {1, os.getpid()}
            assert psutil.Process(1).cmdline() == ["crate-init"]  # nothing of the host's paths and pids
            with subprocess.Popen(["sleep", "100"]) as child:
                assert {process.pid for process in psutil.process_iter()} == {1, os.getpid(), child.pid}
                assert child.pid < 20
                child.kill()

        def test_host_pids_mean_nothing(victim):
            with pytest.raises(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
            assert not os.path.exists(f"/proc/{victim}")
            with pytest.raises(ProcessLookupError):
                os.pidfd_open(victim)

        def test_signal_to_all_reaches_no_host_process():
            with subprocess.Popen(["sleep", "100"]) as child:
                os.kill(-1, signal.SIGKILL)
                assert child.wait() == -signal.SIGKILL

        def test_init_survives():
            os.kill(1, signal.SIGKILL)
            os.kill(1, signal.SIGTERM)
            assert psutil.Process(1).name() == "crate-init"
    """)
    assert run.all_passed()


@pytest.mark.needs("ipv6")
def test_network(run_crated: RunCrated) -> None:
    """A crate has a loopback of its own, IPv4 and IPv6, and reaches no server of the host's, by IP or abstract name."""
    run = run_crated("""
        import os, socket, threading
        import psutil
        import pytest

        pytestmark = pytest.mark.crate

        def serve(server):
            def answer():
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.sendall(b"hello")
            threading.Thread(target=answer, daemon=True).start()

        def greeting(family, address):
            with socket.socket(family) as client:
                client.settimeout(10)
                client.connect(address)
                return client.recv(10)

        @pytest.fixture(scope="session")
        def host_port():
            with socket.create_server(("127.0.0.1", 0)) as server:
                serve(server)
                assert greeting(socket.AF_INET, server.getsockname()) == b"hello"
                yield server.getsockname()[1]

        @pytest.fixture(scope="session")
        def abstract_name():
            name = f"\\0crate-test-{os.getpid()}"
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(name)
                server.listen()
                serve(server)
                assert greeting(socket.AF_UNIX, name) == b"hello"
                yield name

        def test_only_loopback():
            with open("/proc/net/dev") as file:
                assert [line.split(":")[0].strip() for line in file if ":" in line] == ["lo"]
            assert set(psutil.net_if_addrs()) == {"lo"}
            assert os.listdir("/sys/class/net") == ["lo"]

        @pytest.mark.parametrize("family, address",
                                 [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")], ids=["IPv4", "IPv6"])
        def test_own_server(family, address):
            # An ordinary user's body has no right to the low ones.
            with socket.create_server((address, 8080 if os.getuid() else 80), family=family) as server:
                serve(server)
                assert greeting(family, server.getsockname()) == b"hello"

        @pytest.mark.parametrize("again", range(2))
        def test_same_port_again(again):
            with socket.create_server(("", 8080)):
                pass

        def test_host_server_is_out_of_reach(host_port):
            with pytest.raises(ConnectionRefusedError):
                greeting(socket.AF_INET, ("127.0.0.1", host_port))

        def test_elsewhere_is_out_of_reach():
            for family, address in (socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"):
                with pytest.raises(OSError, match="unreachable"):
                    greeting(family, (address, 80))

        def test_abstract_socket_is_out_of_reach(abstract_name):
            with pytest.raises(ConnectionRefusedError):
                greeting(socket.AF_UNIX, abstract_name)
            with open("/proc/net/unix") as file:
                assert abstract_name[1:] not in file.read()

        @pytest.mark.crate(network="host")
        def test_network_of_the_host_on_demand(host_port):
            assert greeting(socket.AF_INET, ("127.0.0.1", host_port)) == b"hello"
    """)
    assert run.all_passed()


def test_names_and_ipc(run_crated: RunCrated) -> None:
    """Host name, System V IPC and POSIX shared memory are the crate's own, in both directions."""
    run = run_crated("""
        import ctypes, errno, os, socket, subprocess
        from multiprocessing import shared_memory
        import pytest

        pytestmark = pytest.mark.crate
        libc = ctypes.CDLL(None, use_errno=True)
        IPC_CREAT, IPC_EXCL, IPC_RMID = 0o1000, 0o2000, 0
        KEY = 0x0C4A7E00 + os.getpid() % 256
        GET = {
            "shared memory": lambda flags: libc.shmget(KEY, 4096, flags),
            "messages": lambda flags: libc.msgget(KEY, flags),
            "semaphores": lambda flags: libc.semget(KEY, 1, flags),
        }
        REMOVE = {
            "shared memory": lambda number: libc.shmctl(number, IPC_RMID, None),
            "messages": lambda number: libc.msgctl(number, IPC_RMID, None),
            "semaphores": lambda number: libc.semctl(number, 0, IPC_RMID),
        }

        @pytest.fixture(scope="session", params=GET)
        def of_the_host(request):
            number = GET[request.param](IPC_CREAT | IPC_EXCL | 0o600)
            assert number >= 0
            yield request.param
            assert GET[request.param](0) == number
            assert REMOVE[request.param](number) == 0

        def test_host_ipc_is_not_there(of_the_host):
            assert GET[of_the_host](0) == -1
            assert ctypes.get_errno() == errno.ENOENT
            assert GET[of_the_host](IPC_CREAT | IPC_EXCL | 0o600) >= 0

        @pytest.mark.parametrize("kind", GET)
        @pytest.mark.parametrize("again", range(2))
        def test_own_ipc_ends_with_the_crate(kind, again):
            assert GET[kind](IPC_CREAT | IPC_EXCL | 0o600) >= 0

        @pytest.mark.parametrize("again", range(2))
        def test_posix_shared_memory(again):
            assert os.listdir("/dev/shm") == []
            shared_memory.SharedMemory("pytest-crate-e2e", create=True, size=4096)
            assert os.listdir("/dev/shm") == ["pytest-crate-e2e"]

        def test_default_name():
            assert socket.gethostname() == "crate"
            assert socket.gethostbyname("crate") == "127.0.0.1"

        @pytest.mark.crate(hostname="box")
        def test_given_name():
            assert subprocess.run(["uname", "-n"], capture_output=True, text=True).stdout == "box\\n"
            assert socket.gethostbyname("box") == "127.0.0.1"
            with open("/etc/hostname") as file:
                assert file.read() == "box\\n"
    """)
    assert run.all_passed()


def test_kernel_file_systems(run_crated: RunCrated) -> None:
    """/proc/sys, /proc/sysrq-trigger and /sys can't be written to, /dev holds harmless nodes only, and no device can
    be made."""
    run = run_crated("""
        import errno, os, stat, subprocess
        from pathlib import Path
        import pytest

        pytestmark = pytest.mark.crate

        def refusal(path, flags=os.O_WRONLY):
            with pytest.raises(OSError) as caught:
                os.close(os.open(path, flags))
            return caught.value.errno

        # Kernels are built without some of these.
        DANGEROUS = [path for path in (
            "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/vm/drop_caches",
            "/proc/sys/kernel/modprobe", "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity",
        ) if os.path.exists(path)]

        @pytest.mark.parametrize("path", DANGEROUS)
        def test_proc_is_not_writable(path):
            assert refusal(path) in (errno.EROFS, errno.EACCES)

        def test_proc_hides_what_shows_the_host():
            for name in "kcore", "keys", "kmsg", "timer_list", "sched_debug", "interrupts":
                path = Path("/proc", name)
                if path.exists():
                    assert path.read_bytes() == b""

        def test_sys_is_read_only():
            assert os.statvfs("/sys").f_flag & os.ST_RDONLY
            files = [path for path in Path("/sys/kernel/mm").rglob("*") if path.is_file()]
            writable = [path for path in files if path.stat().st_mode & 0o200]
            assert writable
            for path in writable:
                assert refusal(path) == errno.EROFS

        def test_devices():
            assert set(os.listdir("/dev")) == {
                "null", "zero", "full", "random", "urandom", "tty", "fd", "stdin", "stdout", "stderr",
                "ptmx", "pts", "shm", "mqueue",
            }
            assert os.listdir("/dev/pts") == ["ptmx"]
            Path("/dev/null").write_bytes(b"x")
            assert Path("/dev/urandom").open("rb").read(4) != Path("/dev/urandom").open("rb").read(4)
            master, slave = os.openpty()
            assert os.ttyname(slave) == "/dev/pts/0"

        @pytest.mark.parametrize("kind", [stat.S_IFBLK, stat.S_IFCHR])
        def test_no_device_can_be_made(tmp_path, kind):
            for directory in tmp_path, Path("/tmp"), Path("/etc"), Path("/dev"):
                with pytest.raises(PermissionError):
                    os.mknod(directory / "node", kind | 0o600, os.makedev(1, 3))

        def test_cgroups_are_out_of_reach():
            assert not os.path.exists("/sys/fs/cgroup/memory/cgroup.procs")
            assert not os.path.exists("/sys/fs/cgroup/cgroup.procs")
            lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
            assert {path for _, controllers, path in lines if controllers in ("memory", "pids", "cpu")} <= {"/"}

        @pytest.mark.parametrize("command", [
            "mount -t tmpfs none /mnt", "mount -o remount,rw /sys", "mount -o remount,rw /proc/sys",
            "umount /proc/sys", "mount -t proc none /mnt",
            "mount -t cgroup -o memory none /mnt", "unshare --mount true", "unshare --user true",
            "nsenter --target 1 --mount true", "unshare --net true",
        ])
        def test_namespaces_and_mounts_stay_as_they_are(command):
            done = subprocess.run(command.split(), capture_output=True, text=True)
            assert done.returncode != 0
            assert any(words in done.stderr.lower() for words in ("permission denied", "not permitted", "superuser"))

        def test_chroot_and_climb():
            Path("/of-the-crate").touch()
            root = os.open("/", os.O_RDONLY)
            os.mkdir("/tmp/deeper")
            if os.getuid():
                with pytest.raises(PermissionError):
                    os.chroot("/tmp/deeper")
                return
            os.chroot("/tmp/deeper")
            os.fchdir(root)
            for _ in range(20):
                os.chdir("..")
            os.chroot(".")
            assert os.path.exists("/of-the-crate")
    """)
    assert run.all_passed()


CONFINEMENT = """
    import os, re, stat, subprocess, sys
    import pytest
    from pytest_crate.kernel.capabilities import DEFAULT_CAPABILITIES, capability_mask, capability_numbers

    pytestmark = pytest.mark.crate
    DEFAULT = capability_mask(capability_numbers(DEFAULT_CAPABILITIES))
    SHOW_STATUS = "print(open('/proc/self/status').read())"
    # F_GETFD, of every number that could be open
    # Without ctypes: newer versions of libffi keep their own library open.
    SHOW_FILES = "import os; print([n for n in range(1 << 16) if os.path.lexists('/proc/self/fd/%d' % n)])"

    def confinement(text):
        found = dict(re.findall(r"^(Cap\\w+|NoNewPrivs|Seccomp):\\s*(\\w+)$", text, re.M))
        return {name: int(value, 16) for name, value in found.items()}

    # An ordinary user is one in the crate, too.
    HELD = 0 if os.getuid() else DEFAULT

    def expected(held):
        return {
            "CapPrm": held, "CapEff": held, "CapBnd": DEFAULT, "CapInh": 0, "CapAmb": 0, "NoNewPrivs": 1, "Seccomp": 2
        }

    def test_body():
        assert confinement(open("/proc/self/status").read()) == expected(HELD)

    def test_child_of_a_body():
        done = subprocess.run([sys.executable, "-c", SHOW_STATUS], capture_output=True, text=True)
        assert confinement(done.stdout) == expected(HELD)

    def test_program(crate_sandbox):
        done = crate_sandbox.run([sys.executable, "-c", SHOW_STATUS], check=True)
        assert confinement(done.stdout) == expected(HELD)

    @pytest.mark.crate(cap_add=["net_admin"], seccomp=False)
    def test_loosened():
        added = capability_mask(capability_numbers(["net_admin"]))
        found = confinement(open("/proc/self/status").read())
        assert found["CapBnd"] == DEFAULT | added
        assert found["CapEff"] == (HELD and DEFAULT | added)
        assert (found["NoNewPrivs"], found["Seccomp"]) == (1, 0)

    @pytest.mark.crate(mounts=[f"{os.getcwd()}:/mnt:rw"])
    def test_no_mount_gives_rights():
        options = {line.split()[4]: line.split()[5].split(",") for line in open("/proc/self/mountinfo")}
        assert "/mnt" in options
        assert [place for place, found in options.items() if "nosuid" not in found] == []
        with_devices = [place for place, found in options.items() if "nodev" not in found]
        # A node at a time, of those that are harmless, the null that masks others among them.
        assert [place for place in with_devices if not stat.S_ISCHR(os.stat(place).st_mode)] == ["/dev/pts"]
        # They are the host's own: what a crate's root changed, their mode or owner, would be changed there.
        assert [place for place in with_devices if "ro" not in options[place]] == ["/dev/pts"]

    def test_descriptors_of_a_program(crate_sandbox):
        done = crate_sandbox.run([sys.executable, "-c", SHOW_FILES], check=True)
        assert done.stdout == "[0, 1, 2]\\n"

    @pytest.fixture(scope="session")
    def shared_file(tmp_path_factory):
        with open(tmp_path_factory.mktemp("shared") / "file", "w+") as file:
            yield file

    def test_descriptors_of_a_body(shared_file):
        links = {}
        for name in os.listdir("/proc/self/fd"):
            try:
                links[int(name)] = os.readlink(f"/proc/self/fd/{name}")
            except FileNotFoundError:
                continue
        assert links[shared_file.fileno()] == shared_file.name
        engine = re.compile(r"(socket|mnt|net|pid|ipc|uts|user|cgroup|anon_inode):")
        assert [link for link in links.values() if engine.match(link)] == []
        assert [number for number in links if os.path.isdir(f"/proc/self/fd/{number}")] == []

"""


@pytest.mark.needs("user namespaces")
def test_everything_is_their_own(run_crated: RunCrated) -> None:
    """Bodies and programs share no namespace with pytest, as root not the user namespace either, and lead a session."""
    run = run_crated("""
        import json, os, subprocess, sys
        import pytest

        pytestmark = pytest.mark.crate
        SHOW = (
            "import json, os; kinds = 'cgroup ipc mnt net pid user uts'.split();"
            "names = {kind: os.readlink('/proc/self/ns/' + kind) for kind in kinds};"
            "print(json.dumps([names, os.getsid(0) == os.getpid()]))"
        )
        OUTSIDE, _ = json.loads(subprocess.run([sys.executable, "-c", SHOW], capture_output=True).stdout)

        def shared(names):
            return [kind for kind, name in names.items() if name == OUTSIDE[kind]]

        def test_body(capsys):
            exec(SHOW)
            names, leads = json.loads(capsys.readouterr().out)
            assert (len(names), shared(names), leads) == (7, [], True)

        def test_program(crate_sandbox):
            names, leads = json.loads(crate_sandbox.run([sys.executable, "-c", SHOW], check=True).stdout)
            assert (len(names), shared(names), leads) == (7, [], True)

        @pytest.mark.crate(network="host", cap_add=["net_admin"])
        def test_loosened(crate_sandbox):
            names, leads = json.loads(crate_sandbox.run([sys.executable, "-c", SHOW], check=True).stdout)
            assert (shared(names), leads) == (["net", *([] if os.geteuid() else ["user"])], True)
    """)
    assert run.all_passed(), run.text


def test_confinement(run_crated: RunCrated) -> None:
    """Bodies, their children and programs have no_new_privs, the system call filter, and as root the default
    capabilities; no mount has set-user-id programs, or devices that aren't harmless; a program gets descriptors 0, 1, 2
    alone and a body none of the engine's."""
    assert run_crated(CONFINEMENT).all_passed()


def test_confinement_of_another_user(run_crated: RunCrated) -> None:
    """The body of another user has no capability; where an ordinary user runs pytest there is none, which is said."""
    run = run_crated("""
        import os
        import pytest
        from pytest_crate.kernel.capabilities import DEFAULT_CAPABILITIES, capability_mask, capability_numbers

        DEFAULT = capability_mask(capability_numbers(DEFAULT_CAPABILITIES))

        @pytest.mark.crate(user=65534)
        def test_it():
            assert (os.getuid(), os.geteuid(), os.getgid()) == (65534, 65534, 65534)
            lines = [line.split(":") for line in open("/proc/self/status")]
            found = {name: int(value, 16) for name, value in lines if name.startswith("Cap")}
            assert found == {"CapInh": 0, "CapPrm": 0, "CapEff": 0, "CapBnd": DEFAULT, "CapAmb": 0}
            with pytest.raises(PermissionError):
                open("/etc/shadow")
    """)
    if os.geteuid() == 0:
        assert run.all_passed()
    else:
        assert "no user 65534 (65534:65534): an ordinary user's crate has that user's own ids only" in run.text
        assert "= 1 error in " in run.text
