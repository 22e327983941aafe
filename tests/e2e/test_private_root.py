"""The host's root as a crate sees it: read as it is, written privately."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import RunCrated

pytestmark = pytest.mark.needs("root", "overlay")


def test_writes_vanish(run_crated: RunCrated, pytester: pytest.Pytester, home: Path) -> None:
    """What a test writes to, changes or deletes in /etc, $HOME, the project, /tmp and the like is gone for the host and
    for the next test."""
    (pytester.path / "kept.txt").write_text("kept")
    run = run_crated("""
        import os, shutil, tempfile
        from pathlib import Path
        import pytest

        pytestmark = pytest.mark.crate
        PROJECT = Path(__file__).parent
        PLACES = [Path("/"), Path("/etc"), Path.home(), PROJECT, Path("/tmp"), Path("/var/tmp"), Path("/run"),
                  Path("/usr/bin"), Path("/dev/shm"), Path("/var/lib")]

        @pytest.mark.parametrize("again", range(2))
        @pytest.mark.parametrize("place", PLACES, ids=str)
        def test_new_file(place, again):
            file = place / "pytest-crate-e2e"
            assert not file.exists()
            file.write_text("written")
            assert file.read_text() == "written"

        @pytest.mark.parametrize("again", range(2))
        def test_changes(again):
            hosts = Path("/etc/passwd").read_text()
            Path("/etc/passwd").write_text("changed")
            assert hosts.startswith("root:")
            (PROJECT / "kept.txt").rename(PROJECT / "moved.txt")
            assert (PROJECT / "moved.txt").read_text() == "kept"
            (PROJECT / "moved.txt").unlink()
            shutil.rmtree("/usr/share")
            assert not os.path.exists("/usr/share")
            os.rename("/var/lib", "/var/moved")
            os.chmod("/etc/group", 0o4777)

        def test_temporary_files():
            with tempfile.TemporaryDirectory() as directory:
                assert directory.startswith("/tmp/")

        def test_bytecode_of_the_next_import_is_private(monkeypatch):
            (PROJECT / "imported_inside.py").write_text("VALUE = 1")
            monkeypatch.syspath_prepend(PROJECT)
            import imported_inside
            assert imported_inside.VALUE == 1
    """)
    assert run.all_passed()
    places = [
        "/",
        "/etc",
        str(home),
        str(pytester.path),
        "/tmp",
        "/var/tmp",
        "/run",
        "/usr/bin",
        "/dev/shm",
        "/var/lib",
    ]
    assert [place for place in places if os.path.exists(f"{place}/pytest-crate-e2e")] == []
    assert (pytester.path / "kept.txt").read_text() == "kept"
    assert not (pytester.path / "moved.txt").exists()
    assert not (pytester.path / "imported_inside.py").exists()
    assert Path("/etc/passwd").read_text().startswith("root:")
    assert os.path.isdir("/usr/share")
    assert list(home.iterdir()) == []


def test_home_is_private(run_crated: RunCrated, home: Path) -> None:
    """Secrets in $HOME, and in the user database's home directory, can't be read: not by path, not past the private
    directory, not through /proc, and not by a program."""
    secret = home / ".ssh" / "id"
    secret.parent.mkdir()
    secret.write_text("secret of the host")
    run = run_crated(f"""
        import os, subprocess
        from pathlib import Path
        import psutil
        import pytest

        pytestmark = pytest.mark.crate
        SECRET = Path({str(secret)!r})

        @pytest.fixture(scope="session", autouse=True)
        def is_there_outside():
            assert SECRET.read_text() == "secret of the host"

        def test_home_is_empty():
            assert os.environ["HOME"] == {str(home)!r}
            assert os.listdir(Path.home()) == []
            for path in SECRET, Path("~/.ssh/id").expanduser():
                with pytest.raises(FileNotFoundError):
                    path.read_text()

        def test_not_past_the_private_directory(tmp_path):
            for way in (f"/proc/self/root{{SECRET}}", f"/proc/1/root{{SECRET}}", f"/proc/1/cwd{{SECRET}}",
                        f"/proc/self/cwd/../../../../../../../..{{SECRET}}", f"{{tmp_path}}/../../../home/.ssh/id"):
                assert not os.path.exists(way)

        def test_not_uncovered():
            done = subprocess.run(["umount", "-l", str(Path.home())], capture_output=True)
            assert done.returncode != 0
            assert not SECRET.exists()

        def test_not_in_another_mount():
            for disk in psutil.disk_partitions(all=True):
                for depth in range(len(SECRET.parts) - 1):
                    assert not Path(disk.mountpoint, *SECRET.parts[depth + 1:]).exists()

        def test_not_by_a_program(crate_sandbox):
            done = crate_sandbox.run(["cat", str(SECRET)])
            assert done.returncode == 1
            assert "No such file" in done.stderr

        def test_new_files_can_be_made():
            SECRET.parent.mkdir()
            SECRET.write_text("of the crate")

        def test_home_of_the_user_database():
            import pwd
            home = pwd.getpwuid(os.getuid()).pw_dir
            hidden = [name for name in os.listdir(home) if name not in (".pyenv", ".local", ".venv")]
            assert [name for name in hidden if name.startswith((".ssh", ".bash", ".git", ".cache", ".config"))] == []
    """)
    assert run.all_passed()
    assert secret.read_text() == "secret of the host"


def test_tmp_path_is_kept(run_crated: RunCrated, pytester: pytest.Pytester) -> None:
    """What a test writes to tmp_path is there after the run, also if it failed or was killed; what it writes beside the
    base directory is not."""
    run = run_crated(
        """
        import os
        from pathlib import Path
        import pytest

        pytestmark = pytest.mark.crate

        def test_passed(tmp_path):
            (tmp_path / "result").write_text("of passed")

        def test_failed(tmp_path):
            (tmp_path / "result").write_text("of failed")
            assert False

        def test_killed(tmp_path, tmp_path_factory):
            (tmp_path / "result").write_text("of killed")
            (tmp_path_factory.getbasetemp().parent / "beside").touch()
            os.kill(os.getpid(), 9)
        """,
        "-o",
        "tmp_path_retention_policy=all",
    )
    assert run.outcomes == {"test_passed": "passed", "test_failed": "failed", "test_killed": "failed"}
    base = pytester.path / "runpytest-0"
    for name in ("passed", "failed", "killed"):
        assert (base / f"test_{name}0" / "result").read_text() == f"of {name}"
    assert not (base.parent / "beside").exists()


def test_mounts(run_crated: RunCrated, pytester: pytest.Pytester) -> None:
    """An rw mount is written through to the host, an ro mount refuses; a file can be mounted, and what a symbolic link
    leads to; a relative source is the project's."""
    data, other = pytester.mkdir("data"), pytester.mkdir("other")
    (data / "file").write_text("of the host")
    (pytester.path / "absolute").symlink_to(data)
    (pytester.path / "relative").symlink_to("data")
    run = run_crated(f"""
        import errno, os
        from pathlib import Path
        import pytest

        @pytest.mark.crate(mounts=["{data}:/mounted/deeply:rw"])
        def test_writable():
            assert Path("/mounted/deeply/file").read_text() == "of the host"
            Path("/mounted/deeply/new").write_text("of the crate")

        @pytest.mark.crate(mounts=["data:/mounted:ro"])
        def test_read_only():
            assert Path("/mounted/new").read_text() == "of the crate"
            for attempt in (lambda: Path("/mounted/new").write_text("x"), lambda: os.unlink("/mounted/file"),
                            lambda: os.chmod("/mounted/file", 0o777), lambda: os.mkdir("/mounted/directory")):
                with pytest.raises(OSError) as caught:
                    attempt()
                assert caught.value.errno == errno.EROFS

        @pytest.mark.crate(mounts=["data:/mounted"])
        def test_read_only_by_default(crate_sandbox):
            done = crate_sandbox.run(["touch", "/mounted/x"])
            assert (done.returncode, "Read-only" in done.stderr) == (1, True)

        @pytest.mark.crate(mounts=["data/file:/etc/mounted-file"])
        def test_file():
            assert Path("/etc/mounted-file").read_text() == "of the host"

        @pytest.mark.crate(mounts=["absolute:/absolute", "relative:/relative"])
        def test_links():
            for place in "/absolute", "/relative":
                assert Path(place, "file").read_text() == "of the host"

        @pytest.mark.crate(mounts=["other:rw"])
        def test_same_path():
            Path({str(other)!r}, "new").write_text("of the crate")
    """)
    assert run.all_passed()
    assert (data / "new").read_text() == "of the crate"
    assert (other / "new").read_text() == "of the crate"
    assert sorted(os.listdir(data)) == ["file", "new"]
    assert (data / "file").read_text() == "of the host"


