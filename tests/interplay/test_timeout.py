"""pytest-timeout: its timer runs in the crate."""

from __future__ import annotations

import pytest

from tests.inner import BothWays, RunInner


def test_signal_method(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """In the body, in its fixture before and after it, in a wider one; the traceback is the test's own."""
    pytester.makepyfile(
        """
        import pytest, time
        def wait():
            time.sleep(30)
        @pytest.fixture
        def early(): wait()
        @pytest.fixture
        def late():
            yield
            wait()
        @pytest.fixture(scope="class")
        def wide(): wait()
        @pytest.fixture(scope="class")
        def wide_late():
            yield
            wait()
        def test_body(): wait()
        def test_setup(early): pass
        def test_teardown(late): pass
        class TestWide:
            def test_wide(self, wide): pass
        class TestWideLate:
            def test_wide_late(self, wide_late): pass
        @pytest.mark.timeout(0.6, func_only=True)
        def test_function_only(): wait()
        @pytest.mark.timeout(0)
        def test_none(): time.sleep(2)
        def test_passes(): pass
        """
    )
    run = both_ways("--timeout=1.5", "--timeout-method=signal", plugins=["timeout"])
    assert run.outcomes() == {"passed": 4, "failed": 2, "errors": 4}
    assert run.of("test_body")["longrepr"].count("Failed: Timeout (>1.5s) from pytest-timeout.") == 1
    assert ">       time.sleep(30)" in run.of("test_body")["longrepr"]
    assert run.of("test_function_only")["longrepr"].count("Failed: Timeout (>0.6s) from pytest-timeout.") == 1


def test_thread_method(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """It ends the crate, not pytest: the stack that it prints is the body's, and the run goes on."""
    pytester.makepyfile(
        """
        import time
        def test_hangs():
            print("before the end")
            time.sleep(30)
        def test_later(): pass
        """
    )
    options = ("--timeout=1.5", "--timeout-method=thread")
    plain = run_inner(*options, plugins=["timeout"])
    crated = run_inner("--crate-all", *options, plugins=["timeout"], way="crated")
    for run in (plain, crated):
        (place,) = [number for number, line in enumerate(run.result.outlines) if "Stack of MainThread" in line]
        assert "time.sleep(30)" in "".join(run.result.outlines[place:])
        assert "before the end" in run.text
    assert plain.ret == 1
    assert not plain.reports[1:]
    assert crated.outcomes() == {"passed": 1, "failed": 1}
    assert crated.of("test_hangs")["longrepr"] == "the test's process ended with exit status 1 before it could report"


@pytest.mark.parametrize(("crate", "message"), [("1.5", "crate"), ("20", "pytest-timeout")])
def test_the_earlier_one_speaks(pytester: pytest.Pytester, run_inner: RunInner, crate: str, message: str) -> None:
    """Of the crate's timeout and pytest-timeout's, the one that is over first ends the test and says so."""
    pytester.makepyfile("import time\ndef test_hangs(): time.sleep(30)")
    other = "20" if message == "crate" else "1.5"
    run = run_inner("--crate-all", f"--crate-timeout={crate}", f"--timeout={other}", plugins=["timeout"])
    text = run.of("test_hangs")["longrepr"]
    assert ("from pytest-timeout" in text) == (message == "pytest-timeout")
    assert ("timeout of 1.5 s exceeded" in text) == (message == "crate"), text


def test_reruns(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """A failure ends pytest-timeout's timer, so that later tries have none; so it is in their crates."""
    pytester.makepyfile(
        """
        import pytest, time
        @pytest.mark.timeout(1.5)
        @pytest.mark.flaky(reruns=2)
        def test_tries():
            time.sleep(0.8)
            assert 0
        """
    )
    run = both_ways(plugins=["timeout", "rerunfailures"])
    assert run.outcomes() == {"failed": 1, "rerun": 2}
