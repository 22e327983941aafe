"""The fault handler, in the crate."""

from __future__ import annotations

import pytest

from tests.inner import RunInner


def test_timeout_dumps_stacks(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """faulthandler_timeout dumps the stacks of the test's own threads, and the test goes on."""
    pytester.makepyfile(
        """
        import threading, time
        def linger(): time.sleep(1.2)
        def test_slow():
            thread = threading.Thread(target=linger); thread.start(); thread.join()
        def test_quick(): pass
        def test_fails(): assert 0
        """
    )
    run = run_inner("--crate-all", "-o", "faulthandler_timeout=0.4")
    assert run.outcomes() == {"passed": 2, "failed": 1}
    errors = run.result.stderr.str()
    assert errors.count("Timeout (0:00:00.4") == 1  # pytest waits as long
    assert "in linger" in errors
    assert "in test_slow" in errors


@pytest.mark.skipif(pytest.version_tuple < (9,), reason="the option came with pytest 9")
def test_exit_on_timeout(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """With faulthandler_exit_on_timeout it ends the test's process, which fails that test alone."""
    # The first test waits for the launcher, too: in pytest's own process the timeout ends all of pytest.
    pytester.makepyfile(
        "import time\ndef test_quick(): pass\ndef test_slow(): time.sleep(60)\ndef test_after(): pass\n"
    )
    run = run_inner("--crate-all", "-o", "faulthandler_timeout=3", "-o", "faulthandler_exit_on_timeout=true")
    assert run.outcomes() == {"passed": 2, "failed": 1}
    assert "ended with exit status 1 before it could report" in run.of("test_slow")["longrepr"]


@pytest.mark.parametrize("phase", ["setup", "call", "teardown"])
def test_crash_has_its_stack(pytester: pytest.Pytester, run_inner: RunInner, phase: str) -> None:
    """The report of a segmentation fault has the stack of where it was."""
    places = {name: "crash()" if name == phase else "pass" for name in ("setup", "call", "teardown")}
    pytester.makepyfile(
        f"""
        import ctypes, pytest
        def crash(): ctypes.string_at(0)
        @pytest.fixture
        def inner():
            {places["setup"]}
            yield
            {places["teardown"]}
        def test_crashes(inner):
            {places["call"]}
        """
    )
    run = run_inner("--crate-all")
    text = "".join(text for _, text in run.of("test_crashes", phase)["sections"])
    assert "Segmentation fault" in text
    assert "in crash" in text


def test_without_it(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """-p no:faulthandler leaves a crash without its stack; a timeout still has one."""
    pytester.makepyfile(
        """
        import ctypes, time, pytest
        def test_crashes(): ctypes.string_at(0)
        @pytest.mark.crate(timeout=0.5)
        def test_hangs(): time.sleep(60)
        """
    )
    run = run_inner("--crate-all", "-p", "no:faulthandler")
    assert "Segmentation fault" not in run.text
    assert any("in test_hangs" in text for _, text in run.of("test_hangs")["sections"])