def test_temporary_directories_hold_this_run_only(run_crated: RunCrated) -> None:
    """/tmp is empty but for what wider fixtures of the run made: a directory is found, and a unix socket in it, or in
    /tmp itself, can be connected to while the network is none; writes to them stay in the crate."""
    with tempfile.TemporaryDirectory(dir="/tmp") as foreign:
        run = run_crated(f"""
            import os, socket, tempfile, threading
            from pathlib import Path
            import pytest

            pytestmark = pytest.mark.crate(network="none")

            def serve(path):
                server = socket.socket(socket.AF_UNIX)
                server.bind(path)
                server.listen()
                def answer():
                    while True:
                        connection, _ = server.accept()
                        with connection:
                            connection.sendall(b"hello from " + path.encode())
                threading.Thread(target=answer, daemon=True).start()

            def greeting(path):
                with socket.socket(socket.AF_UNIX) as client:
                    client.settimeout(10)
                    client.connect(path)
                    return client.makefile("rb").read()

            @pytest.fixture(scope="session")
            def directory():
                with tempfile.TemporaryDirectory(dir="/tmp") as directory:
                    Path(directory, "data").write_text("of the fixture")
                    serve(f"{{directory}}/socket")
                    yield directory
                    assert sorted(os.listdir(directory)) == ["data", "socket"]
                    assert Path(directory, "data").read_text() == "of the fixture"

            @pytest.fixture(scope="module")
            def bare_socket():
                path = tempfile.mktemp(dir="/tmp")
                serve(path)
                yield path
                os.unlink(path)

            def test_foreign_entries_are_not_there():
                assert not os.path.exists({foreign!r})

            def test_directory_is_found(directory):
                assert Path(directory, "data").read_text() == "of the fixture"
                Path(directory, "data").write_text("of the crate")
                Path(directory, "new").write_text("of the crate")

            @pytest.mark.parametrize("again", range(2))
            def test_socket_in_it(directory, again):
                assert greeting(f"{{directory}}/socket") == f"hello from {{directory}}/socket".encode()

            def test_socket_in_tmp(bare_socket):
                assert greeting(bare_socket) == f"hello from {{bare_socket}}".encode()

            def test_socket_for_a_program(bare_socket, crate_sandbox):
                import sys
                script = (
                    "import socket, sys\\nclient = socket.socket(socket.AF_UNIX)\\n"
                    "client.connect(sys.argv[1])\\nprint(client.recv(99))"
                )
                done = crate_sandbox.run([sys.executable, "-c", script, bare_socket], check=True)
                assert bare_socket in done.stdout
        """)
    assert run.all_passed()


