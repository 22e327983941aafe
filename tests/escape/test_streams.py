"""What a crate's root can do to the host by its standard input, output and error."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.escape.conftest import RunHere

pytestmark = pytest.mark.needs("root", "overlay")

CHANGE = """
import contextlib, os
for number in range(3):
    with contextlib.suppress(OSError):
        os.fchmod(number, 0o600)
        os.fchown(number, 1, 1)
os.write(1, b"goes nowhere")
"""
SOURCE = """
    import os, sys
    import pytest

    CHANGE = {change!r}

    @pytest.fixture(scope="session", autouse=True)
    def null():
        kept = os.dup(0)
        with open({null!r}, "r+b") as null:
            os.dup2(null.fileno(), 0)
            yield null
        os.dup2(kept, 0)

    @pytest.mark.crate
    def test_body():
        exec(CHANGE)
        assert os.read(0, 1) == b""

    @pytest.mark.crate
    def test_program(null, crate_sandbox):
        command = [sys.executable, "-S", "-c", CHANGE]
        assert crate_sandbox.popen(command, stdin=null, stdout=null, stderr=null).wait(20) == 0
"""


@pytest.fixture
def null(tmp_path: Path) -> Path:
    """A ``/dev/null`` of the test's own."""
    path = tmp_path / "null"
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    path.chmod(0o666)
    return path


@pytest.mark.parametrize("which", ["test_body", "test_program"])
@pytest.mark.parametrize(
    "without", ["", "from pytest_crate.sandbox import child; child.use_own_null = lambda *_, **__: None"]
)
def test_the_hosts_null_is_not_the_crates_to_change(run_here: RunHere, null: Path, which: str, without: str) -> None:
    """A stream that is /dev/null is the crate's own, whose mode and owner nobody in it can change; without that
    protection they are changed on the host."""
    printed = run_here(SOURCE.format(null=str(null), change=CHANGE), without=without, args=["-s", "-k", which])
    assert "1 passed" in printed, printed
    found = null.stat()
    changed = (stat.S_IMODE(found.st_mode), found.st_uid) != (0o666, 0)
    assert changed is bool(without)


SET_FLAGS = """
import fcntl, os, stat
for number in range(100):
    with contextlib.suppress(OSError):
        if stat.S_ISREG(os.fstat(number).st_mode):
            fcntl.fcntl(number, fcntl.F_SETFL, fcntl.fcntl(number, fcntl.F_GETFL) | os.O_DIRECT)
"""
DIRECT = f"""
    import contextlib, sys
    import pytest

    SET_FLAGS = {SET_FLAGS!r}

    @pytest.mark.crate
    def test_body():
        exec(SET_FLAGS)

    @pytest.mark.crate
    def test_program(crate_sandbox):
        assert crate_sandbox.popen([sys.executable, "-S", "-c", "import contextlib" + SET_FLAGS]).wait(20) == 0

    @pytest.mark.crate
    def test_body_prints(): print("a body")

    def test_prints(): print("a test on the host")
"""


@pytest.mark.parametrize("args", [(), ("-s",)], ids=["captured", "not captured"])
@pytest.mark.parametrize("which", ["test_body or prints", "test_program or prints"])
def test_flags_of_a_stream_are_set_back(run_here: RunHere, which: str, args: tuple[str, ...]) -> None:
    """What can't be written to as it was, after a crate has set a flag of the open file that it shares with pytest, is
    mended: the next tests print what they did, and pytest what became of them."""
    printed = run_here(DIRECT, args=[*args, "-k", which])
    assert "3 passed" in printed, printed
    assert printed.count("a body") == printed.count("a test on the host") == 1
    assert "failed" not in printed


WRITE = """
import contextlib, os, sys
assert os.read(0, 100) == b"second line"
with contextlib.suppress(OSError):
    with open("/proc/self/fd/0", "ab") as file:
        file.write(b"written")
with contextlib.suppress(OSError):
    os.fchmod(0, 0o4755)
"""
GIVEN = f"""
    import os, subprocess, sys
    import pytest

    @pytest.mark.crate
    def test_program(crate_sandbox):
        with open("given", "rb", buffering=0) as given:
            assert given.readline() == b"first line\\n"
            command = [sys.executable, "-S", "-c", {WRITE!r}]
            assert crate_sandbox.popen(command, stdin=given, stdout=subprocess.DEVNULL).wait(20) == 0
            assert given.tell() == 22

    @pytest.mark.crate
    def test_directory(crate_sandbox, tmp_path):
        directory = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(ValueError, match="a directory can't be a program's stream"):
            crate_sandbox.popen(["true"], stdin=directory)
        os.close(directory)
"""


@pytest.mark.parametrize(
    "without", ["", "from pytest_crate.kernel import read_only; read_only.Reopened.of = lambda _: None"]
)
def test_a_file_that_is_given_to_be_read(run_here: RunHere, pytester: pytest.Pytester, without: str) -> None:
    """It is read from where it was, up to where the program stops, and can't be written to, nor its mode changed;
    without that protection it can. A directory is refused."""
    given = pytester.path / "given"
    given.write_text("first line\nsecond line")
    given.chmod(0o644)
    printed = run_here(GIVEN, without=without)
    assert "2 passed" in printed, printed
    changed = (given.read_text(), stat.S_IMODE(given.stat().st_mode)) != ("first line\nsecond line", 0o644)
    assert changed is bool(without)
