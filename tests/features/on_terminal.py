"""Pytest on a terminal of its own, with the test at keyboard and screen."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

PATIENCE_SEC = 30.0
# select and pselect6 on x86_64, pselect6 on aarch64 (asm/unistd.h)
_SELECT = {"x86_64": ("23", "270"), "aarch64": ("72",)}.get(os.uname().machine, ())

# As a shell starts a foreground job: with the terminal as its controlling one.
_LEADER = """
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
"""

_ON_TERMINAL = f"""{_LEADER}
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
import pytest
sys.exit(pytest.main())
"""

# As a shell with job control: when the job stops it reads a line itself, and then has the job go on.
_SHELL = """
import os, signal, sys
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
job = os.fork()
if not job:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    for number in (signal.SIGTTOU, signal.SIGTSTP):
        signal.signal(number, signal.SIG_DFL)
    import pytest
    sys.exit(pytest.main())
while True:
    _, status = os.waitpid(job, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        sys.exit(os.waitstatus_to_exitcode(status))
    os.tcsetpgrp(0, os.getpid())
    print("stopped; shell read", repr(input("$ ")), flush=True)
    os.tcsetpgrp(0, job)
    os.killpg(job, signal.SIGCONT)
"""


class Session:
    """An inner run of pytest on a terminal."""

    def __init__(self, directory: Path, *args: str, by_shell: bool = False) -> None:
        self.master, self._slave = os.openpty()
        termios.tcsetwinsize(self.master, (40, 200))
        self._settings = termios.tcgetattr(self._slave)
        self._shown = ""
        options = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest", "--basetemp", str(directory / "base"))
        self.process = subprocess.Popen(
            [sys.executable, "-c", _ON_TERMINAL if not by_shell else _LEADER + _SHELL, *options, *args],
            cwd=directory,
            env={**os.environ, "TERM": "dumb", "PYTHON_COLORS": "0", "HOME": str(directory / "home")},
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            start_new_session=True,
        )

    def type(self, text: str) -> None:
        """Send keys."""
        os.write(self.master, text.encode())

    def expect(self, pattern: str) -> re.Match[str]:
        """Wait until the screen shows a pattern; what was shown up to its end is then done with."""
        end = time.monotonic() + PATIENCE_SEC
        while not (match := re.search(pattern, self._shown)):
            ready, _, _ = select.select([self.master], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{pattern!r} is not in {self._shown!r}"
            self._shown += os.read(self.master, 1 << 16).decode(errors="replace")
        self._shown = self._shown[match.end() :]
        return match

    def await_reader(self) -> None:
        """Wait until a process below pytest waits for keys, as readline does: in select(2) (proc(5), syscall).

        A signal that comes between its prompt and that is seen with the next key only, crate or not.
        """
        end = time.monotonic() + PATIENCE_SEC
        while not any(_system_call(child.pid) in _SELECT for child in psutil.Process(self.process.pid).children(True)):
            assert time.monotonic() < end, "nobody reads"
            time.sleep(0.01)

    def ends(self) -> tuple[int, str]:
        """Wait for the end; return the status and what was shown last. The terminal must be as it was."""
        end = time.monotonic() + PATIENCE_SEC
        while self.process.poll() is None or select.select([self.master], [], [], 0)[0]:
            assert time.monotonic() < end, f"it goes on: {self._shown!r}"
            if select.select([self.master], [], [], 0.02)[0]:
                self._shown += os.read(self.master, 1 << 16).decode(errors="replace")
        assert termios.tcgetattr(self._slave) == self._settings
        assert self.process.returncode is not None
        return self.process.returncode, self._shown

    def interrupt(self) -> None:
        """Send SIGINT to pytest alone, as ``kill -INT`` does."""
        self.process.send_signal(signal.SIGINT)

    def close(self) -> None:
        """Hang up, and end it if it has not ended."""
        for descriptor in (self.master, self._slave):
            os.close(descriptor)
        with self.process:
            if self.process.poll() is None:
                self.process.kill()


def _system_call(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/syscall").read_text().partition(" ")[0]
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return ""


@contextmanager
def session(directory: Path, *args: str, by_shell: bool = False) -> Iterator[Session]:
    """Run pytest on a terminal, in a directory; as a job of a shell, which can stop it, if need be."""
    (directory / "home").mkdir(exist_ok=True)
    started = Session(directory, *args, by_shell=by_shell)
    try:
        yield started
    finally:
        started.close()
