"""What a hostile or careless test, program or image tries, and what must hold all the same."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import RunCrated

pytestmark = pytest.mark.needs("root", "overlay")


def test_a_signal_to_the_own_group_stays_inside(run_crated: RunCrated) -> None:
    """kill(0) and killpg(getpgrp()) hit the crate's processes, not pytest and whoever started it."""
    run = run_crated("""
        import os, signal
        import pytest

        pytestmark = pytest.mark.crate

        def test_kill_group():
            os.kill(0, signal.SIGKILL)

        def test_terminate_group():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.killpg(os.getpgrp(), signal.SIGTERM)

        def test_next():
            assert os.getsid(0) == os.getpid()
    """)
    assert run.outcomes == {"test_kill_group": "failed", "test_terminate_group": "passed", "test_next": "passed"}
    assert "killed by SIGKILL" in run.text


def test_device_nodes_keep_mode_and_owner(run_crated: RunCrated) -> None:
    """The nodes are the host's own: they can be written to, but not changed. (Each is set to what it is.)"""
    run = run_crated("""
        import errno, os, subprocess
        import pytest

        pytestmark = pytest.mark.crate
        NODES = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/proc/keys", "/proc/timer_list"]

        @pytest.mark.parametrize("node", NODES)
        def test_body(node):
            status = os.stat(node)
            for change in (
                lambda: os.chmod(node, status.st_mode & 0o7777),
                lambda: os.chown(node, status.st_uid, status.st_gid),
                lambda: os.utime(node, ns=(status.st_atime_ns, status.st_mtime_ns)),
            ):
                with pytest.raises(OSError) as caught:
                    change()
                assert caught.value.errno in (errno.EROFS, errno.EPERM)

        def test_they_work():
            with open("/dev/null", "w") as null:
                null.write("x")
            assert open("/dev/zero", "rb").read(2) == b"\\0\\0"
            with pytest.raises(OSError), open("/dev/full", "w") as full:
                full.write("x")
                full.flush()
    """)
    assert run.all_passed(), run.text


# A script that runs pytest in a mount namespace of its own, with mounts made there.
_MOUNTED = """
set -e
mount --make-rprivate /
{mounts}
exec {python} -m pytest -p no:cacheprovider --crate-report=crates.json -q -rA test_inner.py
"""


def run_with_mounts(pytester: pytest.Pytester, mounts: str, source: str) -> subprocess.CompletedProcess[str]:
    """Run an inner pytest where a shell script has mounted something first."""
    pytester.makepyfile(test_inner=source)
    pytester.makeini("[pytest]\n")
    script = _MOUNTED.format(mounts=mounts, python=sys.executable)
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        cwd=pytester.path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_a_read_only_mount_is_so_to_the_bottom(pytester: pytest.Pytester, home: Path) -> None:
    """What is mounted below a read-only mount is read-only, too; below a writable one it is writable."""
    for name in ("data", "open"):
        (pytester.path / name / "sub").mkdir(parents=True)
    done = run_with_mounts(
        pytester,
        "mount -t tmpfs inner data/sub; mount -t tmpfs inner open/sub",
        """
        import errno
        import pytest

        pytestmark = pytest.mark.crate(mounts=["data:/data:ro", "open:/open:rw"])

        @pytest.mark.parametrize("place", ["/data/x", "/data/sub/x"])
        def test_body(place):
            with pytest.raises(OSError) as caught:
                open(place, "w")
            assert caught.value.errno == errno.EROFS

        def test_program(crate_sandbox):
            assert crate_sandbox.run(["touch", "/data/sub/x"]).returncode != 0

        def test_writable():
            open("/open/sub/x", "w").close()
        """,
    )
    assert "4 passed" in done.stdout, done.stdout + done.stderr


