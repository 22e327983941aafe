"""The check of our own suite that nothing is left behind goes red for each kind of thing that a test may leave."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_crate.kernel import hierarchies

pytestmark = pytest.mark.needs("root")

ROOT = Path(__file__).parents[2]

LEAKING = """
import fcntl, json, os, subprocess, sys
from pathlib import Path
import pytest
from pytest_crate.kernel import cgroup, hierarchies
from tests import leftovers

leftovers.PATIENCE_SECONDS = 0.2
HERE = Path(__file__).parent
KEPT = []

def note(process):
    with open(HERE / "started", "a") as file:
        print(process, file=file)

@pytest.fixture(scope="session")
def lodger():
    # A process that was there before, as a launcher is.
    code = "import sys; from pytest_crate.kernel import libc; sys.stdin.readline()"
    code += "; libc.unshare('x', libc.CLONE_NEWUTS); print(flush=True); sys.stdin.readline()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as process:
        yield process
        process.communicate("\\n")

@pytest.fixture(scope="session")
def file():
    with open(HERE / "file", "w") as stream:
        yield stream

def test_nothing(lodger, file, tmp_path):
    (tmp_path / "x").write_text("y")
    subprocess.run(["true"], check=True)
    subprocess.Popen(["sh", "-c", "sleep 0.1 &"]).wait()  # an orphan, which ends

def test_mount(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "leaked", str(tmp_path)], check=True)

def test_cgroup():
    directory = HERE / "cgroup"
    os.mkdir(os.readlink(directory))

def test_process():
    note(subprocess.Popen(["sleep", "60"]).pid)

def test_daemon():
    command = "setsid sleep 60 >/dev/null 2>&1 & echo $!"
    note(subprocess.run(["sh", "-c", command], capture_output=True, text=True).stdout)

def test_namespace(lodger):
    lodger.stdin.write("\\n")
    lodger.stdin.flush()
    lodger.stdout.readline()

def test_descriptor():
    KEPT.append(os.open("/dev/null", os.O_RDONLY))

def test_temporary_file():
    Path(os.environ["LEAKED"]).touch()

def test_lock(file):
    fcntl.flock(file, fcntl.LOCK_EX)

def test_image(tmp_path):
    image = Path(os.environ["XDG_CACHE_HOME"], "pytest-crate/v1-root/images/sha256-0")
    image.mkdir(parents=True)
    (image / "image.json").write_text(json.dumps({"origin": f"{tmp_path}/image.tar"}))
"""

LEAKS = {
    "mount": r"mount: \d+ / on /.+/test_mount0, tmpfs leaked",
    "cgroup": r"control group: /sys/fs/cgroup/.*pytest-crate-\d+-1-1$",
    "process": r"process: \d+ of",
    "daemon": r"process: \d+ of",
    "namespace": r"namespace: uts:\[\d+\]",
    "descriptor": r"descriptor: \d+ /dev/null",
    "temporary_file": r"temporary file: .*/pytest-crate-",
    "lock": r"lock: FLOCK by \d+ of",
    "image": r"image in the user's store: .*/images/sha256-0",
}


def test_each_kind_of_leak_is_found(pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that leaves nothing passes; each that leaves one thing gets an error that names the kind and the thing."""
    pytester.makepyfile(test_leaking=LEAKING)
    mount = hierarchies.parse_mountinfo(Path("/proc/self/mountinfo").read_text())[0]
    # Of a pid that no process has (proc_sys_kernel(5), pid_max).
    leaked_cgroup = Path(mount.point, "pytest-crate-4194305-1-1")
    (pytester.path / "cgroup").symlink_to(leaked_cgroup)
    leaked_file = "/var/tmp/pytest-crate-test-4194305"
    environment = {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache"), "LEAKED": leaked_file}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    # In a mount namespace of its own: the mount is not to be the host's.
    command = ["unshare", "--mount", sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "tests.leftovers"]
    try:
        done = subprocess.run(
            [*command, "-rA", "-n0", "--basetemp", str(tmp_path / "base"), "test_leaking.py"],
            cwd=pytester.path,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        for remove in (leaked_cgroup.rmdir, Path(leaked_file).unlink):
            with contextlib.suppress(FileNotFoundError):
                remove()
        for pid in (pytester.path / "started").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
    assert f"{len(LEAKS) + 1} passed, {len(LEAKS)} errors" in done.stdout, done.stdout
    for name, words in LEAKS.items():
        said = re.search(
            rf"_ ERROR at teardown of test_{name} _+\nthe test has left behind\n((?:  .*\n)+)", done.stdout
        )
        assert said, done.stdout
        assert re.search(words, said[1], re.MULTILINE), said[0]
        # Only of the kind in question: a file that is kept open, or a process that is left, has no other traces here.
        assert len({line.partition(":")[0] for line in said[1].splitlines()}) == 1, said[0]
