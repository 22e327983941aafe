"""Runs of an inner pytest in whose crates one call after the other fails."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest

from tests.conftest import temporary_prefix
from tests.images import libraries_of, make_image

_T = TypeVar("_T")

ROOT = Path(__file__).parents[2]
INNER_TIMEOUT_SECONDS = 1800

NOBODY = 65534


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A way that a crate is made and entered.

    :ivar what: what runs in it, ``body`` or ``program``.
    :ivar image: on an image; else on the host's root.
    :ivar by_calls: its processes are born by the program that carries tables out; else forked.
    :ivar of_user: of an ordinary user's, who has no control groups; else of root's, with limits.
    """

    what: str
    image: bool = False
    by_calls: bool = True
    of_user: bool = False

    @property
    def keys(self) -> str:
        """The marker's."""
        limits = "" if self.of_user else 'memory="256m", pids=100, cpus=2, '
        return limits + ('image="./small.tar", ' if self.image else "")


WAYS = {
    f"{what} {place}": Way(what=what, image="image" in place)
    for place in ("on the host's root", "on an image")
    for what in ("body", "program")
}
WITHOUT_CALLS = "program on the host's root, forked"
WAYS_OF_A_USER = {f"{name} of an ordinary user": dataclasses.replace(way, of_user=True) for name, way in WAYS.items()}
WAYS[WITHOUT_CALLS] = Way(what="program", by_calls=False)

INNER = """
import json, sys
from pathlib import Path
import pytest
from tests.faults import inside

PLANS = json.loads((Path(__file__).parent / "plans.json").read_text())
OUTSIDE = {outside!r}
CRATE = pytest.mark.crate({keys}hostname="box", timeout=30, mounts=["{shared}:rw"])

def body(number):
    Path("{shared}", f"{{number}}.json").write_text(json.dumps(inside.look(OUTSIDE)))

def program(number, crate):
    command = [sys.executable, inside.__file__, json.dumps(OUTSIDE)]
    done = crate.run(command, check=True, cwd="/", timeout=20)
    Path("{shared}", f"{{number}}.json").write_text(done.stdout)

@CRATE
@pytest.mark.parametrize("number", range(len(PLANS)))
def test_{what}(number{fixture}): {what}(number{fixture})
"""

INNER_CONFTEST = """
import contextlib, json, os, time
from pathlib import Path
import psutil
import pytest
from pytest_crate.errors import SandboxError
from pytest_crate.kernel.cgroup import Owner
from pytest_crate.plugin.conductor import CRATES
from pytest_crate.sandbox import launcher, sandbox
from tests.faults import injector
from tests import leftovers

HERE = Path(__file__).parent
PLANS = json.loads((HERE / "plans.json").read_text())
FAULTS = injector.install_everywhere(HERE / "plan.json", HERE / "calls.jsonl", by_calls={by_calls})
# Each crate is made for its own test, which meets its own fault.
sandbox.Engine.prepare = lambda *_, **__: None
RESULTS = open(HERE / "results.jsonl", "w", buffering=1)
FIRST = {}
ENGINES = []
LAUNCHERS = set()  # all that there have been

def number_of(nodeid):
    return int(nodeid.rpartition("[")[2].rstrip("]"))

def tell(plan):
    # The launcher may be reading it.
    (HERE / "plan.new").write_text(json.dumps(plan))
    (HERE / "plan.new").rename(HERE / "plan.json")

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    plan = PLANS[number_of(item.nodeid)]
    ENGINES[:] = [engine := item.config.stash[CRATES]._engine]
    before = PLANS[max(0, number_of(item.nodeid) - 1)]
    if {plan.get("stage"), before.get("stage")} & {"launch", "start"}:
        engine._forget()  # the launcher's beginning is to fail, or to be a good one again
    tell({**plan, "test": number_of(item.nodeid)})

def pytest_runtest_logreport(report):
    keep = {"number": number_of(report.nodeid), "when": report.when, "outcome": report.outcome,
            "text": report.longreprtext, "seconds": report.duration,
            "properties": dict(report.user_properties)}
    print(json.dumps(keep), file=RESULTS)

def entries(directory):
    try:
        with os.scandir(directory) as found:
            return list(found)
    except FileNotFoundError:
        return []

def descriptors(process):
    # One is of a builder, which there is or not.
    builders = sum(child.name() == "crate-builder" for child in process.children())
    try:
        return len(os.listdir(f"/proc/{process.pid}/fd")) - builders
    except PermissionError:
        return process.status()  # a zombie has none

def levels():
    own = psutil.Process()
    launchers = own.children()
    LAUNCHERS.update(child.pid for child in launchers)
    return {
        "launcher": [child.name() for child in launchers],
        "in crates": [
            name
            for child in launchers
            for process in child.children(recursive=True)
            if (name := process.name()) != "crate-builder"
        ],
        "descriptors": len(os.listdir("/proc/self/fd")),
        "launcher's descriptors": [descriptors(child) for child in launchers],
        "mounts": sorted(leftovers.mounts(set())),
        # Not those of another run that has been killed.
        "control groups": sorted(
            entry.path
            for run in leftovers.leftover_cgroups()
            if (owner := Owner.from_name(os.path.basename(run))) and owner.pid in LAUNCHERS
            for entry in entries(run)
            if entry.is_dir()
        ),
    }

def let_settle():
    # Having answered, the launcher has done all that it was told before, and is not to be caught in the midst of it.
    with contextlib.suppress(SandboxError):
        ENGINES[0].ask({"request": "late", "crate": 0}, launcher=ENGINES[0]._pid)

def pytest_runtest_logfinish(nodeid):
    let_settle()
    tell({})
    end = time.monotonic() + 5
    while True:
        try:
            now = levels()
        except (psutil.Error, FileNotFoundError):
            continue  # a process has ended between two looks
        settled = not now["in crates"] and not now["control groups"]
        if settled:
            FIRST.setdefault("levels", now)
        if not FIRST:
            continue
        # A new launcher is started by the next test.
        first = FIRST["levels"]
        left = {} if not now["launcher"] else {key: [first[key], now[key]] for key in now if now[key] != first[key]}
        if PLANS[number_of(nodeid)].get("stage") == "start":
            left.pop("launcher's descriptors", None)  # of a launcher that went without something
        if not left or time.monotonic() > end:
            break
        time.sleep(0.01)
    if left:
        # Each is told once; what is to go with the next crate, twice.
        FIRST["levels"] |= {key: now[key] for key in left if key not in ("in crates", "control groups")}
        if FIRST.get("left") and not settled:
            ENGINES[0]._forget()
    FIRST["left"] = left
    print(json.dumps({"number": number_of(nodeid), "left": left}), file=RESULTS)
"""