def test_shared_memory(run_crated: RunCrated) -> None:
    """/dev/shm holds what the run's wider fixtures put there, to be read and privately written, and nothing else's."""
    other = Path(f"/dev/shm/pytest-crate-test-{os.getpid()}")
    other.write_text("another program's")
    try:
        run = run_crated(
            f"""
            import os
            from multiprocessing import shared_memory
            import pytest

            @pytest.fixture(scope="session")
            def block():
                block = shared_memory.SharedMemory(create=True, size=4096)
                block.buf[:5] = b"given"
                yield block.name
                assert bytes(block.buf[:5]) == b"given"
                block.close()
                block.unlink()

            @pytest.mark.parametrize("again", range(2))
            def test_it(block, again):
                assert not os.path.exists({str(other)!r})
                attached = shared_memory.SharedMemory(block)
                assert bytes(attached.buf[:5]) == b"given"
                attached.buf[:5] = b"taken"
                attached.close()
            """,
            "--crate-all",
        )
        assert run.all_passed()
    finally:
        other.unlink()


@pytest.mark.parametrize("place", ["/dev/shm", "/tmp", "/var/tmp", "/run"])
def test_a_project_in_a_temporary_directory(place: str, home: Path) -> None:
    """A project may be anywhere: it is there in its crates, and they write to it privately."""
    with tempfile.TemporaryDirectory(dir=place) as directory:
        project = Path(directory)
        (project / "data").write_text("data")
        (project / "test_it.py").write_text(
            "def test_it():\n"
            "    assert open('data').read() == 'data'\n"
            "    for name in ('data', 'new'): open(name, 'w').close()\n"
        )
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--crate-all", "-q"]
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=60, check=False)
        assert "1 passed" in done.stdout, done.stdout
        assert (project / "data").read_text() == "data"
        assert not (project / "new").exists()
