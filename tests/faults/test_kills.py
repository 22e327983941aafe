"""Processes of a run are killed at random moments: what ran fails and says so, the rest goes on, nothing is left."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pytest_crate.sandbox.sandbox import _LAUNCH as LAUNCH
from tests import leftovers
from tests.faults.conftest import Thoroughness, copy_tests

pytestmark = pytest.mark.needs("root", "overlay", "xdist", "memory limit")

TESTS = 16
PATIENCE_SECONDS = 30
INNER = """
import os, subprocess, sys, time
from pathlib import Path
import pytest

DONE = Path({shared!r})

@pytest.fixture
def slow():
    time.sleep(0.01)
    yield
    time.sleep(0.01)

@pytest.mark.crate(memory="256m", mounts=["{shared}:rw"], timeout=60)
@pytest.mark.parametrize("number", range({half}))
def test_body(number, slow, tmp_path):
    daemon = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    time.sleep(0.03)
    assert daemon.poll() is None
    (DONE / f"test_body[{{number}}]").write_text(os.readlink("/proc/self/ns/pid"))

@pytest.mark.crate(memory="256m", timeout=60)
@pytest.mark.parametrize("number", range({half}))
def test_program(number, crate_sandbox):
    done = crate_sandbox.run(["sh", "-c", "sleep 1000 & sleep 0.05; readlink /proc/self/ns/pid"], check=True)
    (DONE / f"test_program[{{number}}]").write_text(done.stdout.strip())
"""
CONFTEST = """
import json, os
from pathlib import Path
import pytest

RESULTS = Path({results!r})

def pytest_runtest_logreport(report):
    if "PYTEST_XDIST_WORKER" in os.environ:
        return  # the controller's word counts
    with RESULTS.open("a") as file:
        keep = {{"name": report.nodeid.partition("::")[2], "when": report.when, "outcome": report.outcome}}
        print(json.dumps({{**keep, "text": report.longreprtext}}), file=file, flush=True)
"""

# How a failure puts it that a process was killed, by that process.
TOLD = {
    "launcher": r"ask the launcher: (it ended|no answer: )",
    "init": r"SIGKILL|init was killed|init ended",
    # The last where it was not one yet, but a process that was about to be started.
    "builder": r"the builder was killed|Broken pipe|the process that should fork died",
    # The last where it was a process of the test's own, which looks after it.
    "payload": r"SIGKILL|returncode: -9|the process that should fork died",
    "worker": r"crashed while running",
}

# Since when the moments of a plan are counted, and how long it then takes until all is over, about.
SINCE = {"the start": 1.2, "the first test": 1.2, "the last test": 0.3}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is killed in one run, and when.

    :ivar kills: each with its moment, in seconds after :attr:`since`.
    :ivar since: of :data:`SINCE`: the start of pytest, or the end of a test.
    :ivar with_xdist: the tests run in two workers, each with a launcher of its own.
    """

    kills: tuple[tuple[str, float], ...]
    since: str
    with_xdist: bool = False


def make_plans(seed: int) -> Iterator[Plan]:
    """Make plans without end; one that comes too late for its process kills none."""
    source = random.Random(seed)
    while True:
        kind = source.choice(["pytest", "pytest and launcher", "worker", "inside", "inside", "inside"])
        since = source.choice(["the start", "the first test", "the first test", "the first test", "the last test"])
        if kind == "worker" and since == "the start":
            since = "the first test"  # a worker killed before it is one ends xdist's controller, crates or not
        kinds = source.choices(["launcher", "init", "payload", "builder"], k=5) if kind == "inside" else [kind]
        kills = [(each, source.uniform(0, SINCE[since])) for each in kinds]
        yield Plan(
            kills=tuple(sorted(kills, key=lambda kill: kill[1])),
            since=since,
            with_xdist=kind == "worker" or source.random() < 0.2,
        )


