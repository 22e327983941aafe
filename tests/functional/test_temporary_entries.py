"""What crates see in /tmp and the like: what this run has put there, and nothing that others have in the meantime."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.inner import InnerRun, RunInner

# Another program of the host's: whenever it is told to, it makes a private directory with a secret and an agent's
# socket in /tmp, and a socket and a file of shared memory.
DECOY = """
import os, socket, sys, tempfile
go, done, user = sys.argv[1], sys.argv[2], int(sys.argv[3])
made, sockets = [], []
def serve(path):
    sockets.append(socket.socket(socket.AF_UNIX))
    sockets[-1].bind(path)
    sockets[-1].listen()
while True:
    with open(go) as stream:
        word = stream.read()
    if word == "end":
        break
    if user:
        os.setegid(user)
        os.seteuid(user)
    place = tempfile.mkdtemp(prefix="pytest-crate-decoy-", dir="/tmp")
    with open(f"{place}/secret", "w") as stream:
        stream.write("a secret")
    serve(f"{place}/agent")
    serve(f"{place}.socket")
    with open(place.replace("/tmp", "/dev/shm"), "w") as stream:
        stream.write("a secret")
    os.seteuid(0) if user else None
    os.setegid(0) if user else None
    made += [f"{place}/secret", f"{place}/agent", f"{place}.socket", stream.name]
    with open(done, "w") as stream:
        stream.write(place)
for path in made:
    os.unlink(path)
    if path.endswith("/agent"):
        os.rmdir(os.path.dirname(path))
"""

# Python of the inner run's that has the decoy make its things here and now.
CALL_THE_DECOY = """
def call_the_decoy():
    with open({go!r}, "w") as stream:
        stream.write("make")
    with open({done!r}) as stream:
        PLACES.append(stream.read())
"""

SEEN = """
import os, socket, sys
def connects(path):
    with socket.socket(socket.AF_UNIX) as client:
        try: client.connect(path)
        except OSError: return False
    return True
for place in sys.argv[1:]:
    shared = place.replace("/tmp", "/dev/shm")
    seen = [path for path in (place, place + "/secret", place + ".socket", shared) if os.path.lexists(path)]
    print(*seen, *[path for path in (place + "/agent", place + ".socket") if connects(path)])
"""


@pytest.fixture(params=["the same user", "another user"])
def calling(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A process that is none of the inner run's; Python with which the inner run has it make something."""
    if request.param == "another user" and os.geteuid():
        pytest.skip("only root can be another user")
    go, done = str(tmp_path / "go"), str(tmp_path / "done")
    os.mkfifo(go)
    os.mkfifo(done)
    user = "4321" if request.param == "another user" else "0"
    with subprocess.Popen([sys.executable, "-c", DECOY, go, done, user]) as decoy:
        yield CALL_THE_DECOY.format(go=go, done=done)
        with open(go, "w", encoding="ascii") as stream:
            stream.write("end")
    assert decoy.returncode == 0


def _properties(run: InnerRun, test: str) -> dict[str, str]:
    return dict(run.of(test)["properties"])


def test_what_others_make_meanwhile_is_not_there(pytester: pytest.Pytester, run_inner: RunInner, calling: str) -> None:
    """While pytest imports, collects and sets up wider fixtures, another program's directories, sockets and shared
    memory appear: neither a body nor a program sees them or reaches a server by them. Without a crate both do."""
    pytester.makeconftest(f"PLACES = []\n{calling}\ncall_the_decoy()\n")
    pytester.makepyfile(
        f"""
        import subprocess, sys, pytest
        from conftest import PLACES, call_the_decoy
        call_the_decoy()
        SEEN = [sys.executable, "-c", {SEEN!r}]
        @pytest.fixture(scope="session")
        def wide(): call_the_decoy()
        def test_body(wide, record_property):
            record_property("made", len(PLACES))
            record_property("seen", len(subprocess.check_output([*SEEN, *PLACES], text=True).split()))
        @pytest.mark.parametrize("again", range(2))
        def test_program(wide, again, crate_sandbox, record_property):
            record_property("made", len(PLACES))
            record_property("seen", len(crate_sandbox.run([*SEEN, *PLACES], check=True).stdout.split()))
        """
    )
    run = run_inner("--crate-all")
    for test in ("test_body", "test_program[0]", "test_program[1]"):
        assert _properties(run, test) == {"made": "3", "seen": "0"}, test
    control = run_inner("-k", "test_body")
    assert _properties(control, "test_body") == {"made": "3", "seen": "18"}


