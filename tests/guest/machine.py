"""A guest that runs: booted from a snapshot of the disk, driven by ssh over loopback, switched off at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from tests.guest.image import GuestImage

_BOOT_SECONDS = 600.0
_OFF_SECONDS = 30.0


class GuestError(Exception):
    """The guest did not start; the end of what its console said is in the message."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A guest that answers.

    :ivar console: the file with what its console says.
    """

    image: GuestImage
    port: int
    directory: Path
    console: Path
    shared: ClassVar[bool] = False

    def run(
        self, command: str | Sequence[str], *, user: str = "root", seconds: float = 600, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command by the user's login shell, in a session of its own; its output as text."""
        text = command if isinstance(command, str) else shlex.join(command)
        done = subprocess.run(
            [*self._ssh(user), text],
            input=stdin if stdin is not None else b"",
            capture_output=True,
            check=False,
            timeout=seconds,
        )
        return subprocess.CompletedProcess(
            text, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        )

    def send(self, source: Path, target: str, *names: str) -> None:
        """Copy files of a directory into one of the guest's.

        :param names: of files and directories below the source; none means all.
        """
        packed = subprocess.run(
            ["tar", "-C", str(source), "--exclude=__pycache__", "-c", *(names or ["."])],
            check=True,
            capture_output=True,
        ).stdout
        done = self.run(
            f"mkdir -p {shlex.quote(target)} && tar -C {shlex.quote(target)} -x --no-same-owner", stdin=packed
        )
        if done.returncode:
            raise GuestError(f"{target} could not be written: {done.stderr}")

    def _ssh(self, user: str) -> list[str]:
        options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "ConnectTimeout=20"]
        # One connection a user: a handshake takes a second under emulation. Each command is a session of its own.
        options += ["ControlMaster=auto", "ControlPersist=yes", f"ControlPath={self.directory}/%r"]
        return [
            "ssh",
            *(f"-o{option}" for option in options),
            "-i",
            str(self.image.key),
            "-p",
            str(self.port),
            f"{user}@127.0.0.1",
        ]

    def hang_up(self) -> None:
        """Close the connections."""
        for control in self.directory.iterdir():
            if control.is_socket():
                subprocess.run([*self._ssh(control.name), "-Oexit"], check=False, capture_output=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def booted(image: GuestImage, directory: Path, *, kernel: str, memory: str = "3G") -> Iterator[Guest]:
    """Start a guest and wait until it lets us in: half a minute where nothing else runs.

    :param directory: for its console's file and our connections.
    :param kernel: one of :attr:`GuestImage.kernels`.
    :raises GuestError: it does not start.
    """
    port = _free_port()
    console = directory / "console"
    argv = [
        "qemu-system-x86_64",
        *("-accel", "tcg,thread=multi", "-cpu", "max,la57=off,cx16=off", "-m", memory, "-smp", "2"),
        *("-display", "none", "-no-reboot", "-serial", f"file:{console}", "-monitor", "none"),
        *(
            "-kernel",
            str(image.directory / f"vmlinuz-{kernel}"),
            "-initrd",
            str(image.directory / f"initrd.img-{kernel}"),
        ),
        *("-append", "root=/dev/vda rw console=ttyS0 net.ifnames=0 quiet"),
        *("-drive", f"file={image.disk},format=raw,if=virtio,snapshot=on"),
        # No way out of the guest: only ours in, over loopback.
        *("-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22", "-device", "virtio-net,netdev=net"),
        *("-device", "virtio-rng"),
    ]
    machine = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    guest = Guest(image=image, port=port, directory=directory, console=console)
    try:
        _wait_until_it_answers(guest, machine)
        yield guest
        guest.run("systemctl poweroff --no-block", seconds=60)
    finally:
        guest.hang_up()
        try:
            machine.wait(_OFF_SECONDS)
        except subprocess.TimeoutExpired:
            machine.kill()
        machine.communicate()


def _wait_until_it_answers(guest: Guest, machine: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _BOOT_SECONDS
    while machine.poll() is None and time.monotonic() < deadline:
        # The port is open from the start; sshd's greeting comes when it runs.
        try:
            with socket.create_connection(("127.0.0.1", guest.port), timeout=5) as probe:
                greeted = probe.recv(4).startswith(b"SSH")
        except OSError:
            greeted = False
        if greeted and guest.run("systemctl is-system-running --wait", seconds=_BOOT_SECONDS).stdout.strip():
            return
        time.sleep(0.5)
    said = guest.console.read_text(errors="replace")[-2000:] if guest.console.exists() else ""
    output = machine.stdout.read().decode() if machine.poll() is not None and machine.stdout is not None else ""
    raise GuestError(f"the guest did not answer within {_BOOT_SECONDS:g} s\n{output}{said}")