class Run:
    """An inner pytest, some of whose processes are killed."""

    def __init__(self, directory: Path, plan: Plan) -> None:
        self.directory = directory
        self.plan = plan
        self.shared, self.results = directory / "shared", directory / "results.jsonl"
        for name in ("shared", "home", "temporary"):
            (directory / name).mkdir(parents=True)
        self.results.touch()
        self.packages = copy_tests(directory)
        source = INNER.format(shared=str(self.shared), half=TESTS // 2)
        (directory / "test_inner.py").write_text(textwrap.dedent(source))
        (directory / "conftest.py").write_text(CONFTEST.format(results=str(self.results)))
        (directory / "pytest.ini").write_text("[pytest]\n")
        self.hit: list[str] = []

    def start(self, *args: str) -> subprocess.Popen[str]:
        options = ["-p", "no:cacheprovider", "-p", "no:rerunfailures", "-p", "no:cov", "-p", "no:hypothesispytest"]
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory / "home"),
            "TMPDIR": str(self.directory / "temporary"),
            "PYTHONPATH": self.packages,
        }
        return subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", *options, f"--basetemp={self.directory}/base", *args],
            cwd=self.directory,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def do(self) -> str:
        """Run it, kill, and return what it printed."""
        process = self.start(*(["-n", "2"] if self.plan.with_xdist else []))
        while not self._has_begun() and process.poll() is None:
            time.sleep(0.002)
        began = time.monotonic()
        for target, moment in self.plan.kills:
            time.sleep(max(0.0, began + moment - time.monotonic()))
            self._kill(target, process.pid)
        try:
            printed, _ = process.communicate(timeout=PATIENCE_SECONDS * 4)
        except subprocess.TimeoutExpired:
            tree = [str(each) for each in psutil.Process(process.pid).children(recursive=True)]
            os.killpg(process.pid, signal.SIGKILL)
            printed, _ = process.communicate()
            raise AssertionError(f"it hangs: {self.plan}, {self.hit}\n{tree}\n{printed}") from None
        self.code = process.returncode
        return printed

    def _has_begun(self) -> bool:
        """Tell whether the moments of the plan are counted from now on."""
        match self.plan.since:
            case "the first test":
                return self.results.stat().st_size > 0
            case "the last test":
                return len(self.outcomes()) == TESTS
        return True

    def _kill(self, target: str, pid: int) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(pid)
            found = processes_of(root, with_xdist=self.plan.with_xdist)
            if target == "pytest and launcher":
                victims = [root, *found["launcher"]] if found["launcher"] else []
            elif target == "pytest":
                victims = [root]
            else:
                victims = found[target]
                # One of them, not always the first.
                victims = victims and [victims[len(self.hit) % len(victims)]]
            for each in victims:
                each.send_signal(signal.SIGKILL)
            if victims:
                self.hit.append(target)

    def outcomes(self) -> dict[str, list[tuple[str, str, str]]]:
        found: dict[str, list[tuple[str, str, str]]] = {}
        for line in self.results.read_text().splitlines():
            with contextlib.suppress(ValueError):  # the last line of a pytest that was killed
                data = json.loads(line)
                found.setdefault(data["name"], []).append((data["when"], data["outcome"], data["text"]))
        return found


def processes_of(root: psutil.Process, *, with_xdist: bool) -> dict[str, list[psutil.Process]]:
    """Return the processes that descend from a run's pytest, by what they are."""
    found: dict[str, list[psutil.Process]] = {kind: [] for kind in TOLD}
    for each in root.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError), each.oneshot():
            if each.status() != psutil.STATUS_ZOMBIE:
                found[kind_of(each, root, with_xdist=with_xdist)].append(each)
    return found


def kind_of(process: psutil.Process, root: psutil.Process, *, with_xdist: bool) -> str:
    if process.name() in ("crate-init", "crate-builder"):
        return process.name().removeprefix("crate-")
    parent = process.parent()
    # Not its name, which a launcher gives itself late, and what it has just forked has, too.
    if LAUNCH in process.cmdline() and (parent is None or LAUNCH not in parent.cmdline()):
        return "launcher"
    if parent is not None and LAUNCH in parent.cmdline():
        status = Path(f"/proc/{process.pid}/status").read_text()
        (numbers,) = re.findall(r"^NSpid:(.*)$", status, re.MULTILINE)
        if numbers.split()[-1] == "1":
            return "init"
        return "builder" if LAUNCH in process.cmdline() and len(numbers.split()) == 1 else "payload"
    return "worker" if with_xdist and parent == root else "payload"


