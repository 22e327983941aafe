"""The control group that crates are made in: somebody removes it, two runs share it, it has limits itself."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_crate.kernel import hierarchies
from tests.inner import INNER_TIMEOUT_SECONDS, InnerRun, RunInner

pytestmark = pytest.mark.needs("root", "memory limit")

TESTS = """
    import os, pathlib, pytest
    from pytest_crate.errors import CrateError

    # Of this run: in every hierarchy, the crates' own first, then what they are made in.
    def vanish():
        removed = 0
        for top in {tops}:
            for parent, directories, _ in os.walk(top, topdown=False):
                if parent != top:
                    os.rmdir(parent)
                    removed += 1
        assert removed

    @pytest.mark.crate(memory="64m")
    def test_before():
        pass

    def test_vanishes():
        vanish()

    @pytest.mark.crate(memory="64m")
    def test_after():
        open("ran", "w")

    @pytest.mark.crate(memory="64m")
    def test_programs_after(crate_sandbox):
        open("ran", "w")

    def test_plain():
        pass
"""
TWO = """
    import os, time, pytest

    ENDS_FIRST = os.environ["ENDS"] == "first"

    def wait_for(name):
        while not os.path.exists(name):
            time.sleep(0.05)

    def test_both_have_begun():
        here, there = ("one", "other") if ENDS_FIRST else ("other", "one")
        open(f"{here}-began", "w").close()
        wait_for(f"{there}-began")

    @pytest.mark.crate(memory="64m", pids=20)
    def test_before():
        pass

    def test_the_other_has_ended():
        if not ENDS_FIRST:
            wait_for("one-ended")

    @pytest.mark.crate(memory="64m")
    def test_modest():
        pass

    @pytest.mark.crate(memory="64m")
    def test_too_much():
        bytearray(200 << 20)
"""
OPEN = """
    import os, pytest
    from pytest_crate.errors import SandboxError

    @pytest.mark.crate(memory="64m")
    def test_open(crate_sandbox):
        assert crate_sandbox.run(["true"]).returncode == 0
        for top in {tops}:
            for parent, directories, _ in os.walk(top, topdown=False):
                if parent != top:
                    os.rmdir(parent)
        with pytest.raises(SandboxError, match="join the crate's cgroup|fork into the crate") as caught:
            crate_sandbox.run(["true"])
        assert "pytest-crate-" in str(caught.value)
"""


@pytest.fixture
def own_cgroups() -> Iterator[list[str]]:
    """Control groups of the test's own, one in each hierarchy in which crates are limited; what is left in them
    afterwards is an error."""
    mounts = hierarchies.parse_mountinfo(Path("/proc/self/mountinfo").read_text())
    first = [mount.point for mount in mounts if mount.controllers & {"memory", "cpu", "cpuacct", "pids", "cpuset"}]
    points = first or [mount.point for mount in mounts if mount.version == 2]
    directories = {Path(os.path.realpath(point), f"pytest-crate-test-{os.getpid()}") for point in points}
    for directory in directories:
        directory.mkdir()
    yield sorted(map(str, directories))
    for directory in directories:
        directory.rmdir()


@pytest.fixture
def run_below(pytester: pytest.Pytester, run_inner: RunInner, own_cgroups: list[str]) -> Callable[[str], InnerRun]:
    """Run tests whose crates are below these control groups, which they know as ``{tops}``."""

    def run(source: str) -> InnerRun:
        pytester.makeini(f"[pytest]\ncrate_cgroup_parent = /{os.path.basename(own_cgroups[0])}\n")
        pytester.makepyfile(source.replace("{tops}", repr(own_cgroups)))
        return run_inner("-p", "no:rerunfailures")

    return run


def test_the_run_goes_on_and_says_what_is_gone(
    pytester: pytest.Pytester, run_below: Callable[[str], InnerRun], own_cgroups: list[str]
) -> None:
    """Each crate after that is refused, by the path that isn't there; no test's body runs without; others run."""
    run = run_below(TESTS)
    outcomes = {name: run.of(name)["outcome"] for name in ("test_before", "test_vanishes", "test_plain")}
    assert outcomes == {"test_before": "passed", "test_vanishes": "passed", "test_plain": "passed"}
    for name in "test_after", "test_programs_after":
        said = run.of(name, "setup")["longrepr"]
        assert said.startswith("crate: create a cgroup: mkdir(")
        assert any(f"{top}/pytest-crate-" in said for top in own_cgroups)
        assert "No such file or directory (errno 2); somebody has removed the run's own, " in said
    assert not (pytester.path / "ran").exists()
    assert run.ret == pytest.ExitCode.TESTS_FAILED
    assert "INTERNALERROR" not in run.text


def test_an_open_crate(run_below: Callable[[str], InnerRun]) -> None:
    """A program that would run in no control group doesn't run; the test can close its crate."""
    run = run_below(OPEN)
    assert run.of("test_open")["outcome"] == "passed"
    assert run.ret == pytest.ExitCode.OK


def test_two_runs_at_once(
    pytester: pytest.Pytester, run_below: Callable[[str], InnerRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has control groups of its own in it; the end of one takes nothing from the other, whose limits hold."""
    monkeypatch.setenv("ENDS", "last")
    command = shlex.join([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:rerunfailures"])
    script = f"while ! [ -e other-began ]; do sleep 0.1; done; {command} >one.txt 2>&1; touch one-ended"
    with subprocess.Popen(
        ["timeout", str(INNER_TIMEOUT_SECONDS), "sh", "-c", script],
        cwd=pytester.path,
        env={**os.environ, "ENDS": "first"},
    ) as one:
        other = run_below(TWO)
        one.wait()
    for text in (pytester.path / "one.txt").read_text(), other.text:
        assert "1 failed, 4 passed" in text
        assert "\nmemory limit 64 MiB exceeded\n" in text


BEYOND = """
    import pytest

    @pytest.mark.crate(memory="80m", cpus=0.5, pids=60)
    def test_as_much():
        pass

    @pytest.mark.crate(memory="81m")
    def test_memory():
        pass

    @pytest.mark.crate(cpus=0.6)
    def test_cpus():
        pass

    @pytest.mark.crate(pids=61)
    def test_pids():
        pass
"""
# By what is asked for: the files of either version, what is written there, and what is said.
OUTER = {
    "memory": (("memory.limit_in_bytes", "memory.max"), f"{80 << 20}", ("81 MiB", "80 MiB")),
    "cpus": (("cpu.cfs_quota_us", "cpu.max"), "50000", ("0.6 CPUs", "0.5 CPUs")),
    "pids": (("pids.max",), "60", ("61 tasks", "60 tasks")),
}


@pytest.mark.needs("cpus limit", "pids limit")
def test_a_limit_beyond_its_own(run_below: Callable[[str], InnerRun], own_cgroups: list[str]) -> None:
    """More than it allows is refused, with both numbers and the file that says so; as much as that is given."""
    files = {
        key: next(path for top in own_cgroups for name in names if (path := Path(top, name)).exists())
        for key, (names, _, _) in OUTER.items()
    }
    for key, path in files.items():
        path.write_text(OUTER[key][1])
    run = run_below(BEYOND)
    assert run.of("test_as_much")["outcome"] == "passed"
    for key, path in files.items():
        asked, allowed = OUTER[key][2]
        said = run.of(f"test_{key}", "setup")["longrepr"]
        assert said.startswith(f"crate not supported here: no limit on {key}: {asked} is asked for")
        assert f"{path} around it allows {allowed}\n" in said
    assert run.outcomes() == {"passed": 1, "errors": 3}
