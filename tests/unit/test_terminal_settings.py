"""A terminal's settings are set back by who is in its foreground only, and nobody is stopped."""

from __future__ import annotations

import os
import subprocess
import sys
import termios

from pytest_crate.kernel.terminal_settings import TerminalSettings

# A session's leader on a terminal, with a job in the foreground or in the background.
_JOB = """
import fcntl, os, signal, sys, termios
from pytest_crate.kernel.terminal_settings import TerminalSettings
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
if sys.argv[1] == "background" and os.fork():
    pid, status = os.waitpid(-1, os.WUNTRACED)
    sys.exit(1 if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status))
if sys.argv[1] == "background":
    os.setpgid(0, 0)
noted = TerminalSettings(0)
if sys.argv[2] == "flow":
    noted.let_flow()
else:
    settings = termios.tcgetattr(0)
    settings[3] &= ~termios.ECHO
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    termios.tcsetattr(0, termios.TCSANOW, settings)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTTOU})
    noted.restore()
os.write(0, b"written")
"""


def _echoes_after(*how: str) -> bool:
    master, slave = os.openpty()
    try:
        if how[-1] == "flow":
            termios.tcflow(slave, termios.TCOOFF)
        subprocess.run([sys.executable, "-c", _JOB, *how], stdin=slave, start_new_session=True, check=True, timeout=60)
        assert os.read(master, 100) == b"written"
        return bool(termios.tcgetattr(slave)[3] & termios.ECHO)
    finally:
        os.close(master)
        os.close(slave)


def test_in_the_foreground() -> None:
    """They are as they were when they were noted."""
    assert _echoes_after("foreground", "restore")


def test_in_the_background() -> None:
    """They are those of another's, who has the foreground: they are left, and setting them does not stop the job."""
    assert not _echoes_after("background", "restore")


def test_suspended_output() -> None:
    """It goes on, whoever is in the foreground."""
    for where in "foreground", "background":
        assert _echoes_after(where, "flow")


def test_no_terminal() -> None:
    """Nothing happens to another file, to a closed one, and to a terminal of another session."""
    reading, writing = os.pipe()
    os.close(reading)
    noted = TerminalSettings(writing)
    noted.restore()
    os.close(writing)
    noted.restore()
    TerminalSettings(writing).restore()
    master, slave = os.openpty()
    noted = TerminalSettings(slave)
    settings = termios.tcgetattr(slave)
    settings[3] &= ~termios.ECHO
    termios.tcsetattr(slave, termios.TCSANOW, settings)
    noted.restore()
    assert termios.tcgetattr(slave) == settings
    os.close(master)
    noted.restore()
    os.close(slave)
