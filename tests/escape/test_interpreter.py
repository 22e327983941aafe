"""A body still runs the host's interpreter, from the host's own mount: what keeps it from writing to that one."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.needs("root", "overlay")

SOURCE = """
    import os
    import pytest

    def write():
        kept = os.open("/proc/self/exe", os.O_RDONLY)
        for way in ("/proc/self/exe", f"/proc/self/fd/{{kept}}", f"/proc/{{os.getpid()}}/exe"):
            try:
                descriptor = os.open(way, os.O_WRONLY | os.O_APPEND)
            except OSError as error:
                print("refused:", error.errno)
            else:
                print("written")
                os.write(descriptor, b"written by a body")

    @pytest.mark.crate
    def test_body():
        assert os.readlink("/proc/self/exe") == {interpreter!r}
        write()

    @pytest.mark.crate
    def test_program(crate_sandbox):
        change = 'import os; os.chmod("/proc/self/exe", 0o700); print(os.stat("/proc/self/exe").st_mode)'
        done = crate_sandbox.run([{interpreter!r}, "-S", "-c", change], check=True)
        assert int(done.stdout) & 0o777 == 0o700
"""


def refuses_writes_to_what_runs(program: Path) -> bool:
    """Return whether the kernel does (open(2), ETXTBSY): all but Linux 6.11 and 6.12 do."""
    with subprocess.Popen([program, "100"]) as process:
        try:
            os.close(os.open(program, os.O_WRONLY))
        except OSError as error:
            return error.errno == errno.ETXTBSY
        finally:
            process.kill()
    return False


def test_a_body_cannot_write_to_the_interpreter(pytester: pytest.Pytester, tmp_path: Path) -> None:
    """By /proc/self/exe, which leads out of the crate (CVE-2019-5736), it is refused while pytest runs, where the
    kernel does that; afterwards nothing of it is left that could try."""
    shutil.copy(str(shutil.which("sleep")), tmp_path / "sleep")
    refuses = refuses_writes_to_what_runs(tmp_path / "sleep")
    interpreter = pytester.path / "python"
    shutil.copy(os.path.realpath(sys.executable), interpreter)
    interpreter.chmod(0o755)
    before = interpreter.read_bytes()
    pytester.makepyfile(SOURCE.format(interpreter=str(interpreter)))
    done = subprocess.run(
        [interpreter, "-m", "pytest", "-rA", "-p", "pytest_crate.plugin", "-p", "no:cacheprovider"],
        cwd=pytester.path,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(pytester.path),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert "2 passed" in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("written") == (0 if refuses else 3), done.stdout
    assert done.stdout.count(f"refused: {errno.ETXTBSY}") == (3 if refuses else 0), done.stdout
    assert (interpreter.read_bytes() == before) is refuses
    # A program runs what its crate shows it, a private copy.
    assert interpreter.stat().st_mode & 0o777 == 0o755
    # The control: nothing but that refusal is in its way.
    with interpreter.open("ab") as file:
        file.write(b"written afterwards")