def test_a_mounted_socket_of_the_host_is_not_shown(pytester: pytest.Pytester, home: Path, tmp_path: Path) -> None:
    """A socket bound into the host's tree, as containers have their engine's, is no way out."""
    (tmp_path / "engine").touch()
    serve = (
        "import os, socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); "
        "os.write(1, b'x'); s.accept()"
    )
    with subprocess.Popen([sys.executable, "-c", serve, str(tmp_path / "server")], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        try:
            assert server.stdout.read(1) == b"x"
            done = run_with_mounts(
                pytester,
                f"mount -t tmpfs inner /srv; touch /srv/engine.sock; mount --bind {tmp_path}/server /srv/engine.sock",
                """
                import socket
                import pytest

                @pytest.mark.crate
                def test_body():
                    with socket.socket(socket.AF_UNIX) as client, pytest.raises(OSError):
                        client.connect("/srv/engine.sock")
                """,
            )
        finally:
            server.kill()
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_temporary_files_are_private_where_tmp_is_a_symlink(pytester: pytest.Pytester, home: Path) -> None:
    """What /tmp points at is as private as /tmp."""
    done = run_with_mounts(
        pytester,
        # The project's own files are below /tmp: they move along.
        "mount -t tmpfs inner /mnt; mkdir /mnt/root; echo secret > /mnt/root/secret; mount --bind /mnt/root /srv; "
        "mount -t tmpfs inner /var/tmp; rmdir /var/tmp 2>/dev/null || true; echo host > /var/tmp/host-secret",
        """
        import os
        import pytest

        @pytest.mark.crate
        def test_body():
            assert "host-secret" not in os.listdir("/var/tmp")
        """,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_a_mount_that_can_be_no_lower_layer_is_shown_read_only(pytester: pytest.Pytester, home: Path) -> None:
    """An overlay on an overlay, at a place that no test needs, does not keep crates from being made."""
    done = run_with_mounts(
        pytester,
        "mount -t tmpfs t /mnt; cd /mnt; mkdir a b c d w1 w2 x y; touch a/file; "
        "mount -t overlay o -o lowerdir=a,upperdir=b,workdir=w1 x; "
        "mount -t overlay o -o lowerdir=x,upperdir=c,workdir=w2 y; cd - >/dev/null",
        """
        import errno
        import pytest

        @pytest.mark.crate
        def test_body():
            assert open("/mnt/y/file").read() == ""
            with pytest.raises(OSError) as caught:
                open("/mnt/y/file", "w")
            assert caught.value.errno == errno.EROFS
        """,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def make_image(path: Path, member: tarfile.TarInfo) -> None:
    """Make a small image with one odd member."""
    with tarfile.open(path, "w") as archive:
        for name in ("etc", "usr", "usr/bin", "tmp"):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(directory)
        archive.addfile(member)


@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE])
@pytest.mark.parametrize("name", ["etc/hosts", "etc/passwd"])
def test_an_odd_file_in_an_image_blocks_nothing(
    pytester: pytest.Pytester, run_crated: RunCrated, name: str, kind: bytes
) -> None:
    """A pipe, a directory, a symlink to the kernel's secrets, where a file of names belongs, are as good as none."""
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.linkname = kind, 0o755, "/proc/kallsyms"
    make_image(pytester.path / "odd.tar", member)
    run = run_crated("""
        import pytest

        @pytest.mark.crate(image="./odd.tar", timeout=20)
        def test_body():
            text = open("/etc/hosts").read()
            assert "localhost" in text
            assert "_text" not in text
    """)
    assert run.all_passed(), run.text


def test_a_program_that_swaps_the_user_database_for_a_pipe_blocks_nothing(run_crated: RunCrated) -> None:
    """The next program does not wait for the pipe; a user that is in no database is an error."""
    run = run_crated("""
        import pytest
        from pytest_crate import SandboxError

        @pytest.mark.crate(timeout=20)
        def test_drives(crate_sandbox):
            crate_sandbox.run(["sh", "-c", "rm /etc/passwd; mkfifo /etc/passwd"], check=True)
            with pytest.raises(SandboxError, match="nobody"):
                crate_sandbox.run(["true"], user="nobody")
            assert crate_sandbox.run(["true"]).returncode == 0
    """)
    assert run.all_passed(), run.text


def test_a_user_database_without_end_gives_nobody_another_group(run_crated: RunCrated) -> None:
    """Who may stand beyond what is read of it isn't taken for one who isn't there, and has root's group."""
    run = run_crated("""
        import pytest
        from pytest_crate import SandboxError

        @pytest.mark.crate(timeout=20)
        def test_drives(crate_sandbox):
            far = "#" * (4 << 20) + "\\nfar:x:1234:4321::/:/bin/sh\\n"
            crate_sandbox.run(["sh", "-c", "rm /etc/passwd; cat >/etc/passwd"], input=far, check=True)
            with pytest.raises(SandboxError, match="/etc/passwd: it has more than 4 MiB"):
                crate_sandbox.run(["id", "-g"], user=1234)
            assert crate_sandbox.run(["true"]).returncode == 0
    """)
    assert run.all_passed(), run.text


def test_a_user_database_that_is_a_directory(run_crated: RunCrated) -> None:
    """It is no user database, and the launcher keeps nothing of it."""
    run = run_crated("""
        import os
        import psutil

        def test_drives(crate_sandbox):
            (launcher,) = [each for each in psutil.Process().children() if each.name() == "crate-launcher"]
            crate_sandbox.run(["sh", "-c", "rm /etc/group; mkdir /etc/group"], check=True)
            found = []
            for _ in range(9):
                assert crate_sandbox.run(["id", "-u"], user=1234, check=True).stdout == "1234\\n"
                found.append(launcher.num_fds())
            assert found[-1] < found[0] + 5  # one that ends may be not collected yet
    """)
    assert run.all_passed(), run.text


def test_one_crates_end_is_not_the_others(run_crated: RunCrated) -> None:
    """A crate that is killed at its timeout says so when it is used again; another one goes on."""
    run = run_crated("""
        import pytest
        from pytest_crate import SandboxError

        @pytest.mark.crate(timeout=1)
        def test_drives(crate_sandbox, crate_sandbox_factory):
            other = crate_sandbox_factory(timeout="unlimited")
            sleeper = other.popen(["sleep", "60"])
            done = crate_sandbox.run(["sleep", "30"])
            assert (done.returncode, done.exceeded) == (-9, ("timeout",))
            with pytest.raises(SandboxError, match="timeout"):
                crate_sandbox.run(["true"])
            with pytest.raises(SandboxError, match="signal"):
                sleeper.send_signal(1000)
            assert sleeper.poll() is None
            assert other.run(["true"]).returncode == 0
    """)
    assert run.outcomes == {"test_drives": "passed"}, run.text


def test_a_timeout_may_be_long(run_crated: RunCrated) -> None:
    """A timeout beyond what poll(2) takes is a timeout like any other."""
    run = run_crated("""
        import pytest

        pytestmark = pytest.mark.crate(timeout=10**8)

        def test_rides(): pass

        def test_drives(crate_sandbox):
            assert crate_sandbox.run(["true"], timeout=10**9).returncode == 0
    """)
    assert run.all_passed(), run.text


def test_what_was_forked_from_pytest_does_not_keep_it(run_crated: RunCrated) -> None:
    """A process that a test forked, and left, holds the launcher's socket: pytest ends all the same."""
    run = run_crated("""
        import multiprocessing, time
        import pytest

        def test_leaves_a_process():
            pass

        @pytest.fixture(scope="session", autouse=True)
        def process(crate):
            process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
            process.start()

        @pytest.fixture(scope="session")
        def crate(): ...

        @pytest.mark.crate
        def test_crated(): pass

        @pytest.fixture
        def late():
            multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True).start()

        def test_forks_after(late): pass
    """)
    assert run.outcomes == {"test_crated": "passed"}
    assert run.result.parseoutcomes() == {"passed": 3}


def test_an_exception_in_a_request_does_not_mix_up_answers(run_crated: RunCrated) -> None:
    """A signal's handler that raises while pytest waits for the launcher costs that crate, and no other test."""
    run = run_crated("""
        import os, signal
        import psutil
        import pytest
        from pytest_crate import CrateError

        class Alarm(Exception): pass

        @pytest.mark.crate
        def test_interrupted(crate_sandbox):
            (launcher,) = [child for child in psutil.Process().children() if child.name() == "crate-launcher"]
            def ring(*_):
                launcher.resume()
                raise Alarm
            signal.signal(signal.SIGALRM, ring)
            launcher.suspend()
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(Alarm):
                crate_sandbox.run(["true"])
            with pytest.raises(CrateError):
                crate_sandbox.run(["true"])

        @pytest.mark.crate
        def test_rides(): pass

        @pytest.mark.crate
        def test_drives(crate_sandbox):
            assert crate_sandbox.run(["echo", "x"]).stdout == "x\\n"
    """)
    assert run.outcomes["test_rides"] == run.outcomes["test_drives"] == "passed", run.text


def test_a_limit_met_after_the_last_report_fails_the_test(run_crated: RunCrated) -> None:
    """A daemon that meets the limit on tasks while its test leaves is its test's affair."""
    run = run_crated("""
        import os, signal, time
        import pytest

        @pytest.mark.crate(pids=3)
        def test_daemon():
            body = os.getpid()
            if os.fork() == 0:
                pidfd = os.pidfd_open(body)
                import select
                select.select([pidfd], [], [])
                for _ in range(8):
                    try:
                        if os.fork() == 0:
                            time.sleep(5)
                            os._exit(0)
                    except OSError:
                        pass
                time.sleep(5)
                os._exit(0)
            time.sleep(0.2)
    """)
    # The crate is killed as soon as its body has left: the daemon may not get that far. What must not be is a
    # limit that was met and a test that passed.
    crate = run.crate("test_daemon")
    met = bool(crate["usage"]["pids_max_events"])
    assert met == (crate["exceeded"] == ["pids"]), crate
    assert run.outcomes["test_daemon"] == ("error" if met else "passed")


def test_the_working_directory_may_be_gone(run_crated: RunCrated) -> None:
    """A test that removes the current directory does not break the crates after it."""
    run = run_crated("""
        import os
        import pytest

        def test_removes(tmp_path):
            os.chdir(tmp_path)
            os.rmdir(tmp_path)

        @pytest.mark.crate
        def test_after():
            assert os.path.exists(__file__)
    """)
    assert run.outcomes == {"test_after": "passed"}, run.text


def test_a_home_within_the_project(
    pytester: pytest.Pytester, run_crated: RunCrated, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The project is there, the home in it is empty: on the host's root and on an image."""
    inside = pytester.path / "home"
    inside.mkdir()
    (inside / "secret").write_text("x")
    monkeypatch.setenv("HOME", str(inside))
    member = tarfile.TarInfo("etc/x")
    make_image(pytester.path / "small.tar", member)
    run = run_crated("""
        import os
        import pytest

        @pytest.mark.parametrize("way", [
            pytest.param("host", marks=pytest.mark.crate),
            pytest.param("image", marks=pytest.mark.crate(image="./small.tar")),
        ])
        def test_body(way):
            assert os.path.exists(__file__)
            assert os.listdir(os.environ["HOME"]) == []
    """)
    assert run.all_passed(), run.text


def test_another_user_has_a_tmp_path(pytester: pytest.Pytester, run_crated: RunCrated) -> None:
    """tmp_path is the user's whom the body becomes."""
    pytester.path.chmod(0o755)  # the project's own directory: here the inner basetemp is below it
    run = run_crated("""
        import os
        import pytest

        @pytest.mark.crate(user="nobody")
        def test_body(tmp_path):
            (tmp_path / "x").write_text("y")
            assert (tmp_path / "x").stat().st_uid == os.getuid() == 65534
    """)
    assert run.all_passed(), run.text


def test_a_pipe_in_place_of_a_file_is_refused(run_crated: RunCrated) -> None:
    """Reading and writing a crate's files never waits for a program in it."""
    run = run_crated("""
        import pytest
        from pytest_crate import SandboxError

        @pytest.mark.crate(timeout=20)
        def test_drives(crate_sandbox):
            crate_sandbox.run(["mkfifo", "/tmp/pipe"], check=True)
            crate_sandbox.run(["ln", "-s", "/dev/zero", "/tmp/zeros"], check=True)
            for path in ("/tmp/pipe", "/tmp/zeros"):
                with pytest.raises(SandboxError):
                    crate_sandbox.read_bytes(path)
                with pytest.raises(SandboxError):
                    crate_sandbox.write_text(path, "x")
    """)
    assert run.all_passed(), run.text


def test_a_program_that_leaves_a_noisy_daemon_ends(run_crated: RunCrated) -> None:
    """What a daemon writes after its program's end is not collected without bound."""
    run = run_crated("""
        import pytest

        @pytest.mark.crate(timeout=20)
        def test_drives(crate_sandbox):
            done = crate_sandbox.run(
                ["sh", "-c", "for i in 1 2 3 4; do dd if=/dev/zero bs=64k 2>/dev/null & done; exit 3"], text=False
            )
            assert done.returncode == 3
            assert len(done.stdout) < 64 << 20
    """)
    assert run.all_passed(), run.text
