"""Crates of images in which an ordinary user has a range of ids, by newuidmap(1)."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import tarfile
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import temporary_prefix

pytestmark = pytest.mark.needs("root", "unprivileged user", "user namespaces", "public python", "id ranges", "alpine")

USER = "crate-ranged"
FIRST, COUNT = 2_000_000, 65536

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def user() -> Iterator[pwd.struct_passwd]:
    """A user of this machine's for the time, with a home directory and a range of ids."""
    subprocess.run(["userdel", "--remove", USER], check=False, capture_output=True)  # a killed run's
    with tempfile.TemporaryDirectory(prefix=temporary_prefix("ranged")) as place:
        os.chmod(place, 0o755)
        home = f"{place}/home"
        subprocess.run(["useradd", "--create-home", "--home-dir", home, "--shell", "/bin/sh", USER], check=True)
        try:
            for file in ("subuids", "subgids"):
                subprocess.run(["usermod", f"--add-{file}", f"{FIRST}-{FIRST + COUNT - 1}", USER], check=True)
            # useradd(8) may have given a range of its own before.
            for file in ("/etc/subuid", "/etc/subgid"):
                lines = [line for line in Path(file).read_text().splitlines(keepends=True) if f"{USER}:" in line]
                for line in lines:
                    first, count = map(int, line.split(":")[1:])
                    if first != FIRST:
                        option = f"--del-{os.path.basename(file)}s"
                        subprocess.run(["usermod", option, f"{first}-{first + count - 1}", USER], check=True)
            yield pwd.getpwnam(USER)
        finally:
            subprocess.run(["userdel", USER], check=True)