@dataclasses.dataclass(kw_only=True)
class Faulted:
    """What became of a test in whose crate a call failed."""

    plan: dict[str, Any]
    call: str = ""
    outcome: str = "passed"
    text: str = ""
    seconds: float = 0.0
    left: dict[str, Any] = dataclasses.field(default_factory=dict)
    seen: dict[str, Any] | None = None

    def __str__(self) -> str:
        what = f"{self.plan['stage']} {self.plan['number']} {self.call}: {os.strerror(self.plan['errno'])}"
        return f"{what}: {self.outcome}: {self.text}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FaultedRun:
    """An inner run: what was found for each plan, and every call that was counted in the first test."""

    found: list[Faulted]
    calls: list[dict[str, Any]]
    printed: str
    code: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Thoroughness:
    """How much is tried: all of it with ``tox -e faults``, some of it at random otherwise.

    :ivar seed: of what is random; the same seed gives the same choice.
    :ivar share: of what there is to be tried.
    :ivar only: patterns (fnmatch(3)) of the faults to be tried instead, as ``start 7 mkdir ENOMEM``.
    """

    seed: int
    share: float
    only: Sequence[str]

    def some(self, of: Sequence[_T], *, at_most: int | None = None) -> list[_T]:
        """Return the things to be tried."""
        count = len(of) if at_most is None else min(at_most, len(of))
        return random.Random(self.seed).sample(list(of), max(1, round(count * self.share)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults-share", type=float, default=0.005, help="of all faults, those to be tried")
    parser.addoption("--faults-kills", type=int, default=24, help="how many processes are killed")
    parser.addoption("--faults-seed", type=int, default=None, help="of what is random")
    parser.addoption(
        "--faults-only", action="append", default=[], metavar="PATTERN", help="only these faults: 'start 7 *'"
    )


@pytest.fixture
def thoroughness(pytestconfig: pytest.Config) -> Thoroughness:
    """How much is to be tried; the seed is shown if the test fails."""
    seed = pytestconfig.getoption("--faults-seed")
    chosen = Thoroughness(
        seed=random.randrange(1 << 32) if seed is None else seed,
        share=pytestconfig.getoption("--faults-share"),
        only=pytestconfig.getoption("--faults-only"),
    )
    print(f"--faults-seed={chosen.seed} --faults-share={chosen.share}")
    return chosen


class RunFaulted(Protocol):
    """Runs pytest with one test per plan; an empty plan lets every call be."""

    def __call__(self, way: str, plans: Sequence[dict[str, Any]], *, under: Sequence[str] = ()) -> FaultedRun:
        """Run it.

        :param under: a command that pytest is run by, and its options.
        """


def copy_tests(directory: Path) -> str:
    """Copy what inner runs have of these tests; return what is to be in their PYTHONPATH.

    Not the checkout: what is tested is the installed package, and not that one's source.
    """
    tests = directory / ".packages" / "tests"  # where no inner run collects them
    shutil.copytree(ROOT / "tests" / "faults", tests / "faults", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "tests" / "leftovers.py", tests)
    return str(tests.parent)


@pytest.fixture
def run_faulted(tmp_path: Path) -> RunFaulted:
    """Run an inner pytest of root's in a process of its own."""
    python = [sys.executable, "-m", "pytest"]
    return _runner(Ground(directory=tmp_path, python=python, python_path=copy_tests(tmp_path)))


@pytest.fixture
def run_faulted_as_user(packages_for_everyone: Path, interpreter_for_everyone: str) -> Iterator[RunFaulted]:
    """Run an inner pytest of an ordinary user's."""
    # Not in pytest's own temporary directory, which is open to root alone.
    with tempfile.TemporaryDirectory(prefix=temporary_prefix("faults")) as name:
        directory = Path(name)
        directory.chmod(0o755)
        os.chown(directory, NOBODY, NOBODY)
        ours = copy_tests(directory)
        yield _runner(
            Ground(
                directory=directory,
                python=[interpreter_for_everyone, "-B", "-m", "pytest", "-p", "pytest_crate.plugin"],
                python_path=f"{packages_for_everyone}:{ours}",
                user=NOBODY,
                libraries=libraries_of(interpreter_for_everyone, Path(ours, "tests", "faults"), "inside"),
            )
        )


def _runner(ground: Ground) -> RunFaulted:
    def run(way: str, plans: Sequence[dict[str, Any]], *, under: Sequence[str] = ()) -> FaultedRun:
        return _run_faulted(ground, (WAYS | WAYS_OF_A_USER)[way], plans, under)

    return run


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """Where an inner run takes place, and whose it is.

    :ivar python: the command that is pytest.
    :ivar libraries: that its interpreter needs on an image.
    """

    directory: Path
    python: Sequence[str]
    python_path: str
    user: int = 0
    libraries: Sequence[str] = ()

    def make(self, name: str) -> Path:
        """Return a directory of the user's, made if it is not there."""
        path = self.directory / name
        path.mkdir(exist_ok=True)
        os.chown(path, self.user, self.user)
        return path


def _run_faulted(ground: Ground, way: Way, plans: Sequence[dict[str, Any]], under: Sequence[str]) -> FaultedRun:
    from tests.faults import inside  # noqa: PLC0415 - not while pytest collects its plugins

    project, home, temporary, shared = (ground.make(name) for name in ("project", "home", "temporary", "shared"))
    shared.chmod(0o777)
    make_image(project / "small.tar", libraries=ground.libraries)
    fixture = ", crate_sandbox" if way.what == "program" else ""
    outside = {**inside.namespaces(), "place": str(ground.directory)}
    source = INNER.format(keys=way.keys, what=way.what, fixture=fixture, shared=shared, outside=outside)
    (project / "test_inner.py").write_text(source)
    (project / "conftest.py").write_text(INNER_CONFTEST.replace("{by_calls}", str(way.by_calls)))
    (project / "pytest.ini").write_text(f"[pytest]\ncrate_image_store = {ground.directory}/store\n")
    for name in ("calls.jsonl", "results.jsonl"):
        (project / name).unlink(missing_ok=True)
    (project / "plans.json").write_text(json.dumps(list(plans)))
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:rerunfailures", "-p", "no:cov", "-p", "no:xdist"]
    options += ["-p", "no:hypothesispytest", f"--basetemp={ground.directory}/base"]
    try:
        done = subprocess.run(
            [*under, *ground.python, *options],
            user=ground.user,
            group=ground.user,
            extra_groups=[],
            cwd=project,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(home),
                "TMPDIR": str(temporary),
                "PYTHONPATH": ground.python_path,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=INNER_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        results = (project / "results.jsonl").read_text().splitlines()
        number = json.loads(results[-1])["number"] + 1
        pytest.fail(f"it hangs after {plans[number - 2 : number + 1]}", pytrace=False)
    assert "INTERNALERROR" not in done.stdout, done.stdout[-5000:]
    assert os.listdir(temporary) == []
    return _read_results(project, shared, plans, done.stdout, done.returncode)


def _read_results(project: Path, shared: Path, plans: Sequence[dict[str, Any]], printed: str, code: int) -> FaultedRun:
    found = [Faulted(plan=plan) for plan in plans]
    assert (project / "results.jsonl").exists(), printed
    for line in (project / "results.jsonl").read_text().splitlines():
        data = json.loads(line)
        each = found[data["number"]]
        if "left" in data:
            each.left = data["left"]
        elif data["outcome"] == "failed":
            each.outcome = "failed"
            each.text += data["text"]
        each.seconds += data.get("seconds", 0.0)
    calls = [json.loads(line) for line in (project / "calls.jsonl").read_text().splitlines()]
    for number, each in enumerate(found):
        seen = shared / f"{number}.json"
        if seen.exists():
            each.seen = json.loads(seen.read_text())
            seen.unlink()
    for call in calls:
        if call["hit"]:
            found[call["test"]].call = f"{call['call']}({call['what']})"
    return FaultedRun(found=found, calls=calls, printed=printed, code=code)
