"""What tools that are not ours say of a crate from inside: capsh(1), setpriv(1), and checks as amicontained makes."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import shutil
import sys
from typing import TYPE_CHECKING

import pytest

from pytest_crate.kernel import capabilities, seccomp

if TYPE_CHECKING:
    from tests.escape.conftest import RunHere

pytestmark = pytest.mark.needs("root", "overlay", "capsh", "setpriv")

# Docker's default without mknod and audit_write (pytest_crate/kernel/capabilities.py says why), written by hand.
KEPT = {
    "chown", "dac_override", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap", "net_bind_service", "net_raw",
    "sys_chroot", "setfcap",
}  # fmt: skip

ASKING = """
    import json, os, subprocess, sys
    from pathlib import Path
    import pytest

    COMMANDS = {commands!r}
    pytestmark = pytest.mark.crate(mounts=["{{}}:/told:rw".format(Path(__file__).parent / "told")], {keys})

    def test_body():
        said = {{name: subprocess.run(command, capture_output=True, text=True, check=True).stdout
                for name, command in COMMANDS.items()}}
        Path("/told/body").write_text(json.dumps(said))

    def test_program(crate_sandbox):
        said = {{name: crate_sandbox.run(command, check=True).stdout for name, command in COMMANDS.items()}}
        (Path(__file__).parent / "told/program").write_text(json.dumps(said))
"""

# Each call with arguments that no kernel takes: an answer of its own shows that the filter let it through.
CALLING = """
import ctypes, errno, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
answers = {}
for name, number in json.loads(sys.argv[1]).items():
    if os.fork() == 0:
        result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(-1)] * 6)
        os._exit(0 if result != -1 else min(ctypes.get_errno(), 255))
    answers[name] = errno.errorcode.get(os.waitstatus_to_exitcode(os.wait()[1]), "done")
print(json.dumps(answers))
"""


def ask(
    run_here: RunHere, pytester: pytest.Pytester, commands: dict[str, list[str]], keys: str = ""
) -> list[dict[str, str]]:
    """Run commands in a crate, by a body and as programs; return what each printed."""
    (pytester.path / "told").mkdir(exist_ok=True)
    printed = run_here(ASKING.format(commands=commands, keys=keys))
    assert "2 passed" in printed, printed
    return [json.loads((pytester.path / "told" / way).read_text()) for way in ("body", "program")]


def names(listing: str) -> set[str]:
    """Return the capabilities of a list such as ``cap_chown,cap_kill`` or ``chown,kill``."""
    return {name.removeprefix("cap_") for name in re.split(r"[, ]+", listing.strip()) if name and name != "[none]"}


TOOLS = {"capsh": [str(shutil.which("capsh")), "--print"], "setpriv": [str(shutil.which("setpriv")), "--dump"]}


def test_capsh_and_setpriv_see_what_is_kept(run_here: RunHere, pytester: pytest.Pytester) -> None:
    """Both name Docker's capabilities less two, none inheritable or ambient, and no_new_privs."""
    for said in ask(run_here, pytester, TOOLS):
        (current,) = re.findall(r"^Current: =?\s*(.*)", said["capsh"], re.MULTILINE)
        assert re.fullmatch(r"(cap_\w+,?)+[=+]ep", current), current
        assert names(current.removesuffix("ep").rstrip("=+")) == KEPT
        (bounding,) = re.findall(r"^Bounding set =(.*)$", said["capsh"], re.MULTILINE)
        assert names(bounding) == KEPT
        assert re.search(r"^Ambient set =$", said["capsh"], re.MULTILINE)
        assert "(no-new-privs=1)" in said["capsh"]
        assert re.search(r"^no_new_privs: 1$", said["setpriv"], re.MULTILINE)
        assert "Inheritable capabilities: [none]" in said["setpriv"]
        assert "Ambient capabilities: [none]" in said["setpriv"]
        (bounding,) = re.findall(r"^Capability bounding set: (.*)$", said["setpriv"], re.MULTILINE)
        assert names(bounding) == KEPT
    assert {*capabilities.DEFAULT_CAPABILITIES} == KEPT


def test_they_see_what_is_added(run_here: RunHere, pytester: pytest.Pytester) -> None:
    """The same tools name a capability that a marker adds: they would see one too many."""
    for said in ask(run_here, pytester, TOOLS, keys="cap_add=['net_admin', 'mknod']"):
        lines = re.findall(
            r"^(?:Current:|Bounding|Capability bounding).*", said["capsh"] + said["setpriv"], re.MULTILINE
        )
        assert len(lines) == 3
        for line in lines:
            assert "net_admin" in line
            assert "mknod" in line


CHECKS = """
import json, os
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
print(json.dumps({
    "seccomp": status["Seccomp"].strip(), "filters": status["Seccomp_filters"].strip(),
    "no_new_privs": status["NoNewPrivs"].strip(),
    "pid namespaces": len(status["NSpid"].split()),
    "namespaces": [os.readlink(f"/proc/self/ns/{kind}") for kind in "user mnt pid net uts ipc cgroup".split()],
    "docker socket": os.path.exists("/run/docker.sock"),
    "disks": [name for name in os.listdir("/dev") if name.startswith(("sd", "vd", "nvme", "loop", "mem", "kvm"))],
}))
"""


def test_the_checks_of_amicontained(run_here: RunHere, pytester: pytest.Pytester) -> None:
    """Filtered, without new privileges, in seven namespaces of its own, without the host's disks; and of the calls that
    the filter refuses, each answers what it says. Without a filter most answer otherwise."""
    machine = platform.machine()
    refused = {
        refusal.name: refusal
        for refusal in seccomp.REFUSALS
        if refusal.condition is None and machine in refusal.numbers
    }
    # It takes no arguments to refuse, and acts.
    numbers = {name: refusal.numbers[machine] for name, refusal in refused.items() if name != "vhangup"}
    python = sys.executable
    commands = {"calls": [python, "-c", CALLING, json.dumps(numbers)], "checks": [python, "-c", CHECKS]}
    expected = {name: errno.errorcode[refused[name].errno] for name in numbers}
    outside = {os.readlink(f"/proc/self/ns/{kind}") for kind in "user mnt pid net uts ipc cgroup".split()}
    for said in ask(run_here, pytester, commands):
        assert json.loads(said["calls"]) == expected
        checks = json.loads(said["checks"])
        assert (checks["seccomp"], checks["no_new_privs"]) == ("2", "1")
        assert int(checks["filters"]) >= 1
        assert checks["pid namespaces"] == 1
        assert not outside & set(checks["namespaces"])
        assert (checks["docker socket"], checks["disks"]) == (False, [])
    for said in ask(run_here, pytester, commands, keys="seccomp=False"):
        answers = json.loads(said["calls"])
        let_through = {name for name in expected if answers[name] != expected[name]}
        assert let_through >= {"keyctl", "request_key", "io_uring_setup", "clone3", "setns", "move_pages"}
        assert json.loads(said["checks"])["seccomp"] == "0"
