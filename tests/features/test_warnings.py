"""Warnings of crates: where they are shown, and what they may become."""

from __future__ import annotations

import pytest

from tests.inner import BothWays, RunInner

WARNS = """
import gc, threading, warnings, pytest
warnings.warn("at collection")
class Bad:
    def __del__(self): raise ValueError("in del")
@pytest.fixture(scope="module")
def wide(): warnings.warn("wide up"); yield; warnings.warn("wide down")
@pytest.fixture
def inner(): warnings.warn("inner up"); yield; warnings.warn("inner down")
def test_body(wide, inner): warnings.warn("body"); warnings.warn("body", DeprecationWarning)
def test_unraisable(): Bad()
def test_thread():
    thread = threading.Thread(target=lambda: 1 / 0, name="worker"); thread.start(); thread.join()
def test_resource(tmp_path): open(tmp_path / "file", "w")
@pytest.mark.filterwarnings("error:marked")
def test_marked(): warnings.warn("marked error")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_ignored(): warnings.warn("never seen")
@pytest.mark.parametrize("n", [1, 2])
def test_many(n): warnings.warn("from many")
def test_returns(): return 1
@pytest.fixture
def late(): yield; warnings.warn("late")
def test_late(late): pass
"""


RAISED = "pytest.PytestUnraisableExceptionWarning", "pytest.PytestUnhandledThreadExceptionWarning"


@pytest.mark.parametrize(
    "options",
    [
        "-v",
        "--tb=line -W error::{} -W error::{}".format(*RAISED),
        "-W ignore:body -rw",
        "-W error::DeprecationWarning --disable-warnings",
        "-W error:inner -W error:late -rA",
    ],
)
def test_summary_and_errors(pytester: pytest.Pytester, both_ways: BothWays, options: str) -> None:
    """The summary names the tests; a filter ignores a warning or makes it the failure of the same phase."""
    pytester.makepyfile(WARNS)
    run = both_ways(*options.split())
    if options == "-v":
        for words in ("test_unraisable", "PytestUnraisableExceptionWarning", "PytestUnhandledThreadExceptionWarning"):
            assert words in run.text
        assert run.of("test_marked")["outcome"] == "failed"
    if "error:late" in options:
        assert run.of("test_body", "setup")["outcome"] == "failed"
        assert run.of("test_late", "teardown")["outcome"] == "failed"


def test_recorders(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """recwarn, pytest.warns, pytest.deprecated_call and warnings.catch_warnings have what was warned inside."""
    pytester.makepyfile(
        """
        import warnings, pytest
        def test_recwarn(recwarn):
            warnings.warn("one"); warnings.warn("two", DeprecationWarning)
            assert [str(w.message) for w in recwarn] == ["one", "two"]
            assert recwarn.pop(DeprecationWarning).lineno == 3
        def test_warns():
            with pytest.warns(UserWarning, match="ye.") as record: warnings.warn("yes")
            assert len(record) == 1
        def test_warns_not():
            with pytest.warns(UserWarning): pass
        def test_other_is_raised_again():
            with pytest.warns(UserWarning, match="right"):
                warnings.warn("right"); warnings.warn("left")
        def test_deprecated():
            with pytest.deprecated_call(): warnings.warn("old", DeprecationWarning)
        def test_catch():
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always"); warnings.warn("caught")
            assert len(caught) == 1
        def test_no_warnings():
            with warnings.catch_warnings():
                warnings.simplefilter("error"); warnings.warn("raised")
        """
    )
    run = both_ways("-v")
    assert run.outcomes() == {"passed": 5, "failed": 2, "warnings": 1}


@pytest.mark.parametrize("traced", [False, True], ids=["untraced", "traced"])
def test_sources(pytester: pytest.Pytester, both_ways: BothWays, traced: bool) -> None:
    """A warning about an object says where that was made, or how to have it said (tracemalloc)."""
    pytester.makeconftest(f"import tracemalloc\nif {traced}:\n    tracemalloc.start()\n")
    pytester.makepyfile(
        """
        import warnings
        def test_file(tmp_path): open(tmp_path / "file", "w")
        def test_other():
            class Thing: pass
            warnings.warn("thing", ResourceWarning, source=Thing())
        """
    )
    run = both_ways("-W", "default::ResourceWarning")
    words = "Object allocated at:" if traced else "Enable tracemalloc to get traceback where the object was allocated."
    assert words in run.text
    assert run.outcomes() == {"passed": 2, "warnings": 2}


@pytest.mark.parametrize("file", ["os.mkfifo(path)", "open(path, 'w').truncate(10 << 30)"], ids=["pipe", "endless"])
def test_a_warning_or_an_interrupt_at_what_is_no_source(
    pytester: pytest.Pytester, run_inner: RunInner, file: str
) -> None:
    """A test may say that it warns at a line of anything, in its own directory: pytest neither waits for that, nor
    takes it into its memory, to show the line."""
    pytester.makepyfile(
        f"""
        import os, warnings, pytest
        from pytest_crate.plugin.report_pipe import ReportPipe

        @pytest.fixture
        def path(tmp_path):
            path = str(tmp_path / "source.py")
            {file}
            return path

        def test_warns(path):
            warnings.warn_explicit("strange", UserWarning, path, 1)

        def test_interrupts(path):
            leave = ReportPipe.leave
            def forge(pipe, status):
                pipe.send({{"stop": {{"kind": "interrupt", "path": path, "line": 1}}}})
                leave(pipe, status)
            ReportPipe.leave = forge
        """
    )
    run = run_inner("--crate-all")
    assert run.ret == pytest.ExitCode.INTERRUPTED
    assert run.of("test_warns")["outcome"] == "passed"
    assert "source.py:1: UserWarning: strange" in run.text
    assert "source.py>:1: KeyboardInterrupt" in run.text


def test_a_class_that_needs_its_constructor(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """A warning whose text is made of what only its constructor sets, as each of Pydantic's, is shown as it was."""
    pytester.makepyfile(
        deprecated="""
        class Since(DeprecationWarning):
            def __init__(self, message, *, since):
                super().__init__(message)
                self.message, self.since = message, since
            def __str__(self):
                return f"{self.message}. Deprecated since {self.since}."
        """,
        test_suite="""
        import warnings
        from deprecated import Since
        def test_warns(): warnings.warn(Since("old", since=(2, 0)))
        def test_fails(): assert 0
        """,
    )
    run = both_ways()
    assert "Since: old. Deprecated since (2, 0)." in run.text
    assert run.outcomes() == {"passed": 1, "failed": 1, "warnings": 1}


def test_an_exception_whose_text_interrupts(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """It fails its test, and the others run."""
    pytester.makepyfile(
        """
        class Ends(Exception):
            def __str__(self): raise KeyboardInterrupt
        def test_raises(): raise Ends
        def test_passes(): pass
        """
    )
    assert both_ways().outcomes() == {"passed": 1, "failed": 1}
