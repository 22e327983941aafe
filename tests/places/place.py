"""A place: where the suite runs, as whom, and what crates have there."""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

PROJECT = Path(__file__).parent / "project"
ALL_LIMITS = frozenset({"memory", "cpus", "cpuset", "pids"})


class Machine(Protocol):
    """Where commands run: this host, a guest, a container."""

    @property
    def shared(self) -> bool:
        """Whether other people's runs of pytest-crate may be there, too, and be killed."""

    def run(self, command: str, *, user: str = "root", seconds: float = 600) -> subprocess.CompletedProcess[str]:
        """Run a shell's command as a user; its output as text."""

    def send(self, source: Path, target: str) -> None:
        """Copy the files of a directory to one there."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A user of a machine, and what crates must be there.

    :ivar name: as the documentation's table has it.
    :ivar user: who runs pytest.
    :ivar owner: whose the project is; empty for the user's.
    :ivar wrapper: a command before pytest's.
    :ivar python: the interpreter with the tests' packages.
    :ivar home: a directory of the user's, for the project.
    :ivar limits: the marker keys that are enforced.
    :ivar cgroup: how the header names what enforces.
    :ivar refusal: what the message says of a limit that can't be enforced.
    :ivar namespaces: whether crates can be made at all; if not, every test fails with ``refusal``.
    :ivar overlay: whether the kernel does overlays; if not, the host's root is read-only.
    :ivar peak: whether the kernel tells the peak of memory; if not, it is unknown.
    """

    name: str
    user: str = "root"
    owner: str = ""
    wrapper: str = ""
    python: str
    home: str
    limits: frozenset[str] = ALL_LIMITS
    cgroup: str
    refusal: str = ""
    namespaces: bool = True
    overlay: bool = True
    peak: bool = True
    environ: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What a run left to be judged.

    :ivar doctor: as JSON; its exit status under ``"status"``.
    :ivar report: of ``--crate-report``; None if there is none.
    :ivar junit: the text of the JUnit XML.
    :ivar left: control groups and processes of ended runs that are there afterwards.
    :ivar kept: the names of files that the tests wrote for good.
    """

    output: str
    doctor: Mapping[str, Any]
    report: Mapping[str, Any] | None
    junit: str
    left: str
    kept: frozenset[str]


_RUN = """
set -u
{environ}
cd {home}/place
{wrapper} {python} -m pytest_crate.cli doctor --json >doctor.json 2>doctor.err
echo $? >doctor.status
COLUMNS=200 {wrapper} {python} -m pytest --basetemp={home}/place/base --crate-report=report.json --junitxml=junit.xml \
    -p no:randomly >output.txt 2>&1
echo $? >status
"""
# A process that a test left.
_PROCESSES = """
ps -eo pid=,args= | grep '[p]lace-left-behind'
true
"""
# What no run that lives would have: control groups whose owner, by its pid, has ended.
_CGROUPS = """
find /sys/fs/cgroup -depth -name 'pytest-crate-[0-9]*' 2>/dev/null | while read -r path; do
    pid=${path##*/pytest-crate-}
    [ -e /proc/"${pid%%-*}" ] || echo "$path"
done
true
"""


def visit(place: Place, machine: Machine) -> Findings:
    """Run doctor and suite in a place."""
    directory = f"{place.home}/place"
    machine.run(f"rm -rf {shlex.quote(directory)}")
    machine.send(PROJECT, directory)
    machine.run(f"cd {shlex.quote(directory)} && mkdir shared written && printf shared >shared/file")
    machine.run(f"chown -R {place.owner or place.user}: {shlex.quote(directory)}")
    environ = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in place.environ.items())
    script = _RUN.format(environ=environ, home=place.home, wrapper=place.wrapper, python=place.python)
    machine.run(script, user=place.user, seconds=1200)
    # Those of this host the fixture ``nothing_left`` looks for, which knows what was there before.
    left = machine.run(_PROCESSES + ("" if machine.shared else _CGROUPS)).stdout.strip()
    files = {
        name: machine.run(f"cat {directory}/{name}").stdout
        for name in ("output.txt", "doctor.json", "doctor.err", "doctor.status", "report.json", "junit.xml")
    }
    kept = machine.run(f"cd {directory} && find written base -type f").stdout.split()
    doctor = json.loads(files["doctor.json"] or "{}")
    return Findings(
        output=files["output.txt"],
        doctor={**doctor, "status": int(files["doctor.status"].strip() or -1), "stderr": files["doctor.err"]},
        report=json.loads(files["report.json"]) if files["report.json"] else None,
        junit=files["junit.xml"],
        left=left,
        kept=frozenset(Path(name).name for name in kept),
    )