def verify(run: Run, printed: str) -> Counter[str]:
    """Look at what became of each test.

    :returns: how many passed and failed.
    """
    done = {path.name: path.read_text() for path in run.shared.iterdir()}
    whole = not any(target.startswith("pytest") for target in run.hit)
    counted: Counter[str] = Counter()
    outcomes = run.outcomes()
    for name, phases in outcomes.items():
        failures = [text for _, outcome, text in phases if outcome == "failed"]
        counted["failed" if failures else "passed"] += 1
        whens = [when for when, _, _ in phases]
        if not failures and "call" in whens:
            assert done.get(name), f"{name} passed, and its body has not come to its end: {run.plan}"
            assert done[name] != os.readlink("/proc/self/ns/pid"), f"{name} passed, and was in no crate: {run.plan}"
        if whole and "worker" not in run.hit:
            assert whens in (["setup", "call", "teardown"], ["setup", "teardown"]), f"{run.plan}: {name}: {phases}"
            assert failures or "call" in whens, f"{run.plan}: {name}: {phases}"
    # The end of xdist's controller, crates or not, that has work for a worker which was killed a moment before: execnet
    # can't send it, and nobody there expects that.
    broken_off = "worker" in run.hit and "INTERNALERROR> OSError: cannot send (already closed?)" in printed
    assert broken_off or "INTERNALERROR" not in printed, printed
    if whole and not broken_off:
        assert len(outcomes) == TESTS, f"{run.plan}: {sorted(outcomes)}\n{printed}"
        assert run.code == (1 if counted["failed"] else 0), printed
        # One test runs in a crate, the next one's is prepared; a launcher has both.
        assert counted["failed"] <= 2 * len(run.hit), printed
    return counted


def test_random_kills(
    tmp_path: Path, thoroughness: Thoroughness, pytestconfig: pytest.Config, places: tuple[str, str]
) -> None:
    """No pass without a body that has come to its end, every test has its outcome, and nothing is left of any run."""
    kills = pytestconfig.getoption("--faults-kills")
    before = leftovers.what_was_there(places)
    counted: Counter[str] = Counter()
    hit: Counter[str] = Counter()
    plans = make_plans(thoroughness.seed)
    while sum(hit.values()) < kills:
        number, plan = len(list(tmp_path.iterdir())), next(plans)
        run = Run(tmp_path / str(number), plan)
        printed = run.do()
        counted += verify(run, printed)
        hit.update(run.hit)
        nothing_left(run, places, before)
        told(run)
    print(f"{sum(hit.values())} kills: {dict(hit)}; tests: {dict(counted)}")


def told(run: Run) -> None:
    """Look whether each failure says what happened."""
    words = "|".join(TOLD[target] for target in set(run.hit) & TOLD.keys()) or "$ nothing"
    for name, phases in run.outcomes().items():
        for when, outcome, text in phases:
            if outcome == "failed":
                assert re.search(words, text), f"{run.plan}, {run.hit}: {name}, {when}:\n{text}"


def nothing_left(run: Run, places: tuple[str, str], before: dict[str, set[str]]) -> None:
    """Look for what the run has left; of launchers that were killed with their pytest, after the next start."""
    if "pytest and launcher" in run.hit:
        following = run.start("-k", "test_body and 0")
        printed, _ = following.communicate(timeout=PATIENCE_SECONDS)
        assert following.returncode == 0, printed
    end = time.monotonic() + PATIENCE_SECONDS
    while left := leftovers.what_is_new(places, before):
        # Orphans are adopted by this process: the fixture nothing_left has made it a subreaper.
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        assert time.monotonic() < end, f"{run.plan}, {run.hit}: {left}"
        time.sleep(0.01)
    assert [os.listdir(run.directory / name) for name in ("temporary", "home")] == [[], []]


SLOW_INIT = """
from pytest_crate.sandbox import sandbox
assert sandbox._LAUNCH.endswith("; main()")
slow = "from tests.faults import slow_init; slow_init.install({begun!r}, {way!r}); main()"
sandbox._LAUNCH = sandbox._LAUNCH.removesuffix("main()") + "sys.path.insert(0, {root!r}); " + slow
"""


@pytest.mark.parametrize("way", ["born", "forked"])
def test_launcher_killed_before_init_asks_for_a_signal(tmp_path: Path, places: tuple[str, str], way: str) -> None:
    """An init whose launcher was killed before it asked for a signal at that ends, though the word to go on waits."""
    before = leftovers.what_was_there(places)
    run = Run(tmp_path / "run", Plan(kills=(), since="the start"))
    begun = run.directory / "begun"
    with (run.directory / "conftest.py").open("a") as conftest:
        conftest.write(SLOW_INIT.format(begun=str(begun), way=way, root=run.packages))
    process = run.start()
    end = time.monotonic() + PATIENCE_SECONDS
    while not begun.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.2)  # the word to go on is sent at once
    family = psutil.Process(process.pid).children(recursive=True)
    assert "crate-launcher" in [each.name() for each in family]
    for each in [psutil.Process(process.pid), *(each for each in family if each.name() == "crate-launcher")][::-1]:
        if each.ppid() in (process.pid, os.getpid()):  # a forked init has its launcher's name still
            each.kill()
    process.communicate()
    run.hit.append("pytest and launcher")
    (run.directory / "conftest.py").write_text("")
    nothing_left(run, places, before)
