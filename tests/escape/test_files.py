"""What a program in a crate can do to pytest by a file that a test on the host reads, or writes."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.escape.conftest import RunHere

pytestmark = pytest.mark.needs("root", "overlay")

HANGS_UP = textwrap.dedent("""
    import os, pty, sys
    controller, terminal = pty.openpty()
    os.symlink(os.ttyname(terminal), "/tmp/result")
    os.close(terminal)
    print("ready", flush=True)
    sys.stdin.readline()
    os.close(controller)
""")

SOURCE = f"""
    import os, subprocess, sys
    import pytest
    from pytest_crate import SandboxError

    FILE = "/tmp/result"
    os.setsid()

    @pytest.mark.crate
    @pytest.mark.parametrize("use", ["read_text(FILE)", "write_text(FILE, 'x')", "run([FILE])"])
    def test_uses(crate_sandbox, use):
        program = crate_sandbox.popen(
            [sys.executable, "-S", "-c", {HANGS_UP!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert program.stdout.readline() == "ready\\n"
        with pytest.raises(SandboxError):
            eval("crate_sandbox." + use)
        with pytest.raises(OSError):
            open("/dev/tty")  # pytest has no terminal (tty(4))
        program.communicate("hang up\\n")

    def test_next(): pass
"""


def test_a_terminal_in_the_place_of_a_file_does_not_become_pytests(run_here: RunHere) -> None:
    """A pytest that leads a session without a terminal, as in CI, gets none by opening what a program has put in the
    place of a file: its end would be the program's to bring about, by hanging up."""
    printed = run_here(SOURCE)
    assert "4 passed" in printed, printed
