"""``pytest-crate run`` in pipelines and scripts: input, output, exit status, limits and signals."""

from __future__ import annotations

import hashlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pytest_crate.cli import main

pytestmark = pytest.mark.needs("root", "overlay")

COMMAND = (sys.executable, "-m", "pytest_crate.cli")
Cli = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def cli(tmp_path: Path, store: Path) -> Cli:
    """Run ``pytest-crate run`` in an empty directory, its input empty unless given."""

    def run(*args: object, **keywords: Any) -> subprocess.CompletedProcess[bytes]:
        keywords = {"input": b"", "cwd": tmp_path, "timeout": 30, "capture_output": True, **keywords}
        return subprocess.run([*COMMAND, "run", "--store", store, *map(str, args)], check=False, **keywords)

    return run


def test_output_and_status_are_the_programs(cli: Cli) -> None:
    """Standard output, standard error and the exit status are the program's own, and nothing is added."""
    done = cli("host", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == (b"out\n", b"err\n", 7)


def test_pipes_are_binary_clean(cli: Cli) -> None:
    """What is piped through a program comes out byte for byte."""
    data = os.urandom(3_000_000)
    done = cli("host", "cat", input=data)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()


def test_descriptors_are_handed_over(cli: Cli, tmp_path: Path) -> None:
    """The program has our files themselves as 0, 1 and 2, not copies of what is in them, and no other descriptor."""
    source, sink = tmp_path / "source", tmp_path / "sink"
    source.write_bytes(b"first\nsecond\n")
    script = "ls -l /proc/self/fd >&2; read line; echo $line"
    with source.open("rb") as stdin, sink.open("wb") as stdout:
        done = cli("host", "sh", "-c", script, input=None, capture_output=False, stdin=stdin, stdout=stdout, stderr=-1)
        assert os.lseek(stdin.fileno(), 0, os.SEEK_CUR) > 0
    assert sink.read_bytes() == b"first\n"
    numbers = {line.split()[8] for line in done.stderr.decode().splitlines()[1:]}
    assert numbers == {"0", "1", "2", "3"}  # 3: the listing's own


@pytest.mark.parametrize(
    ("script", "status"),
    [("kill -TERM $$", 128 + signal.SIGTERM), ("kill -KILL $$", 128 + signal.SIGKILL), ("exit 255", 255)],
)
def test_status_of_a_signal(cli: Cli, script: str, status: int) -> None:
    """A program that signal n ended gives 128 + n, as in a shell."""
    assert cli("host", "sh", "-c", script).returncode == status


def test_program_not_found(cli: Cli) -> None:
    """A program that isn't there is status 127, and the message says where it was looked for."""
    done = cli("host", "no-such-program")
    assert (done.returncode, done.stderr) == (
        127,
        b"pytest-crate run: no-such-program: not found in the crate's PATH (the host's root)\n",
    )
    done = cli("host", "/no/such/program")
    assert (done.returncode, done.stderr) == (
        127,
        b"pytest-crate run: /no/such/program: no such file in the crate (the host's root)\n",
    )


def test_interpreter_not_found(cli: Cli, tmp_path: Path) -> None:
    """A script that is there but whose interpreter isn't says so: the kernel's message is the same for both."""
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter -x\n")
    script.chmod(0o755)
    done = cli("host", script)
    assert done.returncode == 127
    assert b"script: is there, but the interpreter '/no/such/interpreter' that it needs is not found" in done.stderr


def test_program_not_executable(cli: Cli, tmp_path: Path) -> None:
    """A file that can't be executed is status 126, and the message says why it can't."""
    (tmp_path / "text").write_text("no program")
    done = cli("host", tmp_path / "text")
    assert done.returncode == 126
    assert b"Permission denied (errno 13); nobody may execute it: its mode has no x" in done.stderr
    done = cli("host", tmp_path)
    assert done.returncode == 126
    assert b"Permission denied (errno 13); it is a directory" in done.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--memory", "lots", "host", "true"], "run: --memory lots: expected a size such as"),
        (["--mount", "a:b:c:d", "host", "true"], "run: --mount a:b:c:d: expected SRC[:DST]"),
        (["--mount", "/etc:/proc/x", "host", "true"], "run: --mount /etc:/proc/x: expected SRC[:DST]"),
        (["--mount", "/etc/passwd:/etc", "host", "true"], "at /etc: a file can't be shown on a directory"),
        (["--mount", "/etc:/etc/passwd", "host", "true"], "at /etc/passwd: a directory can't be shown on a file"),
        (["--env", "A=1", "--env", "=x", "host", "true"], "run: --env =x: expected NAME=VALUE, or NAME to hand on"),
        (["--tmpfs", "4k", "host", "true"], "layer is full: tmpfs=4 KiB is too small to build the crate"),
        (["--mount", "missing:/there", "host", "true"], "expected an existing path, and "),
        (["--cpuset", "0,4000", "host", "true"], "cpuset='0,4000': expected CPUs that are online: 0"),
        (["--cap-add", "omnipotence", "host", "true"], "run: --cap-add omnipotence: expected the name of a"),
        (["--cap-add", "kill", "--cap-add", "foo", "--cap-add", "chown", "host", "true"], "run: --cap-add foo: "),
        (["", "true"], "image '': an image has a name or a path"),
        (["--user", "nobody-at-all", "host", "true"], "it has no user 'nobody-at-all'"),
        (["--workdir", "/no/such", "host", "true"], "/no/such): No such file or directory"),
        (["no-such-image", "true"], "image 'no-such-image': there is no "),
        (["host"], "there is no program to run; 'pytest-crate shell' opens a shell"),
        (["host", "--memory", "64m", "true"], "--memory stands after IMAGE; options go before it"),
        (["--no-such-option", "host", "true"], "unknown arguments: --no-such-option"),
        (["--cgroup-parent", "/no/such/cgroup", "host", "true"], "cgroup '/no/such/cgroup' does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_our_own_failures(
    args: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What keeps a crate from being made is status 125, and a message that names it; nothing runs."""
    monkeypatch.chdir(tmp_path)
    try:
        status = main(["run", *args])
    except SystemExit as left:  # how argparse ends a program
        status = int(str(left.code))
    assert status == 125
    out, err = capfd.readouterr()
    assert out == ""
    assert said in err
    assert err.splitlines()[-1].startswith(("pytest-crate run: ", "Try 'pytest-crate run --help'.", "To mend it: "))


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "run: cannot read {path}: Is a directory\n"), ("[tool\n", "run: {path}: Expected ']' at the end of")],
)
def test_a_pyproject_that_cannot_be_read(
    content: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A pyproject.toml that can't be read, or parsed, is named with the reason."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "pyproject.toml"
    path.mkdir() if content is None else path.write_text(content)
    assert main(["run", "small", "true"]) == 125
    assert said.format(path=path) in capfd.readouterr().err


def test_everything_after_the_program_is_its_own(cli: Cli) -> None:
    """Arguments after CMD go to the program, be they options of ours; so does a ``--`` there."""
    done = cli("--", "host", "printf", "%s,", "--memory", "x", "--", "-h")
    assert done.stdout == b"--memory,x,--,-h,"
    assert cli("host", "--", "printf", "%s", "--").stdout == b"--"


@pytest.mark.needs("memory limit")
def test_memory_limit_is_said(cli: Cli) -> None:
    """A limit that was exceeded is said on standard error, in the report's words; the status is the program's."""
    eat = "x = bytearray(200 << 20)"
    done = cli("--memory", "64m", "host", sys.executable, "-c", eat)
    assert done.returncode == 128 + signal.SIGKILL
    assert done.stderr == b"pytest-crate run: memory limit 64 MiB exceeded\n"


@pytest.mark.needs("pids limit")
def test_pids_limit_is_said(cli: Cli) -> None:
    """So is the limit on processes, where the program got an error for it."""
    done = cli("--pids", "8", "host", "sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 1 & done")
    assert done.returncode == 2
    assert done.stderr.endswith(b"pytest-crate run: pids limit 8 exceeded\n")


def test_timeout_ends_it(cli: Cli) -> None:
    """At the timeout everything is killed, a program that ignores SIGTERM with it."""
    done = cli("--timeout", "0.5", "host", "sh", "-c", "trap '' TERM; sleep 60 & wait; sleep 60")
    assert done.returncode == 128 + signal.SIGKILL
    assert done.stderr == b"pytest-crate run: timeout of 0.5 s exceeded\n"


@pytest.mark.needs("cpus limit", "memory limit")
def test_usage_is_told(cli: Cli) -> None:
    """``--usage`` says what the crate used, against its limits."""
    spin = "import time\nwhile time.process_time() < 0.1: pass"
    done = cli("--usage", "--cpus", "0.1", "--memory", "64m", "host", sys.executable, "-c", spin)
    facts = {line.split()[0]: line for line in done.stderr.decode().splitlines()}
    assert done.returncode == 0
    assert "of 64 MiB" in facts["memory"]
    assert "limit 0.1 CPUs, throttled" in facts["cpu"]
    assert facts["ended"].endswith("exit status 0")


def test_what_a_crate_is(cli: Cli) -> None:
    """A program sees the crate's processes, host name and network only."""
    done = cli("--hostname", "box", "host", "sh", "-c", "hostname; echo $$; tail -n +3 /proc/net/dev | cut -d: -f1")
    hostname, pid, *devices = done.stdout.decode().split()
    assert (hostname, pid, devices) == ("box", "2", ["lo"])


def test_writes_on_the_hosts_root_vanish(cli: Cli, tmp_path: Path) -> None:
    """On ``host`` a program reads the host's files, and what it writes is gone with the crate."""
    (tmp_path / "kept").write_text("as it was")
    script = "cat kept; echo changed > kept; touch new /etc/crate-was-here; cat kept"
    assert cli("host", "sh", "-c", script).stdout == b"as it waschanged\n"
    assert (tmp_path / "kept").read_text() == "as it was"
    assert not (tmp_path / "new").exists()
    assert not Path("/etc/crate-was-here").exists()


def test_mounts(cli: Cli, tmp_path: Path) -> None:
    """``--mount`` shows a host path, relative to the current directory: read-only unless it says ``rw``."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "in" / "file").write_text("given")
    script = "cat /given/file; echo lost > /given/file; cp /given/file /result/file"
    done = cli("--mount", "in:/given:ro", "--mount", "out:/result:rw", "host", "sh", "-c", script)
    assert done.stdout == b"given"
    assert b"Read-only file system" in done.stderr
    assert (tmp_path / "out" / "file").read_text() == "given"


def test_a_mount_on_a_link_of_the_hosts(cli: Cli, tmp_path: Path) -> None:
    """A symbolic link in a directory that is mounted ``rw`` is not replaced by a place to mount on; in another it is,
    in the crate alone."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").touch()
    (tmp_path / "project").mkdir()
    link = tmp_path / "project" / "data"
    link.symlink_to("/elsewhere")
    done = cli("--mount", "project:/src:rw", "--mount", "data:/src/data", "host", "ls", "/src/data")
    assert done.returncode == 125
    assert b"/src/data: it is a symbolic link in a directory of the host's that is mounted rw" in done.stderr
    assert os.readlink(link) == "/elsewhere"
    done = cli("--mount", f"data:{link}", "host", "ls", link)
    assert (done.stdout, done.stderr) == (b"file\n", b"")
    assert os.readlink(link) == "/elsewhere"


def test_environment_user_and_directory(cli: Cli) -> None:
    """``--env`` sets or hands on, ``--clean-env`` starts anew, ``--user`` and ``--workdir`` are as in Docker."""
    environment = {**os.environ, "HANDED": "on", "KEPT": "no"}
    args = ("--clean-env", "--env", "HANDED", "--env", "GIVEN=a=b", "--user", "nobody", "--workdir", "/usr")
    done = cli(*args, "host", "sh", "-c", 'echo "$HANDED,$GIVEN,$KEPT,$(id -u),$(pwd)"', env=environment)
    assert done.stdout == b"on,a=b,,65534,/usr\n"


def test_image(cli: Cli, alpine_image: Path) -> None:
    """On an image a program has the image's files and home directory, its user's groups, and nothing of the host's."""
    script = '. /etc/os-release; echo $ID "$HOME" "$PWD" $(id -un); ls -d "$1" "$2"'
    here, interpreter = str(alpine_image.parent), sys.prefix
    done = cli(alpine_image, "sh", "-c", script, "sh", here, interpreter)
    assert done.stdout == b"alpine /root / root\n"
    assert done.stderr.count(b"No such file or directory") == 2


def test_image_by_bare_name(cli: Cli, alpine_image: Path, tmp_path: Path) -> None:
    """A tarball beside us needs no ``./``; a name of pyproject.toml goes before it."""
    (tmp_path / "rootfs.tar.gz").symlink_to(alpine_image)
    assert cli("rootfs.tar.gz", "cat", "/etc/alpine-release").returncode == 0
    (tmp_path / "pyproject.toml").write_text('[tool.pytest-crate.images]\nsmall = "rootfs.tar.gz"\n')
    assert cli("small", "cat", "/etc/alpine-release").returncode == 0
    done = cli("large", "true")
    assert done.returncode == 125
    assert b"no such name in ./pyproject.toml (names are 'small')" in done.stderr


@contextmanager
def start(*args: str, cwd: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([*COMMAND, "run", *args], cwd=cwd, stdin=-3, stdout=-1, stderr=-1) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1])
def test_signals_are_forwarded(tmp_path: Path, number: signal.Signals) -> None:
    """A signal to us is one to the program, which decides what becomes of it."""
    script = f"trap 'echo caught; exit 4' {number.name.removeprefix('SIG')}; echo ready; while :; do sleep 0.02; done"
    with start("host", "sh", "-c", script, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.stdout.read() == b"caught\n"
        assert process.wait(10) == 4


def test_sigterm_that_is_ignored_becomes_a_kill(tmp_path: Path) -> None:
    """A program that ignores SIGTERM is killed with its crate after a grace."""
    with start("host", "sh", "-c", "trap '' TERM; echo ready; sleep 60; sleep 60", cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.terminate()
        assert process.wait(10) == 128 + signal.SIGKILL


def test_sigkill_leaves_nothing(tmp_path: Path) -> None:
    """Nothing outlives us, not even SIGKILL: the launcher ends the crate (checked by the fixture for all tests)."""
    with start("host", "sh", "-c", "echo ready; sleep 60", cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.kill()
        assert process.wait(10) == -signal.SIGKILL
        assert process.stdout.read() == b""


def test_daemons_end_with_the_program(cli: Cli) -> None:
    """When the program ends, so does what it left behind, though it holds our standard output open."""
    done = cli("host", "sh", "-c", "setsid sleep 60 & echo done", timeout=10)
    assert done.stdout == b"done\n"


def test_reader_that_has_gone(tmp_path: Path) -> None:
    """A program that writes to a pipe without a reader gets SIGPIPE, as in any pipeline."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*COMMAND, "run", "host", "yes"], cwd=tmp_path, stdin=-3, stdout=writing, timeout=30, check=False
    )
    os.close(writing)
    assert done.returncode == 128 + signal.SIGPIPE


@pytest.mark.parametrize("name", ["caf\\351", "page\\f1", "line\\r1", "line\\342\\200\\2502"])
def test_odd_names_of_mount_points(tmp_path: Path, name: str) -> None:
    """Where something is mounted at a place whose name is no UTF-8, or has what could end a line, there are crates."""
    there = shlex.quote(str(tmp_path))
    command = f"{' '.join(COMMAND)} run host ls"
    line = f"cd {there}; p=$(printf '{name}'); mkdir $p; mount -t tmpfs none $p; touch $p/file; {command} $p"
    done = subprocess.run(["unshare", "-m", "sh", "-c", line], capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"file\n", b"")


def test_closed_descriptors(tmp_path: Path) -> None:
    """Started without standard input or output, it gives the program empty ones and no descriptor of ours."""
    line = f"{' '.join(COMMAND)} run host sh -c 'cat; ls -l /proc/self/fd >&2; exit 5' <&- >&-"
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, stderr=-1, timeout=30, check=False)
    assert done.returncode == 5
    assert b"/dev/null" in done.stderr
    assert b"socket:" not in done.stderr