@pytest.fixture
def run(
    user: pwd.struct_passwd, packages_for_everyone: Path, interpreter_for_everyone: str, alpine_image: Path
) -> Iterator[Run]:
    """Run Python's arguments as the user, in a directory with ``alpine.tar.gz``; what it has made can be removed
    by it at the end."""
    with tempfile.TemporaryDirectory(prefix=temporary_prefix("range")) as name:
        directory = Path(name)
        shutil.copy(alpine_image, directory / "alpine.tar.gz")
        os.chmod(directory / "alpine.tar.gz", 0o644)
        os.chown(directory, user.pw_uid, user.pw_gid)

        def run_(*args: str, check: bool = True, path: str = "/usr/bin:/bin") -> subprocess.CompletedProcess[str]:
            done = subprocess.run(
                [interpreter_for_everyone, "-B", *args],
                user=user.pw_uid,
                group=user.pw_gid,
                extra_groups=[],
                cwd=directory,
                env={
                    "PATH": path,
                    "HOME": user.pw_dir,
                    "XDG_CACHE_HOME": f"{directory}/cache",
                    "PYTHONPATH": str(packages_for_everyone),
                    "COLUMNS": "200",
                    "TMPDIR": name,
                },
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            print(done.stdout, done.stderr)
            assert not check or done.returncode == 0
            return done

        yield run_


def cli(run: Run, *args: str, check: bool = True) -> str:
    """Run ``pytest-crate`` and return what it prints."""
    done = run("-m", "pytest_crate.cli", *args, check=check)
    return done.stdout if check else done.stdout + done.stderr


def foreign(directory: Path, uid: int) -> list[str]:
    """Return the files below a directory that aren't the user's."""
    return [
        os.path.join(parent, name)
        for parent, directories, files in os.walk(directory)
        for name in (*directories, *files)
        if os.lstat(os.path.join(parent, name)).st_uid != uid
    ]


def test_an_images_root_has_other_users(run: Run, user: pwd.struct_passwd) -> None:
    """A program of its root can give files away and become somebody else; files have the image's own owners."""
    script = (
        "touch /new && chown nobody:games /new && stat -c '%u %g' /new /etc/shadow && su nobody -s /bin/sh -c 'id -u'"
    )
    printed = cli(run, "run", "--id-map", "range", "alpine.tar.gz", "sh", "-c", script)
    assert printed.splitlines() == ["65534 35", "0 42", "65534"]
    mapped = cli(
        run, "run", "--id-map", "range", "--user", "nobody:games", "alpine.tar.gz", "cat", "/proc/self/uid_map"
    )
    assert mapped.split() == ["0", str(user.pw_uid), "1", "1", str(FIRST), str(COUNT)]
    groups = cli(run, "run", "--id-map", "range", "--user", "nobody", "alpine.tar.gz", "id", "-G")
    assert groups.split() == ["65534"]


def test_without_it_there_is_nobody_else_and_it_is_said(run: Run) -> None:
    """A user that the crate's namespace does not know is refused, with the option that makes it known."""
    said = cli(run, "run", "--user", "nobody", "alpine.tar.gz", "id", check=False)
    assert "no user nobody (65534:65534): an ordinary user's crate has that user's own ids only\n" in said
    assert "crate_id_map = range (--id-map range)" in said


def test_the_store_is_the_users_to_empty(run: Run, user: pwd.struct_passwd, directory: Path) -> None:
    """Others' files, in directories that the user may not even enter, are in the store of that range; none is left once
    the image is removed."""
    with tarfile.open(directory / "owned.tar", "w") as archive:
        for name, kind, mode in (("bin", tarfile.DIRTYPE, 0o755), ("shut", tarfile.DIRTYPE, 0o700)):
            member = tarfile.TarInfo(name)
            member.type, member.mode, member.uid, member.gid = kind, mode, 5, 42
            archive.addfile(member)
        member = tarfile.TarInfo("shut/file")
        member.uid, member.gid = 70, 70
        archive.addfile(member)
    digest = cli(run, "image", "add", "--id-map", "range", "owned.tar").strip()
    rootfs = Path(cli(run, "image", "path", "--id-map", "range", "owned.tar").strip())
    assert rootfs.parts[-4] == f"v1-root-from-{user.pw_uid}-{FIRST}"
    owners = {path.name: (path.stat().st_uid, path.stat().st_gid) for path in (rootfs / "shut", rootfs / "shut/file")}
    # Id 1 is the first of the range.
    assert owners == {"shut": (FIRST + 4, FIRST + 41), "file": (FIRST + 69, FIRST + 69)}
    assert cli(run, "image", "rm", "--id-map", "range", digest).strip() == digest
    assert cli(run, "image", "list", "--id-map", "range").splitlines()[1:] == []
    assert foreign(directory / "cache", user.pw_uid) == []


def test_an_image_that_a_crate_uses_stays(run: Run) -> None:
    """Who looks is in another user namespace than the crate, and sees it all the same."""
    digest = cli(run, "image", "add", "--id-map", "range", "alpine.tar.gz").strip()
    script = f"""
        import os, subprocess, sys
        cli = [sys.executable, "-B", "-m", "pytest_crate.cli"]
        with subprocess.Popen(
            [*cli, "run", "--id-map", "range", "alpine.tar.gz", "sh", "-c", "echo up; cat"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as crate:
            assert crate.stdout.readline() == b"up\\n"
            remove = [*cli, "image", "rm", "--id-map", "range", "{digest}"]
            done = subprocess.run(remove, capture_output=True, text=True)
            print("returned", done.returncode, done.stderr)
            crate.stdin.close()
        subprocess.run(remove, check=True)
    """
    printed = run("-c", textwrap.dedent(script)).stdout
    assert "returned 2 pytest-crate image rm: " in printed
    assert "a crate uses it now: process " in printed
    assert cli(run, "image", "list", "--id-map", "range").splitlines()[1:] == []


TESTS = """
    import os, pytest

    pytestmark = pytest.mark.crate(image="./alpine.tar.gz")

    def test_body(tmp_path):
        for name in "file", "shut":
            (tmp_path / name).mkdir() if name == "shut" else (tmp_path / name).write_text("")
        (tmp_path / "shut" / "in").write_text("")
        for path in tmp_path / "file", tmp_path / "shut" / "in", tmp_path / "shut":
            os.chown(path, 5, 6)
        os.chmod(tmp_path / "shut", 0)
        assert (os.getuid(), (tmp_path / "file").stat().st_uid) == (0, 5)

    @pytest.mark.crate(user="nobody")
    def test_body_of_another_user():
        assert (os.getresuid(), os.getgroups()) == ((65534,) * 3, [65534])
        with pytest.raises(PermissionError):
            open("/etc/shadow")

    def test_programs(crate_sandbox):
        assert crate_sandbox.run(["id", "-u"], user="games", check=True).stdout == "35\\n"
        assert crate_sandbox.run(["id", "-u"], check=True).stdout == "0\\n"

    @pytest.mark.crate(image=None)
    def test_the_hosts_root_has_one_user():
        assert open("/proc/self/uid_map").read().split() == [str(os.getuid()), str(os.getuid()), "1"]
"""


def pytest_in(run: Run, directory: Path, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    (directory / "test_it.py").write_text(textwrap.dedent(TESTS))
    return run(
        "-m", "pytest", "-p", "no:cacheprovider", "-p", "pytest_crate.plugin", "-rA", "-o", "crate_id_map=range",
        f"--basetemp={directory}/base", "-o", "tmp_path_retention_policy=all", "test_it.py", *args, check=check,
    )  # fmt: skip


@pytest.fixture
def directory(run: Run) -> Path:
    """The directory in which things are run."""
    return Path(run("-c", "import os; print(os.getcwd())").stdout.strip())


def test_bodies(run: Run, user: pwd.struct_passwd, directory: Path) -> None:
    """Bodies have the range on images, and what they leave in basetemp is the user's own at the end."""
    pytest_in(run, directory)
    kept = {path.name for path in (directory / "base").rglob("*")}
    assert {"file", "shut", "in"} <= kept
    assert foreign(directory / "base", user.pw_uid) == []


def id_range_row(run: Run) -> dict[str, str]:
    """Return what the doctor says of it; its status is of this host, which has no limits for a user, or has."""
    rows = json.loads(run("-m", "pytest_crate.cli", "doctor", "--json", check=False).stdout)["rows"]
    return next(row for row in rows if row["feature"] == "id range")


def test_no_range_is_the_doctors_row(run: Run, user: pwd.struct_passwd, directory: Path) -> None:
    """Where none is given, each crate of an image is refused with the doctor's words; others are as ever."""
    last = f"{FIRST}-{FIRST + COUNT - 1}"
    subprocess.run(["usermod", "--del-subgids", last, USER], check=True)
    try:
        row = next(
            row for row in json.loads(cli(run, "doctor", "--json", check=False))["rows"] if row["feature"] == "id range"
        )
        done = pytest_in(run, directory, check=False)
    finally:
        subprocess.run(["usermod", "--add-subgids", last, USER], check=True)
    assert row["status"] == "degraded"
    assert row["detail"].startswith(f"/etc/subgid gives the user {USER} 0 ids; 65536 are needed")
    assert row["remedy"].startswith("sudo usermod --add-subgids ")
    assert "crate not supported here: /etc/subgid gives the user" in done.stdout
    assert row["remedy"] in done.stdout
    assert "1 passed, 3 errors" in done.stdout
    assert "PASSED test_it.py::test_the_hosts_root_has_one_user" in done.stdout


def test_the_doctor_maps_a_range(run: Run) -> None:
    """Its row says how many ids there are."""
    row = id_range_row(run)
    assert row["status"] == "ok"
    assert row["detail"] == f"newuidmap, {COUNT + 1} ids, for crate_id_map = range"


def test_an_archives_fault_is_told_as_ever(run: Run, directory: Path) -> None:
    """What the process that extracts meets is the error of who asked."""
    (directory / "broken.tar").write_bytes(b"not an archive" * 100)
    said = cli(run, "image", "add", "--id-map", "range", "broken.tar", check=False)
    assert f"image '{directory}/broken.tar': " in said
    assert "Traceback" not in said
