"""Crates of an ordinary user: everything but what only root, or a delegated cgroup, can give."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.conftest import temporary_prefix

pytestmark = pytest.mark.needs("root", "unprivileged user", "user namespaces", "public python")

NOBODY = 65534


class RunAsUser(Protocol):
    """Runs pytest on one test file as an ordinary user."""

    def __call__(self, source: str, *args: str) -> tuple[str, dict[str, dict[str, Any]]]: ...


@pytest.fixture
def user_directory() -> Iterator[Path]:
    """A directory of the user's, with a project and a home directory in it."""
    with tempfile.TemporaryDirectory(prefix=temporary_prefix("user")) as name:
        directory = Path(name)
        for path in (directory, directory / "home", directory / "project"):
            path.mkdir(exist_ok=True)
            os.chown(path, NOBODY, NOBODY)
        yield directory


@pytest.fixture
def run_as_user(packages_for_everyone: Path, user_directory: Path, interpreter_for_everyone: str) -> RunAsUser:
    """Run an inner pytest as an ordinary user, with no right that root has."""

    def run(source: str, *args: str) -> tuple[str, dict[str, dict[str, Any]]]:
        project, home = user_directory / "project", user_directory / "home"
        (project / "test_inner.py").write_text(textwrap.dedent(source))
        os.chown(project / "test_inner.py", NOBODY, NOBODY)
        (project / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
        options = "-rA -p no:cacheprovider -p pytest_crate.plugin --crate-report=crates.json"
        done = subprocess.run(
            [
                interpreter_for_everyone,
                "-B",
                "-m",
                "pytest",
                *options.split(),
                f"--basetemp={user_directory}/base",
                *args,
            ],
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            cwd=project,
            env={
                "PATH": "/usr/bin:/bin",
                "HOME": str(home),
                "PYTHONPATH": str(packages_for_everyone),
                "COLUMNS": "160",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        print(done.stdout)
        document = json.loads((project / "crates.json").read_text())
        return done.stdout, {test["nodeid"].partition("::")[2]: test for test in document["tests"]}

    return run


def outcomes(tests: dict[str, dict[str, Any]]) -> set[str]:
    return {test["outcome"] for test in tests.values()}


def test_isolation_is_whole(run_as_user: RunAsUser, user_directory: Path) -> None:
    """Without root, a crate has its own processes, network, names and IPC, no capabilities over the host, and a private
    view of the host's files; it runs programs too."""
    (user_directory / "home" / "secret").write_text("of the host")
    text, tests = run_as_user("""
        import os, re, socket, subprocess, sys, tempfile, threading
        from pathlib import Path
        import psutil
        import pytest

        pytestmark = pytest.mark.crate
        PROJECT = Path(__file__).parent

        def status():
            return dict(re.findall(r"^(\\w+):\\s*(.*)$", Path("/proc/self/status").read_text(), re.M))

        @pytest.fixture(scope="session")
        def server():
            with socket.create_server(("127.0.0.1", 0)) as server:
                yield server.getsockname()

        @pytest.fixture(scope="session")
        def unix_server():
            with tempfile.TemporaryDirectory(dir="/tmp") as directory, socket.socket(socket.AF_UNIX) as server:
                server.bind(f"{directory}/socket")
                server.listen()
                Path(directory, "file").write_text("of the fixture")
                yield f"{directory}/socket"

        def test_processes():
            assert {process.pid for process in psutil.process_iter()} == {1, os.getpid()}

        def test_user():
            assert (os.getuid(), os.getgid()) == (65534, 65534)
            assert status()["CapEff"] == "0" * 16
            assert (status()["NoNewPrivs"], status()["Seccomp"]) == ("1", "2")
            assert Path("/proc/self/uid_map").read_text().split() == ["65534", "65534", "1"]

        def test_network(server):
            assert set(psutil.net_if_addrs()) == {"lo"}
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(server)
            for family, address in (socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"):
                with socket.create_server((address, 0), family=family) as own:
                    socket.create_connection(own.getsockname()[:2]).close()

        def test_names():
            assert socket.gethostname() == "crate"
            assert socket.gethostbyname("crate") == "127.0.0.1"

        @pytest.mark.parametrize("again", range(2))
        def test_writes_vanish(again):
            for place in PROJECT, Path.home(), Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"):
                file = place / "pytest-crate-e2e"
                assert not file.exists()
                file.write_text("written")
            Path(__file__).write_text("changed")

        def test_files_of_others_stay_theirs():
            with pytest.raises(PermissionError):
                Path("/etc/passwd").write_text("")
            with pytest.raises(PermissionError):
                Path("/etc/shadow").read_text()
            assert Path("/etc/passwd").read_text().startswith("root:")

        def test_home_is_private():
            assert os.listdir(Path.home()) == []

        def test_tmp_path_is_kept(tmp_path):
            (tmp_path / "kept").write_text("kept")

        def test_unix_socket_of_a_fixture(unix_server):
            assert Path(unix_server).with_name("file").read_text() == "of the fixture"
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(unix_server)

        def test_mounts_stay_as_they_are():
            for command in "mount -t tmpfs none /tmp", "umount /proc", "unshare --user true", "unshare --mount true":
                assert subprocess.run(command.split(), capture_output=True).returncode != 0

        def test_kernel_file_systems():
            for path in "/proc/sys/kernel/hostname", "/sys/kernel/mm/transparent_hugepage/enabled":
                with pytest.raises(OSError):
                    open(path, "w")
            assert "sda" not in os.listdir("/dev") and "null" in os.listdir("/dev")
            Path("/dev/null").write_bytes(b"x")

        def test_program(crate_sandbox):
            done = crate_sandbox.run([sys.executable, "-c", "import os; print(os.getuid(), os.getpid())"], check=True)
            assert done.stdout.split()[0] == "65534"
            assert crate_sandbox.run(["cat", "/proc/net/dev"], check=True).stdout.count(":") == 1
    """)
    assert outcomes(tests) == {"passed"}
    assert len(tests) == 13
    assert "rootless" in text
    project = user_directory / "project"
    assert sorted(os.listdir(project)) == ["crates.json", "pytest.ini", "test_inner.py"]
    assert (project / "test_inner.py").read_text() != "changed"
    assert os.listdir(user_directory / "home") == ["secret"]
    assert not os.path.exists("/tmp/pytest-crate-e2e")


@pytest.mark.needs("cgroup v1")
@pytest.mark.parametrize("options", [(), ("-o", "crate_cgroup_parent=/")], ids=["own", "configured"])
def test_limits_need_a_cgroup(run_as_user: RunAsUser, options: tuple[str, ...]) -> None:
    """On cgroup v1 an ordinary user gets no limits, whatever the parent: a test that asks for one fails before its body
    runs, with the reason and the remedy; one that only has the default limit on tasks runs, its usage unknown."""
    source = """
        import pytest

        @pytest.mark.crate
        def test_default():
            pass

        @pytest.mark.crate(memory="64m")
        def test_memory():
            open("ran", "w").close()

        @pytest.mark.crate(pids=64)
        def test_pids():
            open("ran", "w").close()

        @pytest.mark.crate(timeout=1)
        def test_timeout():
            import time
            time.sleep(60)
    """
    text, tests = run_as_user(source, *options)
    found = {name: test["outcome"] for name, test in tests.items()}
    assert found == {"test_default": "passed", "test_timeout": "failed"}
    for key in ("memory", "pids"):
        assert f"ERROR test_inner.py::test_{key} - Failed: crate not supported here: no limit on {key}" in text
    assert "cgroup v1 is writable for root only" in text
    assert "To mend it: run pytest as root" in text
    usage = tests["test_default"]["crates"][0]["usage"]
    assert usage.pop("wall_usec") > 0
    assert set(usage.values()) == {None}
    assert tests["test_timeout"]["crates"][0]["exceeded"] == ["timeout"]


@pytest.mark.needs("cgroup v1")
def test_skip_policy(run_as_user: RunAsUser, user_directory: Path) -> None:
    """With crate_unsupported = skip a test that asks for a limit is skipped with the reason; --crate-require
    fails it."""
    source = """
        import pytest

        @pytest.mark.crate(memory="64m")
        def test_memory():
            pass
    """
    policy = ["-o", "crate_unsupported=skip"]
    text, _ = run_as_user(source, *policy)
    assert "SKIPPED [1]" in text
    assert "crate not supported here: no limit on memory" in text
    text, _ = run_as_user(source, *policy, "--crate-require")
    assert "ERROR test_inner.py::test_memory - Failed: crate not supported here: no limit on memory" in text


ANOTHER_USER = """
    import os
    import pytest

    @pytest.mark.crate(user=1)
    def test_number():
        pass

    @pytest.mark.crate(user="daemon")
    def test_name():
        pass

    @pytest.mark.crate(user=1)
    def test_program(crate_sandbox):
        pass

    @pytest.mark.crate(user=os.getuid())
    def test_oneself():
        pass
"""


@pytest.mark.parametrize(
    ("policy", "said"), [("fail", "1 passed, 3 errors"), ("skip", "1 passed, 3 skipped"), ("run", "3 passed, 1 error")]
)
def test_another_user(run_as_user: RunAsUser, policy: str, said: str) -> None:
    """A crate whose user is another than the one who runs pytest is one that the host can't give: ``crate_unsupported``
    says what becomes of its test, with the reason and the remedy; no program runs without. One's own can be named."""
    text, _ = run_as_user(ANOTHER_USER, "-o", f"crate_unsupported={policy}")
    assert f"{said} in " in text
    for user in (1, "daemon"):
        assert f"crate not supported here: no user {user} (1:1): an ordinary user's crate has that user's own" in text
    assert "To mend it: run pytest as root" in text


def test_image(run_as_user: RunAsUser, alpine_image: Path, user_directory: Path) -> None:
    """A user's crate on an image: the user is root in it, and nobody else outside; the store is the user's."""
    image = user_directory / "alpine.tar.gz"
    shutil.copy(alpine_image, image)
    image.chmod(0o644)
    _, tests = run_as_user(f"""
        import os, subprocess
        from pathlib import Path
        import pytest

        pytestmark = pytest.mark.crate(image={str(image)!r})

        def test_program(crate_sandbox):
            assert "ID=alpine\\n" in crate_sandbox.run(["cat", "/etc/os-release"], check=True).stdout
            assert crate_sandbox.run(["id", "-u"], check=True).stdout == "0\\n"
            assert crate_sandbox.run(["sh", "-c", "touch /etc/new && ls /etc/new"], check=True).stdout == "/etc/new\\n"

        def test_body(tmp_path):
            import ssl, sqlite3, ctypes, decimal, lzma, multiprocessing
            assert "ID=alpine" in Path("/etc/os-release").read_text().splitlines()
            assert not os.path.exists("/etc/new")
            assert subprocess.run(["id", "-u"], capture_output=True, text=True).stdout == "0\\n"
            (tmp_path / "kept").write_text("kept")
    """)
    assert {name: test["outcome"] for name, test in tests.items()} == {"test_program": "passed", "test_body": "passed"}
    (kept,) = (user_directory / "base").glob("test_body0/kept")
    assert kept.stat().st_uid == NOBODY


DYING_INIT = """
from pytest_crate.sandbox import sandbox

DYING = '''
import time
from pytest_crate.kernel import identity, libc

def late(*args, write=identity.write_id_maps, **keys):
    time.sleep(0.5)
    write(*args, **keys)

def refuse(title):
    raise OSError(24, "Too many open files", "/proc/self/stat")

identity.write_id_maps, libc.set_title = late, refuse
'''
assert sandbox._LAUNCH.endswith("; main()")
sandbox._LAUNCH = sandbox._LAUNCH.removesuffix("main()") + f"exec({DYING!r}); main()"
"""


def test_an_init_that_ends_before_its_ids_are_mapped_says_why(run_as_user: RunAsUser, user_directory: Path) -> None:
    """What the kernel says of the maps of a process that has ended is not taken for what the host allows: no test is
    skipped for it."""
    (user_directory / "project" / "conftest.py").write_text(DYING_INIT)
    text, _ = run_as_user(
        """
        import pytest

        @pytest.mark.crate
        def test_it(): pass
        """,
        "-ocrate_unsupported=skip",
    )
    assert "1 error" in text
    assert "Too many open files" in text
