"""Control groups that somebody removes in the midst of a run: clear errors, and nothing left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_crate.kernel import hierarchies
from tests.inner import RunInner

pytestmark = pytest.mark.needs("root", "memory limit")

TESTS = """
    import os, pathlib, pytest
    from pytest_crate.errors import CrateError

    # Of this run: in every hierarchy, the crates' own first, then what they are made in.
    def vanish():
        removed = 0
        for top in {tops}:
            for parent, directories, _ in os.walk(top, topdown=False):
                if "pytest-crate-" in parent:
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
                if "pytest-crate-" in parent:
                    os.rmdir(parent)
        with pytest.raises(SandboxError, match="join the crate's cgroup|fork into the crate") as caught:
            crate_sandbox.run(["true"])
        assert "pytest-crate-" in str(caught.value)
"""


@pytest.fixture
def parent(tests_own_cgroups: list[str]) -> Iterator[str]:
    """A control group of the test's own, in each hierarchy; what is left of it afterwards is an error."""
    name = f"pytest-vanishing-{os.getpid()}"
    directories = [Path(directory, name) for directory in tests_own_cgroups]
    for directory in directories:
        directory.mkdir()
    yield name
    for directory in directories:
        if directory.exists():
            directory.rmdir()


@pytest.fixture
def tests_own_cgroups() -> list[str]:
    """The mount points of the hierarchies in which crates are limited."""
    mounts = hierarchies.parse_mountinfo(Path("/proc/self/mountinfo").read_text())
    first = [mount.point for mount in mounts if mount.controllers & {"memory", "cpu", "cpuacct", "pids", "cpuset"}]
    points = first or [mount.point for mount in mounts if mount.version == 2]
    return list(dict.fromkeys(os.path.realpath(point) for point in points))


def test_the_run_goes_on_and_says_what_is_gone(
    pytester: pytest.Pytester, run_inner: RunInner, parent: str, tests_own_cgroups: list[str]
) -> None:
    """Each crate after that is refused, by the path that isn't there; no test's body runs without; others run."""
    tops = [f"{point}/{parent}" for point in tests_own_cgroups]
    pytester.makeini(f"[pytest]\ncrate_cgroup_parent = /{parent}\n")
    pytester.makepyfile(TESTS.replace("{tops}", repr(tops)))
    run = run_inner("-p", "no:rerunfailures")
    outcomes = {name: run.of(name)["outcome"] for name in ("test_before", "test_vanishes", "test_plain")}
    assert outcomes == {"test_before": "passed", "test_vanishes": "passed", "test_plain": "passed"}
    for name in "test_after", "test_programs_after":
        said = run.of(name, "setup")["longrepr"]
        assert said.startswith("crate: create a cgroup: mkdir(")
        assert f"/{parent}/pytest-crate-" in said
        assert "No such file or directory (errno 2); somebody has removed the run's own, " in said
    assert not (pytester.path / "ran").exists()
    assert run.ret == pytest.ExitCode.TESTS_FAILED
    assert "INTERNALERROR" not in run.text


def test_an_open_crate(
    pytester: pytest.Pytester, run_inner: RunInner, parent: str, tests_own_cgroups: list[str]
) -> None:
    """A program that would run in no control group doesn't run; the test can close its crate."""
    tops = [f"{point}/{parent}" for point in tests_own_cgroups]
    pytester.makeini(f"[pytest]\ncrate_cgroup_parent = /{parent}\n")
    pytester.makepyfile(OPEN.replace("{tops}", repr(tops)))
    run = run_inner("-p", "no:rerunfailures")
    assert run.of("test_open")["outcome"] == "passed"
    assert run.ret == pytest.ExitCode.OK
