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

from tests import leftovers
from tests.faults.conftest import ROOT, Thoroughness

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
    (DONE / f"test_body[{{number}}]").touch()

@pytest.mark.crate(memory="256m", timeout=60)
@pytest.mark.parametrize("number", range({half}))
def test_program(number, crate_sandbox):
    done = crate_sandbox.run(["sh", "-c", "sleep 1000 & sleep 0.05; echo done"], check=True)
    assert done.stdout == "done\\n"
    (DONE / f"test_program[{{number}}]").touch()
"""
CONFTEST = """
import json, os
from pathlib import Path
import pytest

RESULTS = Path({results!r})

def pytest_runtest_logreport(report):
    with RESULTS.open("a") as file:
        keep = {{"name": report.nodeid.partition("::")[2], "when": report.when, "outcome": report.outcome}}
        print(json.dumps({{**keep, "text": report.longreprtext}}), file=file, flush=True)
"""

# How a failure puts it that a process was killed, by that process.
TOLD = {
    "launcher": r"launcher|it ended",
    "init": r"SIGKILL|init was killed|init ended",
    "builder": r"the builder was killed|Broken pipe",
    # The last where it was a process of the test's own, which looks after it.
    "payload": r"SIGKILL|returncode: -9|the process that should fork died",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is killed in one run, and when: seconds after the first test has begun, or after the start of pytest."""

    kills: tuple[tuple[str, float], ...]
    from_start: bool

    @property
    def with_xdist(self) -> bool:
        return any(target == "worker" for target, _ in self.kills)


def make_plans(seed: int) -> Iterator[Plan]:
    """Make plans without end; one that comes too late for its process kills none."""
    source = random.Random(seed)
    while True:
        kind = source.choice(["pytest", "pytest and launcher", "worker", "inside", "inside", "inside"])
        if kind == "inside":
            kills = [
                (source.choice(["launcher", "init", "payload", "builder"]), source.uniform(0, 1.2)) for _ in range(5)
            ]
        else:
            kills = [(kind, source.uniform(0, 1.2))]
        yield Plan(kills=tuple(sorted(kills, key=lambda kill: kill[1])), from_start=source.random() < 0.2)


class Run:
    """An inner pytest, some of whose processes are killed."""

    def __init__(self, directory: Path, plan: Plan) -> None:
        self.directory = directory
        self.plan = plan
        self.shared, self.results = directory / "shared", directory / "results.jsonl"
        for name in ("shared", "home", "temporary"):
            (directory / name).mkdir(parents=True)
        self.results.touch()
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
            "PYTHONPATH": str(ROOT),
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
        if not self.plan.from_start:
            while not self.results.stat().st_size and process.poll() is None:
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

    def _kill(self, target: str, pid: int) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            tree = psutil.Process(pid).children(recursive=True)
            launchers = [each for each in tree if each.name() == "crate-launcher"]
            own = {pid, *(each.pid for each in launchers)}
            found = {
                "pytest": [psutil.Process(pid)],
                "pytest and launcher": [psutil.Process(pid), *launchers],
                "worker": [each for each in psutil.Process(pid).children() if each.pid not in own],
                "launcher": launchers,
                "init": [each for each in tree if each.name() == "crate-init"],
                "builder": [each for each in tree if each.name() == "crate-builder"],
                # One that is being born to be an init, or a program, is among them.
                "payload": [
                    each for each in tree if each.pid not in own and each.name() not in ("crate-init", "crate-builder")
                ],
            }[target]
            if found and target != "pytest and launcher":
                found = [found[len(self.hit) % len(found)]]
            for each in found:
                each.send_signal(signal.SIGKILL)
            if found:
                self.hit.append(target)

    def outcomes(self) -> dict[str, list[tuple[str, str, str]]]:
        found: dict[str, list[tuple[str, str, str]]] = {}
        for line in self.results.read_text().splitlines():
            with contextlib.suppress(ValueError):  # the last line of a pytest that was killed
                data = json.loads(line)
                found.setdefault(data["name"], []).append((data["when"], data["outcome"], data["text"]))
        return found


def verify(run: Run, printed: str) -> Counter[str]:
    """Look at what became of each test.

    :returns: how many passed and failed.
    """
    done = {path.name for path in run.shared.iterdir()}
    counted: Counter[str] = Counter()
    outcomes = run.outcomes()
    for name, phases in outcomes.items():
        failures = [text for _, outcome, text in phases if outcome == "failed"]
        counted["failed" if failures else "passed"] += 1
        if not failures and "call" in [when for when, _, _ in phases]:
            assert name in done, f"{name} passed, and its body has not come to its end: {run.plan}"
    # The end of xdist's controller, crates or not, that has work for a worker which was killed a moment before: execnet
    # can't send it, and nobody there expects that.
    broken_off = "worker" in run.hit and "INTERNALERROR> OSError: cannot send (already closed?)" in printed
    assert broken_off or "INTERNALERROR" not in printed, printed
    if not broken_off and not any(target.startswith("pytest") for target, _ in run.plan.kills):
        assert run.code in (0, 1), printed
        assert len(outcomes) == TESTS, f"{run.plan}: {sorted(outcomes)}\n{printed}"
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
    words = "|".join(TOLD[target] for target in set(run.hit) & TOLD.keys()) or "crashed while running"
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
    assert os.listdir(run.directory / "temporary") == []


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
    run = Run(tmp_path / "run", Plan(kills=(), from_start=True))
    begun = run.directory / "begun"
    with (run.directory / "conftest.py").open("a") as conftest:
        conftest.write(SLOW_INIT.format(begun=str(begun), way=way, root=str(ROOT)))
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
