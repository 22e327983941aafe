"""Runs of an inner pytest in whose crates one call after the other fails."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest

_T = TypeVar("_T")

ROOT = Path(__file__).parents[2]
INNER_TIMEOUT_SECONDS = 1800

WAYS = {
    "body on the host's root": ("", "body"),
    "program on the host's root": ("", "program"),
    "body on an image": ("image='./small.tar', ", "body"),
    "program on an image": ("image='./small.tar', ", "program"),
}
"""Each way that a crate is made and entered: marker keys, and what runs in it."""

INNER = """
import json, sys
from pathlib import Path
import pytest
from tests.faults import inside

PLANS = json.loads((Path(__file__).parent / "plans.json").read_text())
OUTSIDE = {outside!r}
CRATE = pytest.mark.crate({keys}memory="256m", pids=100, cpus=2, hostname="box", timeout=30, mounts=["{shared}:rw"])

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
import json, os, time
from pathlib import Path
import psutil
import pytest
from pytest_crate.plugin.conductor import CRATES
from pytest_crate.sandbox import launcher, sandbox
from tests.faults import injector
from tests import leftovers

HERE = Path(__file__).parent
PLANS = json.loads((HERE / "plans.json").read_text())
FAULTS = injector.install_everywhere(HERE / "plan.json", HERE / "calls.jsonl")
# Each crate is made for its own test, which meets its own fault.
sandbox.Engine.prepare = lambda *_: None
RESULTS = open(HERE / "results.jsonl", "w", buffering=1)
FIRST = {}

def number_of(nodeid):
    return int(nodeid.rpartition("[")[2].rstrip("]"))

def tell(plan):
    # The launcher may be reading it.
    (HERE / "plan.new").write_text(json.dumps(plan))
    (HERE / "plan.new").rename(HERE / "plan.json")

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    plan = PLANS[number_of(item.nodeid)]
    engine = item.config.stash[CRATES]._engine
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

def levels():
    own = psutil.Process()
    launchers = own.children()
    return {
        "launcher": [child.name() for child in launchers],
        "in crates": [process.name() for child in launchers for process in child.children(recursive=True)],
        "descriptors": len(os.listdir("/proc/self/fd")),
        "launcher's descriptors": [len(os.listdir(f"/proc/{child.pid}/fd")) for child in launchers],
        "mounts": sorted(leftovers.mounts(set())),
        "control groups": sorted(
            entry.path for run in leftovers.leftover_cgroups() for entry in entries(run) if entry.is_dir()
        ),
    }

def pytest_runtest_logfinish(nodeid):
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
        left = {} if not now["launcher"] else {key: now[key] for key in now if now[key] != FIRST["levels"][key]}
        if PLANS[number_of(nodeid)].get("stage") == "start":
            left.pop("launcher's descriptors", None)  # of a launcher that went without something
        if not left or time.monotonic() > end:
            break
        time.sleep(0.01)
    if left and settled:
        FIRST["levels"] = now  # each is told once
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
    """

    seed: int
    share: float

    def some(self, of: Sequence[_T], *, at_most: int | None = None) -> list[_T]:
        """Return the things to be tried."""
        count = len(of) if at_most is None else min(at_most, len(of))
        return random.Random(self.seed).sample(list(of), max(1, round(count * self.share)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults-share", type=float, default=0.005, help="of all faults, those to be tried")
    parser.addoption("--faults-kills", type=int, default=24, help="how many processes are killed")
    parser.addoption("--faults-seed", type=int, default=None, help="of what is random")


@pytest.fixture
def thoroughness(pytestconfig: pytest.Config) -> Thoroughness:
    """How much is to be tried; the seed is shown if the test fails."""
    seed = pytestconfig.getoption("--faults-seed")
    chosen = Thoroughness(
        seed=random.randrange(1 << 32) if seed is None else seed, share=pytestconfig.getoption("--faults-share")
    )
    print(f"--faults-seed={chosen.seed} --faults-share={chosen.share}")
    return chosen


class RunFaulted(Protocol):
    """Runs pytest with one test per plan; an empty plan lets every call be."""

    def __call__(self, way: str, plans: Sequence[dict[str, Any]], *, under: Sequence[str] = ()) -> FaultedRun:
        """Run it.

        :param under: a command that pytest is run by, and its options.
        """


@pytest.fixture
def run_faulted(pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFaulted:
    """Run an inner pytest in a process of its own."""
    home, temporary, shared = (tmp_path / name for name in ("home", "temporary", "shared"))
    for directory in (home, temporary, shared):
        directory.mkdir()
    shared.chmod(0o777)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("CI", "BUILD_NUMBER"):
        monkeypatch.delenv(name, raising=False)
    with tarfile.open(pytester.path / "small.tar", "w") as archive:
        for name in ("etc", "usr", "tmp", "mnt", "home"):
            member = tarfile.TarInfo(name)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(member)

    def run(way: str, plans: Sequence[dict[str, Any]], *, under: Sequence[str] = ()) -> FaultedRun:
        keys, what = WAYS[way]
        from tests.faults import inside  # noqa: PLC0415 - not while pytest collects its plugins

        fixture = ", crate_sandbox" if what == "program" else ""
        outside = {**inside.namespaces(), "place": str(pytester.path.parent)}
        source = INNER.format(keys=keys, what=what, fixture=fixture, shared=shared, outside=outside)
        pytester.makepyfile(test_inner=source)
        pytester.makeconftest(INNER_CONFTEST)
        pytester.makeini(f"[pytest]\ncrate_image_store = {tmp_path}/store\n")
        for name in ("calls.jsonl", "results.jsonl"):
            (pytester.path / name).unlink(missing_ok=True)
        (pytester.path / "plans.json").write_text(json.dumps(list(plans)))
        options = ["-q", "-p", "no:cacheprovider", "-p", "no:rerunfailures", "-p", "no:cov", "-p", "no:xdist"]
        try:
            options += ["-p", "no:hypothesispytest", f"--basetemp={tmp_path}/base"]
            command = [*under, sys.executable, "-m", "pytest", *options]
            done = pytester.run(*command, timeout=INNER_TIMEOUT_SECONDS)
        except pytester.TimeoutExpired:
            results = (pytester.path / "results.jsonl").read_text().splitlines()
            number = json.loads(results[-1])["number"] + 1
            pytest.fail(f"it hangs after {plans[number - 2 : number + 1]}", pytrace=False)
        printed = done.stdout.str() + done.stderr.str()
        assert "INTERNALERROR" not in printed, printed[-5000:]
        assert os.listdir(temporary) == []
        found = [Faulted(plan=plan) for plan in plans]
        for line in (pytester.path / "results.jsonl").read_text().splitlines():
            data = json.loads(line)
            each = found[data["number"]]
            if "left" in data:
                each.left = data["left"]
            elif data["outcome"] == "failed":
                each.outcome = "failed"
                each.text += data["text"]
            each.seconds += data.get("seconds", 0.0)
        calls = [json.loads(line) for line in (pytester.path / "calls.jsonl").read_text().splitlines()]
        for number, each in enumerate(found):
            seen = shared / f"{number}.json"
            if seen.exists():
                each.seen = json.loads(seen.read_text())
                seen.unlink()
        hits = [call for call in calls if call["hit"]]
        for each in found:
            of = [
                call
                for call in hits
                if (call["stage"], call["number"]) == (each.plan.get("stage"), each.plan.get("number"))
            ]
            each.call = f"{of[0]['call']}({of[0]['what']})" if of else ""
        return FaultedRun(found=found, calls=calls, printed=printed, code=int(done.ret))

    return run
