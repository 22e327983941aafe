"""Crates on a host whose kernel refuses overlays: for real, on a root that is an overlay over an overlay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest

from tests.conftest import NOBODY, temporary_prefix

pytestmark = pytest.mark.needs("root", "overlay", "user namespaces", "unprivileged user", "public python")

# fs/overlayfs: FILESYSTEM_MAX_STACK_DEPTH is 2, so that on this root there can't be another one.
STACK = """
import os, sys
from pytest_crate.kernel import libc
libc.unshare("nest", libc.CLONE_NEWNS)
libc.mount("nest", "none", "/", flags=libc.MS_REC | libc.MS_PRIVATE)
libc.mount("nest", "nest", "/mnt", "tmpfs")
lower = "/"
for name in "one", "two":
    place = f"/mnt/{name}"
    for part in "", "/upper", "/work", "/merged":
        os.mkdir(place + part)
    options = f"lowerdir={lower},upperdir={place}/upper,workdir={place}/work"
    libc.mount("nest", "nest", f"{place}/merged", "overlay", data=options)
    lower = f"{place}/merged"
for path in "/proc", "/sys", "/dev", "/tmp":
    libc.mount("nest", path, lower + path, flags=libc.MS_BIND | libc.MS_REC)
os.chdir(lower)
libc.pivot_root("nest", ".", ".")
libc.umount("nest", ".", libc.MNT_DETACH)
user, directory, *command = sys.argv[1:]
os.chdir(directory)
if user:
    os.setgroups([])
    os.setresgid(*[int(user)] * 3)
    os.setresuid(*[int(user)] * 3)
