"""Runs of attempts to get out: in crates of every kind, and where the protection that should hold them is missing."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from pytest_crate.sandbox import sandbox
from tests.conftest import temporary_prefix
from tests.escape.attempts import ATTEMPTS, EFFECTS
from tests.escape.decoys import NOBODY, Decoys
from tests.images import libraries_of, make_image
from tests.inner import INNER_TIMEOUT_SECONDS

Outcome = tuple[str, str]
"""``held``, ``escaped`` or ``error``, and what there is to say."""

WAYS = ("body-host", "program-host", "body-image", "program-image")

MATRIX = """
import json, sys
from pathlib import Path
import pytest
sys.path.insert(0, {project!r})
import attempts

SHARED = Path({shared!r})
HOST = pytest.mark.crate(mounts=[f"{{SHARED}}:rw"], **{limits!r})
IMAGE = pytest.mark.crate(image={project!r} + "/image.tar")

def body(name):
    decoys = json.loads(Path({project!r}, f"{{name}}.json").read_text())
    # When this was imported there was no crate yet, and nothing of the engine's.
    attempts.INHERITED[:] = attempts.open_descriptors()
    outcomes = attempts.attempt_all(decoys, {names!r})
    if {limits!r}:
        # Last: a body that goes on after it is killed at the limit.
        outcomes["start_many_processes"] = "held", "the crate was killed at its limit"
        (SHARED / f"{{name}}.out").write_text(json.dumps(outcomes))
        outcomes |= attempts.attempt_all(decoys, ["start_many_processes"])
    (SHARED / f"{{name}}.out").write_text(json.dumps(outcomes))

def program(name, crate):
    names = [*{names!r}, *(["start_many_processes"] if {limits!r} else [])]
    done = crate.run([sys.executable, {project!r} + "/attempts.py", {project!r} + f"/{{name}}.json", *names])
    assert done.returncode == 0, done.stderr
    (SHARED / f"{{name}}.out").write_text(done.stdout)

@HOST
def test_body_host(): body("body-host")

@HOST
def test_program_host(crate_sandbox): program("program-host", crate_sandbox)

@HOST
@IMAGE
def test_body_image(): body("body-image")

@HOST
@IMAGE
def test_program_image(crate_sandbox): program("program-image", crate_sandbox)
"""

CONTROLS = """
import json, sys
from pathlib import Path
import pytest

SHARED = Path({shared!r})

@pytest.mark.parametrize("number, names", [
    pytest.param(number, names, marks=pytest.mark.crate(**keys), id=str(number))
    for number, (keys, names) in enumerate({controls!r})
])
def test_control(crate_sandbox, number, names):
    done = crate_sandbox.run([sys.executable, {project!r} + "/attempts.py", {project!r} + "/control.json", *names])
    assert done.returncode == 0, done.stderr
    (SHARED / f"control-{{number}}.out").write_text(done.stdout)
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Who:
    """As whom pytest is run: with which interpreter and in which environment."""

    user: int
    python: str
    python_path: str

    def run_pytest(self, decoys: Decoys, source: str, *args: str) -> str:
        """Run pytest on one test file in the decoys' project, and return what it printed."""
        test = decoys.project / "test_inner.py"
        test.write_text(source)
        os.chown(test, self.user, self.user)
        (decoys.project / "pytest.ini").write_text("[pytest]\n")
        plugin = ["-p", "pytest_crate.plugin"] if self.python_path else ["-p", "no:rerunfailures", "-p", "no:cov"]
        command = [self.python, "-B", "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", *plugin, *args]
        base = f"--basetemp={decoys.directory}/base-{self.user}"
        return self.run(decoys, [*command, base, "test_inner.py"])

    def run(self, decoys: Decoys, command: Sequence[str], *, pass_fds: Sequence[int] = ()) -> str:
        """Run a command that has inherited a key and capabilities, and return what it printed."""
        # HOME: where the secret is. Our own interpreter is below the machine's own home perhaps.
        env = {"PATH": os.environ["PATH"], "HOME": str(decoys.home), "COLUMNS": "160"}
        if self.python_path:
            env |= {"PATH": "/usr/bin:/bin", "PYTHONPATH": self.python_path}
        done = subprocess.run(
            [self.python, str(decoys.project / "attempts.py"), "--prepare", decoys.token, *command],
            user=self.user,
            group=self.user,
            extra_groups=[],
            cwd=decoys.project,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=INNER_TIMEOUT_SECONDS,
            check=False,
            pass_fds=pass_fds,
        )
        return done.stdout


def _root() -> Who:
    return Who(user=0, python=sys.executable, python_path="")


@pytest.fixture(scope="session")
def rootless(request: pytest.FixtureRequest, needs: Callable[..., None]) -> Who:
    """An ordinary user."""
    needs("user namespaces")
    python = request.getfixturevalue("interpreter_for_everyone")
    return Who(user=NOBODY, python=python, python_path=str(request.getfixturevalue("packages_for_everyone")))


class RunHere(Protocol):
    """Runs pytest as root on one test file, in ``pytester.path``, and returns what it printed."""

    def __call__(self, source: str, *, without: str = "", args: Sequence[str] = ()) -> str:
        """Run it.

        :param without: Python that takes a protection away: run in pytest's process, and in the launcher's.
        """


