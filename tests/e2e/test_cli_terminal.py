"""``pytest-crate run`` and ``shell`` on a real terminal."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.needs("root", "overlay")

# As a shell starts a foreground job: with the terminal as its controlling one.
_ON_TERMINAL = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from pytest_crate.cli import main
sys.exit(main())
"""
# As such a shell, which takes the terminal back when it is told to (SIGUSR1), and lets the job have it once that stops.
_AS_JOB = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
signal.signal(signal.SIGUSR1, lambda *_: os.tcsetpgrp(0, os.getpgrp()))
job = os.fork()
if not job:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    from pytest_crate.cli import main
    sys.exit(main())
_, status = os.waitpid(job, os.WUNTRACED)
assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGTTOU
os.tcsetpgrp(0, job)
os.kill(job, signal.SIGCONT)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(job, 0)[1]))
"""
_PATIENCE_SEC = 20.0


class Session:
    """The command on a terminal of 30 rows and 100 columns, with us at keyboard and screen."""

    def __init__(self, *args: str, cwd: Path, stderr: int | None = None, script: str = _ON_TERMINAL) -> None:
        self.master, self.slave = os.openpty()
        termios.tcsetwinsize(self.master, (30, 100))
        self.settings = termios.tcgetattr(self.slave)
        self.shown = ""
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, *args],
            cwd=cwd,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave if stderr is None else stderr,
            start_new_session=True,
        )

    def type(self, text: str) -> None:
        """Send keys."""
        os.write(self.master, text.encode())

    def paste(self, text: str) -> None:
        """Send much at once, and look at the screen meanwhile, as a terminal emulator does."""
        os.set_blocking(self.master, False)
        left = text.encode()
        while left:
            readable, writable, _ = select.select([self.master], [self.master], [], _PATIENCE_SEC)
            assert readable or writable, f"{len(left)} bytes are not taken"
            if readable:
                self.shown += os.read(self.master, 4096).decode()
            if writable:
                left = left[os.write(self.master, left[:1000]) :]

    def expect(self, pattern: str) -> re.Match[str]:
        """Wait until the screen shows a pattern; what was shown up to its end is then done with."""
        end = time.monotonic() + _PATIENCE_SEC
        while not (match := re.search(pattern, self.shown)):
            ready, _, _ = select.select([self.master], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{pattern!r} is not in {self.shown!r}"
            self.shown += os.read(self.master, 4096).decode(errors="replace")
        self.shown = self.shown[match.end() :]
        return match

    def ends(self) -> int:
        """Wait for the end and return the status; the terminal must be what it was."""
        status = self.process.wait(_PATIENCE_SEC)
        assert termios.tcgetattr(self.slave) == self.settings
        return status

    def is_raw(self) -> bool:
        """Whether the terminal hands on each key."""
        return not termios.tcgetattr(self.slave)[3] & termios.ICANON

    def close(self) -> None:
        """Hang up, and end it if it has not."""
        for descriptor in (self.master, self.slave):
            if descriptor >= 0:
                os.close(descriptor)
        self.master = self.slave = -1
        with self.process:
            if self.process.poll() is None:
                self.process.kill()


Start = Callable[..., Session]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start ``pytest-crate`` on a terminal of its own."""
    with ExitStack() as stack:

        def start_session(*args: str, stderr: int | None = None, script: str = _ON_TERMINAL) -> Session:
            session = Session(*args, cwd=tmp_path, stderr=stderr, script=script)
            stack.callback(session.close)
            return session

        yield start_session


def test_a_terminal_of_the_crates_own(start: Start) -> None:
    """The program's terminal is the first of the crate's devpts, its controlling one, and has our size."""
    session = start("run", "host", "sh", "-c", "tty; stty size; : > /dev/tty && echo controlling; exit 7")
    session.expect("/dev/pts/0\r\n30 100\r\ncontrolling\r\n")
    assert session.ends() == 7


def test_another_users_terminal(start: Start) -> None:
    """A program that runs as another user can open its terminal by name."""
    session = start("run", "--user", "nobody", "host", "sh", "-c", "echo by name > $(tty)")
    session.expect("by name\r\n")
    assert session.ends() == 0