os.execv(command[0], command)
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that any user can write to."""
    with tempfile.TemporaryDirectory(prefix=temporary_prefix("nested")) as name:
        os.chmod(name, 0o777)
        yield Path(name)


@pytest.fixture(params=["root", "user"])
def run(
    request: pytest.FixtureRequest, directory: Path, packages_for_everyone: Path, interpreter_for_everyone: str
) -> Run:
    """Run Python's arguments on such a root, as root or as an ordinary user."""
    user = "" if request.param == "root" else str(NOBODY)
    interpreter, packages = interpreter_for_everyone, str(packages_for_everyone)

    def run_(*args: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-c", STACK, user, str(directory), interpreter, "-B", *args],
            cwd=Path(__file__).parents[2],
            env={"PATH": "/usr/bin:/bin", "HOME": "/nowhere", "PYTHONPATH": packages, "COLUMNS": "200"}
            | {"XDG_CACHE_HOME": f"{directory}/cache", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        print(done.stdout, done.stderr)
        return done

    return run_


TESTS = """
    import os, pathlib, socket, pytest

    HERE = pathlib.Path(__file__).parent

    @pytest.mark.crate
    def test_host(tmp_path):
        assert socket.gethostname() == "crate"
        assert set(name for name in os.listdir("/proc") if name.isdecimal()) <= {"1", "2", "3"}
        for place in "/tmp", "/var/tmp", "/run", "/dev/shm", tmp_path:
            pathlib.Path(place, "new").write_text("")
        for place in "/usr", "/etc", "/opt", HERE:
            with pytest.raises(OSError):
                pathlib.Path(place, "new").write_text("")
        with pytest.raises(OSError):
            pathlib.Path(__file__).write_text("")
        assert "crate" in pathlib.Path("/etc/hosts").read_text()

    @pytest.mark.crate
    def test_next(tmp_path):
        assert not os.path.exists("/tmp/new")

    @pytest.mark.crate(mounts=[f"{HERE}:/data:rw"])
    def test_mount():
        pathlib.Path("/data/written").write_text("")

    @pytest.mark.crate(image="./image.tar")
    @pytest.mark.parametrize("again", range(2))
    def test_image(again):
        assert pathlib.Path("/etc/motd").read_text() == "as it was"
        assert pathlib.Path("/etc/other").stat().st_nlink == 2
        assert os.readlink("/etc/link") == "../motd"
        assert (pathlib.Path("/shut").stat().st_mode & 0o7777, pathlib.Path("/shut/tool").stat().st_mode & 0o7777) == (
            0o750, 0o4751)
        assert pathlib.Path("/shut/tool").stat().st_mtime == 5
        pathlib.Path("/etc/motd").write_text("changed")
        assert pathlib.Path("/etc/other").read_text() == "changed"
        pathlib.Path("/usr").mkdir(exist_ok=True)
        pathlib.Path("/usr/new").write_text("")
        for name in "etc/motd", "shut/tool":
            os.unlink("/" + name)

    @pytest.mark.crate(image="./image.tar")
    def test_owner():
        assert pathlib.Path("/shut/tool").stat().st_uid == {owner}

    @pytest.mark.crate(image="./large.tar", tmpfs="4m")
    def test_large():
        pass
"""


def write_images(directory: Path) -> None:
    """Write a small image, and one of 8 MiB."""

    def add(archive: tarfile.TarFile, name: str, data: bytes = b"", **fields: object) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mtime = len(data), 5
        for field, value in fields.items():
            setattr(member, field, value)
        archive.addfile(member, BytesIO(data))

    with tarfile.open(directory / "image.tar", "w") as archive:
        for name in ("etc", "proc", "dev", "sys", "tmp"):
            add(archive, name, type=tarfile.DIRTYPE, mode=0o755)
        add(archive, "etc/motd", b"as it was", mode=0o666)
        add(archive, "etc/other", type=tarfile.LNKTYPE, linkname="etc/motd")
        add(archive, "etc/link", type=tarfile.SYMTYPE, linkname="../motd")
        add(archive, "shut", type=tarfile.DIRTYPE, mode=0o750)
        add(archive, "shut/tool", b"#!", mode=0o4751, uid=33, gid=33)
    with tarfile.open(directory / "large.tar", "w") as archive:
        add(archive, "bin/large", bytes(8 << 20))


def test_what_there_is_without_overlays(run: Run, directory: Path, request: pytest.FixtureRequest) -> None:
    """Images are copied; of the host's root only private directories can be written to, and the header says so."""
    rootless = "user" in request.node.name
    write_images(directory)
    (directory / "test_it.py").write_text(textwrap.dedent(TESTS).replace("{owner}", "0" if rootless else "33"))
    done = run(
        *("-m", "pytest", "-p", "no:cacheprovider", "-p", "pytest_crate.plugin", "-rA", "test_it.py"),
        *(f"--basetemp={directory}/base", "--crate-report=report.json"),
    )
    assert "NO overlay (images copied, the host's root read-only)" in done.stdout
    assert "6 passed, 1 error" in done.stdout
    assert "tmpfs=4 MiB is too small to build the crate" in done.stdout
    report = json.loads((directory / "report.json").read_text())
    assert report["host"]["overlay"] is False
    assert (directory / "written").exists()
    assert 'read_text() == "as it was"' in (directory / "test_it.py").read_text()


def test_the_doctor_says_what_is_done_instead(run: Run) -> None:
    """The row is degraded, and what follows in the chain is tried all the same."""
    rows = {row["feature"]: row for row in json.loads(run("-m", "pytest_crate.cli", "doctor", "--json").stdout)["rows"]}
    assert rows["overlay"]["status"] == "degraded"
    assert (
        "images are copied, and the host's root is read-only but for private directories" in rows["overlay"]["detail"]
    )
    assert {rows[name]["status"] for name in ("fresh proc", "fresh sys", "pivot_root", "a whole crate")} == {"ok"}


def test_programs_without_overlays(run: Run, directory: Path) -> None:
    """The command line's crates are made likewise."""
    write_images(directory)
    done = run("-m", "pytest_crate.cli", "run", "host", "sh", "-c", "touch /usr/new; touch /tmp/new && echo done")
    assert "Read-only file system" in done.stderr
    assert done.stdout == "done\n"
