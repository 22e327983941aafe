"""Bodies and programs on real root filesystems."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import RunCrated

pytestmark = pytest.mark.needs("root", "overlay")


@pytest.fixture(params=["debian", "alpine"])
def image(request: pytest.FixtureRequest) -> Path:
    """Each of the real images."""
    path: Path = request.getfixturevalue(f"{request.param}_image")
    return path


SUITE = """
    import os, subprocess, sys
    from pathlib import Path
    import pytest
    from pytest_crate.errors import SandboxError

    pytestmark = pytest.mark.crate(image={image!r})
    NAME = {name!r}

    @pytest.fixture(scope="session", autouse=True)
    def host_is_another_system():
        Path("/etc/outside-only").touch()
        yield
        os.unlink("/etc/outside-only")

    def test_program(crate_sandbox):
        done = crate_sandbox.run(["cat", "/etc/os-release"], check=True)
        assert f'ID={{NAME}}\\n' in done.stdout
        assert done.stderr == ""
        assert crate_sandbox.read_text("/etc/os-release") == done.stdout

    def test_missing_program(crate_sandbox):
        with pytest.raises(SandboxError, match="no-such-program"):
            crate_sandbox.run(["no-such-program"])

    def test_program_finds_an_ordinary_system(crate_sandbox):
        assert crate_sandbox.run(["pwd"], check=True).stdout == "/\\n"
        assert crate_sandbox.run(["sh", "-c", "echo $HOME"], user="root", check=True).stdout == "/root\\n"
        script = "touch /etc/new /usr/new && rm -r /home && mkdir /tmp/a && ls /dev"
        done = crate_sandbox.run(["sh", "-c", script], check=True)
        assert "null" in done.stdout.split()
        assert crate_sandbox.run(["id", "-u"], user="nobody", check=True).stdout == "65534\\n"

    def test_body():
        assert f'ID={{NAME}}' in Path("/etc/os-release").read_text().splitlines()
        assert not os.path.exists("/etc/outside-only")
        assert not os.path.exists("/etc/new")

    @pytest.mark.parametrize("module", ["ssl", "sqlite3", "ctypes", "decimal", "lzma", "multiprocessing", "zlib", "bz2",
                                        "hashlib", "asyncio", "uuid", "readline", "curses", "zoneinfo"])
    def test_body_imports(module):
        __import__(module)

    def test_modules_work(tmp_path):
        import ctypes, decimal, hashlib, lzma, sqlite3, ssl
        assert decimal.Decimal("0.1") + decimal.Decimal("0.2") == decimal.Decimal("0.3")
        assert lzma.decompress(lzma.compress(b"text")) == b"text"
        assert hashlib.sha256(b"").hexdigest().startswith("e3b0c442")
        database = sqlite3.connect(tmp_path / "database")
        database.execute("create table numbers (n)")
        database.execute("insert into numbers values (42)")
        database.commit()
        assert database.execute("select n from numbers").fetchall() == [(42,)]
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        assert ctypes.CDLL(None).getpid() == os.getpid()

    def test_images_own_programs():
        done = subprocess.run(["cat", "/etc/os-release"], capture_output=True, text=True, check=True)
        assert f'ID={{NAME}}\\n' in done.stdout
        assert done.stderr == ""
        listing = subprocess.run("ls -d /etc | tr a-z A-Z", shell=True, capture_output=True, text=True, check=True)
        assert listing.stdout == "/ETC\\n"

    def test_own_python_on_the_image():
        script = "import ctypes, json, lzma, sqlite3, ssl, uuid; print(open('/etc/os-release').read())"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert done.stderr == ""
        assert done.returncode == 0
        assert f'ID={{NAME}}\\n' in done.stdout

    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_pool(method):
        import multiprocessing
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.map(abs, [-1, 2, -3]) == [1, 2, 3]

    def test_project_is_read_only():
        assert Path(__file__).read_text().startswith("import os")
        with pytest.raises(OSError, match="Read-only"):
            Path(__file__).write_text("")

    @pytest.mark.parametrize("again", range(2))
    def test_writes_are_private(again, tmp_path):
        for directory in "/", "/etc", "/usr/bin", "/tmp", "/var", "/root":
            file = Path(directory, "new-file")
            assert not file.exists()
            file.write_text("written")
        (tmp_path / "kept").write_text("kept")
        os.rename("/etc", "/moved")
"""


def test_bodies_and_programs(run_crated: RunCrated, image: Path, pytester: pytest.Pytester) -> None:
    """On a real image, programs are the image's; a body is at home there too: it reads the image's files, imports what
    needs shared libraries of the host's, runs the image's programs and its own interpreter, and keeps tmp_path; no
    write is seen by the next test."""
    source = SUITE.format(image=str(image), name=image.name.partition("-")[0])
    run = run_crated(source, "-o", "tmp_path_retention_policy=all")
    assert run.all_passed()
    kept = list((pytester.path / "runpytest-0").glob("test_writes_are_private_?_0/kept"))
    assert [path.read_text() for path in kept] == ["kept", "kept"]


@pytest.mark.needs("memory limit")
def test_limits_hold_on_an_image(run_crated: RunCrated, alpine_image: Path) -> None:
    """A program of an image that takes more memory than it may is killed, by name in its result; the crate goes on."""
    run = run_crated(f"""
        import pytest

        @pytest.mark.crate(image={str(alpine_image)!r}, memory="32m")
        def test_program(crate_sandbox):
            done = crate_sandbox.run(["dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1"])
            assert done.returncode == -9
            assert done.exceeded == ("memory",)
            assert crate_sandbox.run(["true"], check=True).exceeded == ()
    """)
    assert run.outcomes == {"test_program": "passed"}
    assert run.crate("test_program")["exceeded"] == ["memory"]
    assert run.tests["test_program"]["spec"]["image"] == str(alpine_image)