def test_resize_is_forwarded(start: Start) -> None:
    """When our terminal changes its size, the crate's does too and the program gets SIGWINCH."""
    session = start("run", "host", "sh", "-c", "trap 'stty size' WINCH; echo ready; while :; do sleep 0.02; done")
    session.expect("ready")
    termios.tcsetwinsize(session.master, (50, 132))
    session.expect("50 132\r\n")
    session.type("\x03")
    assert session.ends() == 128 + signal.SIGINT


def test_interrupt_is_the_programs(start: Start) -> None:
    """Ctrl-C is the program's to handle; it does not end us."""
    session = start(
        "run", "host", "sh", "-c", "trap 'echo caught; exit 3' INT; echo ready; while :; do sleep 0.02; done"
    )
    session.expect("ready")
    session.type("\x03")
    session.expect("caught")
    assert session.ends() == 3


def test_end_of_input(start: Start) -> None:
    """Ctrl-D at the beginning of a line ends the program's input."""
    session = start("run", "host", "cat")
    session.type("a line\r")
    session.expect("a line\r\na line\r\n")  # the echo, then cat
    session.type("\x04")
    assert session.ends() == 0


def test_single_keys(start: Start) -> None:
    """A program that wants single keys, as an editor does, gets each at once, unprintable ones as they are."""
    read = "import os, tty; tty.setraw(0); os.write(1, b'ready'); os.write(1, os.read(0, 1).hex().encode())"
    session = start("run", "host", sys.executable, "-c", read)
    session.expect("ready")
    assert session.is_raw()
    session.type("\x03")
    session.expect("03")
    assert session.ends() == 0


def test_job_control(start: Start) -> None:
    """A shell stops a job with Ctrl-Z, resumes it, and interrupts it, and itself stays."""
    session = start("run", "--env", "PS1=$ ", "host", "sh", "-i")
    session.expect(r"\$ ")
    session.type("sleep 60\r")
    session.expect(r"sleep 60\r\n")
    while not _runs(session, "sleep"):
        time.sleep(0.01)
    session.type("\x1a")
    session.expect("Stopped|suspended")
    session.type("jobs; fg\r")
    session.expect(r"(?s)sleep 60.*sleep 60\r\n")
    # The shell tells first, then gives the job the terminal, and then has it go on.
    while _runs(session, "sleep", psutil.STATUS_STOPPED):
        time.sleep(0.01)
    session.type("\x03")
    session.expect(r"\$ ")
    session.type("echo status $?; exit 9\r")
    session.expect("status 130\r\n")
    assert session.ends() == 9


def _runs(session: Session, name: str, status: str | None = None) -> bool:
    """Whether a program of that name runs, or is in a state, below the session's process."""
    found = psutil.Process(session.process.pid).children(recursive=True)
    named = [process for process in found if process.name() == name and process.terminal() is not None]
    return any(status in (None, process.status()) for process in named)


def test_all_output_is_shown(start: Start) -> None:
    """What a program writes just before it ends is shown, to the last line."""
    session = start("run", "host", "sh", "-c", "seq 1 20000; echo last")
    session.expect(r"(?s)\b1\r\n2\r\n.*\r\n19999\r\n20000\r\nlast\r\n")
    assert session.ends() == 0


def test_large_paste(start: Start) -> None:
    """A program that does not read yet gets all of a large input later, and its output does not stop meanwhile."""
    script = "import os, time; os.write(1, b'x' * 200_000); print(sum(len(input()) for _ in range(500)))"
    session = start("run", "host", sys.executable, "-c", script)
    session.paste(("y" * 99 + "\r") * 500)
    session.expect("49500\r\n")
    assert session.ends() == 0


def test_redirected_errors(start: Start, tmp_path: Path) -> None:
    """Standard error goes where it was redirected to, not through the terminal."""
    with (tmp_path / "errors").open("wb") as errors:
        session = start("run", "host", "sh", "-c", "echo shown; printf 'a\\nb\\n' >&2", stderr=errors.fileno())
        session.expect("shown\r\n")
        assert session.ends() == 0
    assert (tmp_path / "errors").read_bytes() == b"a\nb\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_restore_the_terminal(start: Start, number: signal.Signals) -> None:
    """A signal that ends us ends the program, too, and gives the terminal its settings back."""
    session = start("run", "host", "sh", "-c", "echo ready; exec sleep 60")
    session.expect("ready")
    assert session.is_raw()
    session.process.send_signal(number)
    assert session.ends() == 128 + number