@pytest.fixture
def run_here(pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunHere:
    """Run an inner pytest in a process of its own."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("COLUMNS", "160")
    for name in ("CI", "BUILD_NUMBER"):  # the short summary would hold whole messages
        monkeypatch.delenv(name, raising=False)

    def run(source: str, *, without: str = "", args: Sequence[str] = ()) -> str:
        pytester.makepyfile(test_inner=source)
        pytester.makeini("[pytest]\n")
        if without:
            assert sandbox._LAUNCH.endswith("; main()")  # noqa: SLF001 - where the launcher begins
            pytester.makeconftest(
                "from pytest_crate.sandbox import sandbox\n"
                f"exec({without!r})\n"
                f"without = '; exec(' + repr({without!r}) + '); main()'\n"
                "sandbox._LAUNCH = sandbox._LAUNCH.removesuffix('; main()') + without\n"
            )
        options = ["-rA", "-p", "no:rerunfailures", "-p", "no:cov", "-p", "no:cacheprovider"]
        done = pytester.runpytest_subprocess(*options, *args, timeout=INNER_TIMEOUT_SECONDS)
        return done.stdout.str() + done.stderr.str()

    return run


@contextlib.contextmanager
def _decoys(owner: int, *, system_python: str = "") -> Iterator[Decoys]:
    # Not in pytest's own temporary directory, which is open to root alone.
    with tempfile.TemporaryDirectory(prefix=temporary_prefix("escape")) as name, ExitStack() as stack:
        directory = Path(name)
        directory.chmod(0o755)
        os.chown(directory, owner, owner)
        decoys = Decoys(directory, owner=owner, stack=stack)
        shutil.copy(Path(__file__).with_name("attempts.py"), decoys.project)
        libraries = (
            libraries_of(system_python, decoys.project, "attempts") if system_python.startswith("/usr/bin/") else ()
        )
        make_image(decoys.project / "image.tar", libraries=libraries)
        yield decoys


@pytest.fixture(scope="session")
def decoys_of_root(needs: Callable[..., None]) -> Iterator[Decoys]:
    """Decoys for root's attempts, and for the controls."""
    needs("root", "overlay", "loop devices")
    with _decoys(0, system_python=os.path.realpath(sys.executable)) as decoys:
        yield decoys


@pytest.fixture(scope="session", params=["root", "rootless"])
def attempted(request: pytest.FixtureRequest) -> Iterator[Mapping[str, Mapping[str, Outcome]]]:
    """The outcomes of every attempt in crates of every kind, by way and attempt."""
    if request.param == "root":
        yield _attempt_all(_root(), request.getfixturevalue("decoys_of_root"))
    else:
        who = request.getfixturevalue("rootless")
        with _decoys(who.user, system_python=who.python) as decoys:
            yield _attempt_all(who, decoys)


def _attempt_all(who: Who, decoys: Decoys) -> dict[str, dict[str, Outcome]]:
    for name in WAYS:
        decoys.aim(name.partition("-")[0], name)
    # An ordinary user has a limit on processes only with a delegated cgroup.
    limits = {"pids": 30} if who.user == 0 else {}
    names = [name for name in ATTEMPTS if name != "start_many_processes"]
    source = MATRIX.format(project=str(decoys.project), shared=str(decoys.shared), names=names, limits=limits)
    printed = who.run_pytest(decoys, source)
    results = {}
    seen = decoys.effects()
    for way in WAYS:
        file = decoys.shared / f"{way}.out"
        assert file.exists(), printed
        outcomes = {name: (word, said) for name, (word, said) in json.loads(file.read_text()).items()}
        outcomes |= dict.fromkeys(seen, ("escaped", "seen on the host"))
        results[way] = outcomes
    return results


@pytest.fixture(scope="session")
def controls(decoys_of_root: Decoys) -> Mapping[str, Outcome]:
    """The outcome of each attempt where one protection is missing."""
    who, decoys = _root(), decoys_of_root
    outcomes: dict[str, Outcome] = {}

    def note(printed: str) -> None:
        line = printed.strip().splitlines()[-1] if printed.strip() else ""
        assert line.startswith("{"), printed
        outcomes.update({name: (word, said) for name, (word, said) in json.loads(line).items()})

    script = str(decoys.project / "attempts.py")

    def on_the_host(
        names: Sequence[str], name: str, *before: str, pass_fds: Sequence[int] = (), **changes: str
    ) -> None:
        file = decoys.aim("control", name, init=decoys.common["process"], **changes)
        command = [*before, who.python, script, str(file), *names]
        note(who.run(decoys, [str(shutil.which(command[0])), *command[1:]], pass_fds=pass_fds))

    # No crate at all: what namespaces, the private root, masks, capabilities and no_new_privs are for.
    on_the_host([name for name, (where, _) in PROTECTIONS.items() if where == "host"], "control-host")
    for name in decoys.effects():
        outcomes[name] = ("escaped", "seen on the host")
    # A directory left open by whoever started it.
    descriptor = os.open("/", os.O_RDONLY)
    try:
        leaked = ["use_a_leaked_descriptor", "find_a_leaked_descriptor"]
        on_the_host(leaked, "control-leak", pass_fds=[descriptor], way="program")
    finally:
        os.close(descriptor)
    # A root directory that is only that of chroot(2), in which the attempt is not to see the secret by its path.
    jail = decoys.directory / "jail"
    (jail / "scratch").mkdir(parents=True)
    on_the_host(["climb_out_of_a_chroot"], "control-jail", jail=str(jail), scratch="/scratch/attempts")
    on_the_host(["write_a_sysctl"], "control-net", "unshare", "--net")
    # A crate from which one protection is taken by a key of the marker.
    loosened = [
        (keys, [name for name, (_, other) in PROTECTIONS.items() if other == keys])
        for keys in _unique([keys for where, keys in PROTECTIONS.values() if where == "crate"])
    ]
    for _, names in loosened:
        assert names
    decoys.aim("program", "control")
    mounts = [f"{decoys.shared}:rw"]
    with_paths = [({"mounts": mounts, **_filled(keys, decoys)}, names) for keys, names in loosened]
    source = CONTROLS.format(project=str(decoys.project), shared=str(decoys.shared), controls=with_paths)
    printed = who.run_pytest(decoys, source)
    for number in range(len(loosened)):
        file = decoys.shared / f"control-{number}.out"
        assert file.exists(), printed
        note(file.read_text())
    for name in decoys.effects() & EFFECTS:
        outcomes[name] = ("escaped", "seen on the host")
    return outcomes


def _unique(found: list[dict[str, object]]) -> list[dict[str, object]]:
    kept: list[dict[str, object]] = []
    for keys in found:
        if keys not in kept:
            kept.append(keys)
    return kept


def _filled(keys: Mapping[str, object], decoys: Decoys) -> dict[str, object]:
    """Put the decoys' project in the place of ``project`` in the marker's keys."""
    filled = dict(keys)
    if filled.pop("project", None) == "rw":
        filled["mounts"] = [f"{decoys.shared}:rw", f"{decoys.project}:rw"]
    return filled


NONE: dict[str, object] = {}
UNFILTERED: dict[str, object] = {"seccomp": False}

PROTECTIONS: Mapping[str, tuple[str, dict[str, object]]] = {
    # Where each attempt succeeds: on the host, or in a crate from which the marker's keys take one protection.
    "read_a_hidden_file": ("host", NONE),
    "climb_out_of_a_chroot": ("jail", NONE),
    "use_a_leaked_descriptor": ("leak", NONE),
    "find_a_leaked_descriptor": ("leak", NONE),
    "open_what_is_mapped": ("host", NONE),
    "write_to_a_file_of_the_host": ("crate", {"project": "rw"}),
    "overwrite_a_program_that_runs": ("crate", {"project": "rw"}),
    "open_by_handle": ("crate", {"cap_add": ["dac_read_search"]}),
    "make_a_disk_node": ("crate", {"cap_add": ["mknod"]}),
    "read_a_disk_node": ("host", NONE),
    "see_a_process_of_the_host": ("host", NONE),
    "signal_a_process_of_the_host": ("host", NONE),
    "trace_a_process_of_the_host": ("host", NONE),
    "trace_init": ("host", NONE),
    "start_many_processes": ("crate", {"pids": 100}),
    "give_a_child_to_the_parent": ("crate", UNFILTERED),
    "leave_a_daemon": ("host", NONE),
    "connect_to_an_abstract_socket": ("crate", {"network": "host"}),
    "connect_to_a_port_of_the_host": ("crate", {"network": "host"}),
    "connect_to_a_socket_file": ("host", NONE),
    "attach_shared_memory": ("host", NONE),
    "open_shared_memory": ("host", NONE),
    "open_a_message_queue": ("host", NONE),
    "find_a_key": ("crate", UNFILTERED),
    "open_a_vsock": ("crate", UNFILTERED),
    "set_up_io_uring": ("crate", UNFILTERED),
    "load_a_bpf_map": ("crate", {"cap_add": ["bpf"]}),
    "open_a_perf_event": ("crate", {"cap_add": ["perfmon"]}),
    "open_a_userfaultfd": ("crate", UNFILTERED),
    "type_into_the_terminal": ("crate", {"seccomp": False, "cap_add": ["sys_admin"]}),
    "make_a_terminal_useless": ("crate", {"seccomp": False}),
    "hold_up_who_opens_a_file": ("crate", {"seccomp": False}),
    "make_a_user_namespace": ("crate", UNFILTERED),
    "mount_something": ("crate", {"cap_add": ["sys_admin"]}),
    "set_a_release_agent": ("host", NONE),
    "change_a_cgroup": ("host", NONE),
    "write_a_sysctl": ("net", NONE),
    "open_kernel_files_for_writing": ("host", NONE),
    "read_masked_files": ("host", NONE),
    "run_a_setuid_program": ("host", NONE),
    "hold_inherited_capabilities": ("host", NONE),
    "act_as_another_abi": ("crate", UNFILTERED),
}