SERVER = """
import os, socket, sys
directory, name, daemon = sys.argv[1], sys.argv[2], sys.argv[3:]
os.chdir(directory)
server = socket.socket(socket.AF_UNIX)
server.bind(name)
server.listen()
if daemon and os.fork():
    os._exit(0)
if daemon:
    os.setsid()
    if os.fork():
        os._exit(0)
print(os.getpid(), flush=True)
if daemon:
    os.close(1)
while True:
    connection, _ = server.accept()
    connection.sendall(b"hello")
    connection.close()
"""

# In an inner run: servers in processes of their own, and the question whether one answers.
SERVING = f"""
import os, signal, socket, subprocess, sys, tempfile, pytest
SERVER = [sys.executable, "-c", {SERVER!r}]
CLIENT = (
    "import socket, sys; client = socket.socket(socket.AF_UNIX); "
    "client.connect(sys.argv[1]); assert client.recv(9) == b'hello'"
)
def ask(path):
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(path)
        return client.recv(9)
"""


def test_what_this_process_makes(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Directories, files, links, sockets, however they are made, when pytest imports or a wider fixture is set up."""
    pytester.makeconftest(
        """
        import os, shutil, tempfile
        AT_IMPORT = tempfile.mkdtemp(dir="/tmp")
        def pytest_unconfigure(): os.rmdir(AT_IMPORT)
        """
    )
    pytester.makepyfile(
        """
        import os, pathlib, shutil, socket, sqlite3, tempfile, pytest
        from conftest import AT_IMPORT
        COLLECTED = tempfile.mkdtemp(dir="/var/tmp")
        def made(base):
            os.mkdir(base + "dir")
            pathlib.Path(base + "path").mkdir()
            pathlib.Path(base + "text").write_text("text")
            os.close(os.open(base + "opened", os.O_CREAT | os.O_WRONLY))
            os.symlink("/etc/passwd", base + "symlink")
            os.link(base + "text", base + "link")
            pathlib.Path(base + "first").touch()
            os.rename(base + "first", base + "renamed")
            sqlite3.connect(base + "database").execute("create table a (b)").connection.close()
            shutil.copytree(AT_IMPORT, base + "copied")
            socket.socket(socket.AF_UNIX).bind(base + "bound")
            at = os.open("/tmp", os.O_PATH)
            os.mkdir(os.path.basename(base) + "relative", dir_fd=at)
            os.close(at)
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir("/tmp")
                os.mkdir(os.path.basename(base) + "here")
            return {path for path in os.listdir("/tmp") if path.startswith(os.path.basename(base))}
        @pytest.fixture(scope="session")
        def wide():
            base = tempfile.mktemp(dir="/tmp")
            yield base, made(base)
            for name in made.names: shutil.rmtree(name) if os.path.isdir(name) else os.unlink(name)
        @pytest.fixture(scope="session")
        def names(wide):
            made.names = ["/tmp/" + name for name in wide[1]]
            yield made.names
            os.rmdir(COLLECTED)
        def test_it(names):
            assert len(names) == 12
            assert sorted(name for name in names if os.path.lexists(name)) == sorted(names)
            assert os.path.isdir(AT_IMPORT) and os.path.isdir(COLLECTED)
        """
    )
    run = run_inner("--crate-all")
    assert run.outcomes() == {"passed": 1}, run.text


def test_a_fixture_that_asks_for_another(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """What it has made before it asks for the other one, and after, is there, and so is what that one has made."""
    pytester.makepyfile(
        """
        import os, tempfile, pytest
        @pytest.fixture(scope="module")
        def inner():
            with tempfile.TemporaryDirectory(dir="/tmp") as made: yield made
        @pytest.fixture(scope="session")
        def outer(request):
            with tempfile.TemporaryDirectory(dir="/tmp") as before:
                other = request.getfixturevalue("innermost")
                with tempfile.TemporaryDirectory(dir="/tmp") as after: yield [before, other, after]
        @pytest.fixture(scope="session")
        def innermost():
            with tempfile.TemporaryDirectory(dir="/tmp") as made: yield made
        def test_body(outer, inner): assert [*map(os.path.isdir, [*outer, inner])] == [True] * 4
        def test_program(outer, inner, crate_sandbox): crate_sandbox.run(["ls", *outer, inner], check=True)
        """
    )
    run = run_inner("--crate-all")
    assert run.outcomes() == {"passed": 2}, run.text


def test_a_server_that_a_fixture_starts(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A child's socket directly in /tmp, by an absolute and by a relative name, and one below a directory that the
    child has made, can be connected to; one of a daemon, no child any more, in a directory that pytest has made."""
    pytester.makepyfile(
        SERVING
        + """
@pytest.fixture(scope="module", params=["absolute", "relative", "below"])
def child(request):
    path = tempfile.mktemp(dir="/tmp")
    if request.param == "below":
        source = "import os, sys; os.mkdir(sys.argv[1]); os.execv(sys.argv[2], sys.argv[2:])"
        command = [sys.executable, "-c", source, path, *SERVER, path, "server"]
        path += "/server"
    else:
        command = [*SERVER, "/tmp", path if request.param == "absolute" else os.path.basename(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield path
        process.kill()
    os.unlink(path)
    if request.param == "below": os.rmdir(os.path.dirname(path))

@pytest.fixture(scope="module")
def daemon():
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        pid = int(subprocess.check_output([*SERVER, directory, "server", "daemon"]))
        yield directory + "/server"
        os.kill(pid, signal.SIGKILL)

@pytest.mark.parametrize("again", range(2))
def test_child(child, again): assert ask(child) == b"hello"
def test_program(child, crate_sandbox): crate_sandbox.run([sys.executable, "-c", CLIENT, child], check=True)
def test_daemon(daemon): assert ask(daemon) == b"hello"
"""
    )
    run = run_inner("--crate-all")
    assert run.outcomes() == {"passed": 10}, run.text


def test_a_directory_that_is_given_to_another_user(
    pytester: pytest.Pytester, run_inner: RunInner, needs: Callable[..., None]
) -> None:
    """As root does for a database's server: pytest has made the directory, and its socket can be connected to."""
    needs("root")
    pytester.makepyfile(
        SERVING
        + """
@pytest.fixture(scope="session")
def server():
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        os.chown(directory, 4321, 4321)
        as_another = [*SERVER[:2], SERVER[2].replace("os.chdir", "os.setgid(4321); os.setuid(4321); os.chdir")]
        with subprocess.Popen([*as_another, directory, "server"], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            yield directory + "/server"
            process.kill()
def test_it(server): assert ask(server) == b"hello"
"""
    )
    run = run_inner("--crate-all")
    assert run.outcomes() == {"passed": 1}, run.text


def test_shared_memory(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """What pytest's own process holds, though no event tells of it."""
    pytester.makepyfile(
        """
        import pytest
        from multiprocessing import shared_memory
        @pytest.fixture(scope="session")
        def block():
            block = shared_memory.SharedMemory(create=True, size=4096)
            block.buf[:5] = b"given"
            yield block.name
            block.close()
            block.unlink()
        def test_it(block):
            attached = shared_memory.SharedMemory(block)
            assert bytes(attached.buf[:5]) == b"given"
            attached.close()
        """
    )
    run = run_inner("--crate-all")
    assert run.outcomes() == {"passed": 1}, run.text


def test_what_is_not_proved_is_told_of(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """What a program has made that has ended, and a daemon's socket directly in /tmp, are hidden; a test that misses
    them is told so, with the mount that opens them, and the mount does."""
    pytester.makepyfile(
        SERVING
        + """
NAME = "/tmp/pytest-crate-unproved"
@pytest.fixture(scope="session")
def wide():
    subprocess.run(["touch", NAME], check=True)
    pid = int(subprocess.check_output([*SERVER, "/tmp", NAME + ".socket", "daemon"]))
    yield
    os.unlink(NAME)
    os.unlink(NAME + ".socket")
    os.kill(pid, signal.SIGKILL)
def test_file(wide): open(NAME)
def test_socket(wide): ask(NAME + ".socket")
"""
    )
    run = run_inner("--crate-all")
    for name, path in {"file": "/tmp/pytest-crate-unproved", "socket": "/tmp/pytest-crate-unproved.socket"}.items():
        sections = [text for title, text in run.of(f"test_{name}")["sections"] if title == "Crate"]
        assert sections == [f"{path} is there on the host, and hidden in this crate; mounts={[path]!r} opens it"]