def test_a_program_that_ends_in_the_background(start: Start, tmp_path: Path) -> None:
    """The terminal gets its settings back when the job has it again: until then the kernel stops who would set them."""
    script = "echo ready; until test -e /shared/end; do sleep 0.05; done"
    session = start("run", "--mount", f"{tmp_path}:/shared", "host", "sh", "-c", script, script=_AS_JOB)
    session.expect("ready")
    assert session.is_raw()
    session.process.send_signal(signal.SIGUSR1)
    _await(lambda: os.tcgetpgrp(session.master) == session.process.pid)
    (tmp_path / "end").touch()
    assert session.ends() == 0
    assert termios.tcgetattr(session.slave) == session.settings


def test_a_stop_restores_the_terminal(start: Start) -> None:
    """While we are stopped by a signal the terminal is what it was, and afterwards the program's again."""
    session = start("run", "host", "sh", "-c", "echo ready; read line; exit 5")
    session.expect("ready")
    assert session.is_raw()
    session.process.send_signal(signal.SIGTSTP)
    _await(lambda: psutil.Process(session.process.pid).status() == psutil.STATUS_STOPPED)
    assert termios.tcgetattr(session.slave) == session.settings
    session.process.send_signal(signal.SIGCONT)
    _await(session.is_raw)
    session.type("\r")
    assert session.ends() == 5


def test_a_terminal_that_stalls(start: Start) -> None:
    """Output that nobody takes any more doesn't keep a signal from ending us."""
    session = start("run", "host", "yes")
    session.expect("y\r\ny")
    queued = -1
    while queued != (queued := _queued(session.master)):
        time.sleep(0.1)
    session.process.terminate()
    assert session.ends() == 128 + signal.SIGTERM


def _await(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + _PATIENCE_SEC
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def _queued(descriptor: int) -> int:
    """Return how many bytes there are to be read."""
    (count,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))
    return int(count)


def test_a_dead_launcher_restores_the_terminal(start: Start) -> None:
    """When the process that holds the crate is killed, we say so, with the terminal as it was.

    Its programs end with it; the cgroups that it could no longer remove are the next run's to remove.
    """
    session = start("run", "host", "sh", "-c", "echo ready; exec sleep 60")
    session.expect("ready")
    (launcher,) = psutil.Process(session.process.pid).children()
    launcher.kill()
    session.expect("pytest-crate run: run a program: the launcher ended before it")
    assert session.ends() == 125
    assert start("run", "host", "true").ends() == 0


def test_hanging_up_ends_it(start: Start) -> None:
    """When the terminal's window is closed, the program ends; nothing is left (the fixture for all tests looks)."""
    session = start("run", "host", "sh", "-c", "trap '' HUP; echo ready; sleep 60; sleep 60")
    session.expect("ready")
    os.close(session.slave)
    os.close(session.master)
    session.master = session.slave = -1
    assert session.process.wait(_PATIENCE_SEC) == 128 + signal.SIGKILL


def test_a_program_that_closes_its_terminal(start: Start) -> None:
    """A program that has closed its terminal still runs, without making us busy."""
    session = start("run", "host", "sh", "-c", "echo ready; exec sleep 0.5 <&- >&- 2>&-")
    session.expect("ready")
    before = psutil.Process(session.process.pid).cpu_times()
    time.sleep(0.3)
    after = psutil.Process(session.process.pid).cpu_times()
    assert after.user + after.system - before.user - before.system < 0.1
    assert session.ends() == 0


@pytest.mark.needs("memory limit")
def test_limits_are_said(start: Start) -> None:
    """What was exceeded is said below the program's own output, on a terminal that is itself again."""
    session = start("run", "--memory", "64m", "host", sys.executable, "-c", "print('eats'); x = bytearray(200 << 20)")
    session.expect("eats\r\n.*pytest-crate run: memory limit 64 MiB exceeded\r\n")
    assert session.ends() == 128 + signal.SIGKILL


def test_shell_of_an_image(start: Start, alpine_image: Path, tmp_path: Path) -> None:
    """``shell`` opens the image's login shell with job control, its prompt and its home directory."""
    session = start("shell", "--store", str(tmp_path / "store"), "--hostname", "box", str(alpine_image))
    session.expect("/ # ")
    session.type("echo $0 $HOME $(hostname); exit 4\r")
    session.expect("/bin/sh /root box\r\n")
    assert session.ends() == 4
    assert "job control" not in session.shown
