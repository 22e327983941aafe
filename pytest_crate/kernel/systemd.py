"""Asks systemd for a scope: a control group of our own, delegated to us, which goes when its processes have gone."""

from __future__ import annotations

import dataclasses
import os
import select
import subprocess
import time
from collections.abc import Mapping, Sequence

from pytest_crate.errors import SandboxError
from pytest_crate.kernel.cgroupfs import Refusal, read_text

# For two calls busctl(1) knows enough of D-Bus, and comes with systemd.
_CALL = "call org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager".split()
_MOVE_SECONDS = 5.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Manager:
    """A systemd that can be asked.

    :ivar runtime_directory: of the user whose manager it is; empty for the system's.
    """

    runtime_directory: str = ""

    @property
    def of_user(self) -> bool:
        """Whether it is a user's own."""
        return bool(self.runtime_directory)

    def start_scope(self, name: str, pid: int, *, slice_: str = "", proc_root: str = "/proc") -> None:
        """Make a scope, delegated to us, and have a process of ours moved into it.

        :param name: of the unit; it must end in ``.scope``.
        :param slice_: the slice to make it in, so that limits set on that hold; empty for the manager's choice.
        :raises SandboxError: systemd refuses, does not answer, or does not move the process within 5 seconds.
        """
        properties: list[Sequence[str]] = [
            ("Description", "s", "Crates of pytest"),
            ("PIDs", "au", "1", str(pid)),
            ("Delegate", "b", "true"),
            ("CollectMode", "s", "inactive-or-failed"),  # nothing of it is kept, however it ends
        ]
        if slice_:
            properties.append(("Slice", "s", slice_))
        arguments = [name, "fail", str(len(properties)), *(word for words in properties for word in words), "0"]
        before = _membership(pid, proc_root)
        self._call("ask systemd for a scope", ["StartTransientUnit", "ssa(sv)a(sa(sv))", *arguments])
        _wait_for_move("ask systemd for a scope", pid, before, proc_root)

    def delegates(self, unit: str) -> bool:
        """Tell whether a unit may divide its control group as it likes; not one that this manager doesn't know.

        :raises SandboxError: systemctl(1) can't be run, or does not answer.
        """
        done = self._run("ask systemd of a unit", ["systemctl", "show", "--property=Delegate", "--value", "--", unit])
        return done.stdout.strip() == "yes"

    def attach(self, name: str, pid: int, *, proc_root: str = "/proc") -> None:
        """Have a process of ours moved into a scope of ours, also from where we may not take it ourselves.

        :raises SandboxError: as for :meth:`start_scope`.
        """
        step = "have systemd move pytest into the scope"
        before = _membership(pid, proc_root)
        self._call(step, ["AttachProcessesToUnit", "ssau", name, "", "1", str(pid)])
        _wait_for_move(step, pid, before, proc_root)

    def _call(self, step: str, arguments: Sequence[str]) -> None:
        done = self._run(step, ["busctl", "--quiet", "--timeout=5", *_CALL, *arguments])
        if done.returncode:
            raise SandboxError(step, syscall="busctl", detail=done.stderr.strip() or f"exit status {done.returncode}")

    def _run(self, step: str, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        environ: Mapping[str, str] = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
        whose = "--system"
        if self.of_user:
            whose = "--user"
            environ = {**environ, "XDG_RUNTIME_DIR": self.runtime_directory}
        program, *arguments = command
        try:
            return subprocess.run(
                [program, whose, *arguments],
                env=environ,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            )
        except OSError as error:
            raise SandboxError(step, syscall="execve", path=program, errno=error.errno) from error
        except subprocess.TimeoutExpired as error:
            raise SandboxError(step, syscall=program, detail="no answer within 10 s") from error


def find_manager(*, euid: int | None = None, run: str = "/run") -> Manager | Refusal | None:
    """Return the systemd to ask: root the system's, everybody else their own.

    :param run: where systemd shows that it runs (sd_booted(3)), and has its sockets.
    :returns: None where the host is not systemd's; a refusal where it is, and nobody is there to be asked.
    """
    euid = os.geteuid() if euid is None else euid
    if not os.path.isdir(f"{run}/systemd/system"):
        return None
    if euid == 0:
        if os.path.exists(f"{run}/dbus/system_bus_socket"):
            return Manager()
        return Refusal(reason=f"systemd's bus is missing ({run}/dbus/system_bus_socket)", hint="sudo apt install dbus")
    directory = f"{run}/user/{euid}"
    if os.path.exists(f"{directory}/bus"):
        return Manager(runtime_directory=directory)
    return Refusal(
        reason=f"no systemd of this user's own runs ({directory}/bus is missing)",
        hint="sudo loginctl enable-linger $USER && sudo apt install dbus-user-session",
    )


def slice_of(membership: str, manager: Manager) -> str:
    """Return the innermost slice of a manager's that a process is in; empty if it is in none.

    :param membership: the process's v2 control group, as ``/proc/self/cgroup`` names it.
    """
    parts = membership.split("/")
    own = [number for number, part in enumerate(parts) if part.startswith("user@") and part.endswith(".service")]
    if manager.of_user:
        # What is not below its service is the system manager's.
        parts = parts[own[-1] + 1 :] if own else []
    elif own:
        parts = parts[: own[0]]
    slices = [part for part in parts if part.endswith(".slice")]
    return slices[-1] if slices else ""


def unit_of(directory: str) -> tuple[str, bool]:
    """Return the control group of the unit that a control group belongs to, and whether it is a user's own manager's.

    :returns: an empty string if no unit is to be seen, as in a container with a cgroup namespace of its own.
    """
    while directory != "/":
        above = os.path.dirname(directory)
        if directory.endswith((".service", ".scope")):
            return directory, any(part.startswith("user@") for part in above.split("/"))
        directory = above
    return "", False


def _membership(pid: int, proc_root: str) -> str:
    return read_text(f"{proc_root}/{pid}/cgroup") or ""


def _wait_for_move(step: str, pid: int, before: str, proc_root: str) -> None:
    """Wait until a process is elsewhere: systemd answers before its job is done, and nothing else tells that it is."""
    deadline = time.monotonic() + _MOVE_SECONDS
    while _membership(pid, proc_root) == before:
        if time.monotonic() > deadline:
            raise SandboxError(step, detail=f"process {pid} was not moved within {_MOVE_SECONDS:g} s")
        select.poll().poll(2)
