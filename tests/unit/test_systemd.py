"""Which systemd is asked, for what, and how its answers are taken; with stand-ins for its programs."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import systemd
from pytest_crate.kernel.cgroupfs import Refusal
from pytest_crate.kernel.systemd import Manager, find_manager, slice_of, unit_of

SYSTEM = Manager()
USER = Manager(runtime_directory="/run/user/1000")


def make(run: Path, *paths: str) -> str:
    for path in paths:
        (run / path).parent.mkdir(parents=True, exist_ok=True)
        (run / path).touch()
    return str(run)


def test_a_host_without_systemd(tmp_path: Path) -> None:
    """Where systemd doesn't run there is nobody, and nothing to complain of."""
    assert find_manager(euid=0, run=str(tmp_path)) is None


def test_root_asks_the_system(tmp_path: Path) -> None:
    """Root asks the system's manager; without its bus the reason says what is missing."""
    (tmp_path / "systemd/system").mkdir(parents=True)
    assert find_manager(euid=0, run=str(tmp_path)) == Refusal(
        reason=f"systemd's bus is missing ({tmp_path}/dbus/system_bus_socket)", hint="sudo apt install dbus"
    )
    assert find_manager(euid=0, run=make(tmp_path, "dbus/system_bus_socket")) == SYSTEM


def test_users_ask_their_own(tmp_path: Path) -> None:
    """A user's own manager has its bus in the user's runtime directory; the remedy for none is lingering."""
    (tmp_path / "systemd/system").mkdir(parents=True)
    refusal = find_manager(euid=1000, run=str(tmp_path))
    assert isinstance(refusal, Refusal)
    assert refusal.reason == f"no systemd of this user's own runs ({tmp_path}/user/1000/bus is missing)"
    assert refusal.hint == "sudo loginctl enable-linger $USER && sudo apt install dbus-user-session"
    found = find_manager(euid=1000, run=make(tmp_path, "user/1000/bus"))
    assert found == Manager(runtime_directory=f"{tmp_path}/user/1000")


@pytest.mark.parametrize(
    ("membership", "of_system", "of_user"),
    [
        ("/user.slice/user-0.slice/session-2.scope", "user-0.slice", ""),
        ("/system.slice/runner.service/job", "system.slice", ""),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/x.service", "user-1000.slice", "app.slice"),
        ("/user.slice/user-1000.slice/user@1000.service/init.scope", "user-1000.slice", ""),
        ("/", "", ""),
    ],
)
def test_slice(membership: str, of_system: str, of_user: str) -> None:
    """A scope goes where its manager has put what is around pytest, so that a limit on that slice holds."""
    assert (slice_of(membership, SYSTEM), slice_of(membership, USER)) == (of_system, of_user)


@pytest.mark.parametrize(
    ("directory", "unit"),
    [
        ("/sys/fs/cgroup/system.slice/runner.service/job/1", ("/sys/fs/cgroup/system.slice/runner.service", False)),
        ("/c/user.slice/user@7.service/app.slice/x.scope", ("/c/user.slice/user@7.service/app.slice/x.scope", True)),
        ("/c/user.slice/user@7.service", ("/c/user.slice/user@7.service", False)),
        ("/sys/fs/cgroup/docker/1f", ("", False)),
    ],
)
def test_unit(directory: str, unit: tuple[str, bool]) -> None:
    """The innermost unit counts, and whose it is."""
    assert unit_of(directory) == unit


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[list[str], dict[str, str]]]:
    """The commands run and their environments; the process is moved by the first."""
    made: list[tuple[list[str], dict[str, str]]] = []
    membership = tmp_path / "7" / "cgroup"
    membership.parent.mkdir()
    membership.write_text("0::/before\n")

    def run(command: list[str], *, env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
        made.append((command, env))
        membership.write_text("0::/after\n")
        return subprocess.CompletedProcess(command, 0, "yes\n", "")

    monkeypatch.setattr(subprocess, "run", run)
    return made


def test_scope(calls: list[tuple[list[str], dict[str, str]]], tmp_path: Path) -> None:
    """A scope is delegated, holds the process, is in the slice, and is forgotten when it fails."""
    USER.start_scope("x.scope", 7, slice_="app.slice", proc_root=str(tmp_path))
    ((command, environ),) = calls
    assert command[:2] == ["busctl", "--user"]
    assert environ["XDG_RUNTIME_DIR"] == "/run/user/1000"
    text = " ".join(command)
    assert "StartTransientUnit ssa(sv)a(sa(sv)) x.scope fail 5 " in text
    for part in ("PIDs au 1 7", "Delegate b true", "CollectMode s inactive-or-failed", "Slice s app.slice"):
        assert part in text
    assert command[-1] == "0"


def test_attach(calls: list[tuple[list[str], dict[str, str]]], tmp_path: Path) -> None:
    """The system's manager is asked without a user's variables; the process goes to the scope itself."""
    SYSTEM.attach("x.scope", 7, proc_root=str(tmp_path))
    ((command, environ),) = calls
    assert command[:2] == ["busctl", "--system"]
    assert command[-6:] == ["AttachProcessesToUnit", "ssau", "x.scope", "", "1", "7"]
    assert "XDG_RUNTIME_DIR" not in environ


def test_delegates(calls: list[tuple[list[str], dict[str, str]]]) -> None:
    """Whether a unit is delegated is its manager's to say."""
    assert USER.delegates("x.service")
    assert calls[0][0] == ["systemctl", "--user", "show", "--property=Delegate", "--value", "--", "x.service"]


def test_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What systemd says is in the error; so is that it doesn't say anything, or can't be asked."""

    def fail(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "Call failed: Access denied\n")

    def hang(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        raise subprocess.TimeoutExpired(command, 10)

    def lack(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        raise FileNotFoundError(2, "No such file or directory")

    for stand_in, words in ((fail, "Access denied"), (hang, "no answer within 10 s"), (lack, "No such file")):
        monkeypatch.setattr(subprocess, "run", stand_in)
        with pytest.raises(SandboxError, match=words):
            USER.start_scope("x.scope", 1)


def test_not_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An answer alone is not enough: the process must be elsewhere."""
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cgroup").write_text("0::/before\n")
    monkeypatch.setattr(systemd, "_MOVE_SECONDS", 0.02)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, "", ""))
    with pytest.raises(SandboxError, match=r"process 7 was not moved within 0\.02 s"):
        USER.start_scope("x.scope", 7, proc_root=str(tmp_path))
