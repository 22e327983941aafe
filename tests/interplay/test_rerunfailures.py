"""pytest-rerunfailures: each try has a fresh crate."""

from __future__ import annotations

import pytest

from tests.inner import BothWays, RunInner


def test_a_fresh_crate_for_each_try(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """What a try has written and set is gone in the next; what the parent's side counts is not."""
    pytester.makepyfile(
        """
        import os, pathlib, pytest
        state = []
        @pytest.fixture
        def place(): return pathlib.Path("left-behind")
        @pytest.mark.flaky(reruns=2)
        def test_tries(place, tmp_path_factory):
            assert not place.exists() and not state and os.getpid() == 2
            place.write_text("here"); state.append(1)
            tries = tmp_path_factory.getbasetemp() / "tries"
            with tries.open("a") as file: file.write("x")
            assert tries.read_text() == "xxx"
        """
    )
    run = run_inner("--crate-all", plugins=["rerunfailures"], way="crated")
    assert run.outcomes() == {"passed": 1, "rerun": 2}
    crates = [report["crates"] for report in run.reports if report["when"] == "teardown"]
    assert crates == [["body"]] * len(crates)
    assert not (pytester.path / "left-behind").exists()


def test_reruns_are_the_same(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """In set-up, body and tear-down, by option, by marker, with a condition, and for some errors only."""
    pytester.makepyfile(
        """
        import pytest
        @pytest.fixture
        def bad(): raise ValueError("early")
        @pytest.fixture
        def late():
            yield
            raise ValueError("late")
        @pytest.fixture(scope="module")
        def wide(): yield "wide"
        def test_setup(bad): pass
        def test_body(wide): assert wide == "narrow"
        def test_teardown(late): pass
        @pytest.mark.flaky(reruns=3, condition=False)
        def test_never(): assert 0
        @pytest.mark.flaky(reruns=2, only_rerun=["TypeError"])
        def test_other_error(): raise KeyError("no")
        @pytest.mark.flaky(reruns=2, only_rerun=["KeyError"])
        def test_this_error(): raise KeyError("yes")
        def test_passes(): pass
        """
    )
    run = both_ways("--reruns=1", "-rR", plugins=["rerunfailures"])
    assert run.outcomes() == {"passed": 3, "failed": 4, "errors": 2, "rerun": 5}
