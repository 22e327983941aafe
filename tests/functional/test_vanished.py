"""Control groups that somebody removes in the midst of a run: clear errors, and nothing left behind."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_crate.kernel import hierarchies
from tests.inner import InnerRun, RunInner

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
