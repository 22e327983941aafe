"""What pytest prints under its options for the terminal is what it prints without crates."""

from __future__ import annotations

import re

import pytest

from tests.comparing import without_varying
from tests.inner import BothWays, RunInner

TESTS = """
import sys, pytest
def helper(value):
    text = "local"
    assert value == {"a": 1, "b": [1, 2, 3]}, text
@pytest.fixture
def inner(): print("up"); yield; print("down", file=sys.stderr)
def test_passes(inner): print("passing")
def test_fails(inner): helper({"a": 1, "b": [1, 2, 4]})
def test_long(): assert list(range(50)) == list(range(1, 51))
def test_chain():
    try:
        helper(1)
    except AssertionError as error:
        raise KeyError("outer") from error
@pytest.mark.parametrize("x", ["a", "b"])
def test_skips(x): pytest.skip("not now")
@pytest.mark.xfail(reason="known")
def test_xfails(): assert 0
@pytest.mark.xfail(reason="unknown")
def test_xpasses(): pass
@pytest.fixture
def broken(): raise OSError("broken")
def test_error(broken): pass
"""


@pytest.mark.parametrize(
    "options",
    [
        "--tb=auto -vv -l --color=yes --code-highlight=yes -rA",
        "--tb=long -q --show-capture=stdout -rN --no-header",
        "--tb=short -qq --show-capture=stderr -rfE --color=yes",
        "--tb=line -v --show-capture=no -rsxX --no-summary",
        "--tb=no -o console_output_style=count -o verbosity_test_cases=2 --no-fold-skipped -rs",
        "--assert=plain -o verbosity_assertions=2 -o console_output_style=classic",
        "--runxfail -l --show-capture=all -v",
        "--tb=native -rA",
        "--xfail-tb -rP -o verbosity_assertions=2 --maxfail=3",
    ],
)
def test_options(pytester: pytest.Pytester, both_ways: BothWays, options: str) -> None:
    """Traceback styles, sections, locals, summaries, verbosities, colours: the same text."""
    pytester.makepyfile(TESTS)
    both_ways(*options.split())


@pytest.mark.parametrize("options", ["-rA --color=yes", "-v --tb=short", "-q --tb=native -rfE", "--tb=line -n1"])
def test_failures_that_are_no_tracebacks(pytester: pytest.Pytester, both_ways: BothWays, options: str) -> None:
    """A doctest's failure and a missing fixture look the same, with colours and in the short summary."""
    pytester.makepyfile(
        """
        import unittest, pytest
        def doubled(x):
            '''
            >>> doubled(2)
            5
            '''
            return 2 * x
        def test_missing(no_such_fixture): pass
        def test_missing_in_body(request): request.getfixturevalue("no_such_fixture")
        @pytest.mark.xfail
        def test_missing_as_expected(no_such_fixture): pass
        def test_said(): pytest.fail("plainly", pytrace=False)
        """
    )
    run = both_ways("--doctest-modules", *options.split())
    # A worker sends text, with crates or without, of which pytest 9 shows the first line.
    lines = re.sub(r"\x1b\[[0-9;]*m", "", run.text).splitlines()
    (summary,) = [line for line in lines if line.startswith("FAILED ") and "::test_missing_in_body" in line]
    assert (" - " in summary) == ("-n1" in options and pytest.version_tuple >= (9,))


def test_every_frame(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Where pytest's own frames are shown they are the same; the plugin is only among the arguments of some."""
    pytester.makepyfile(TESTS)
    plain, crated = (
        run_inner("--full-trace", *args, way=way) for way, args in (("plain", ()), ("crated", ("--crate-all",)))
    )
    for name, when in (("test_fails", "call"), ("test_error", "setup"), ("test_chain", "call")):
        texts = [without_varying(run.of(name, when)["longrepr"]) for run in (plain, crated)]
        frames = [re.findall(r"^\S+\.py:\d+: .*$", text, re.MULTILINE) for text in texts]
        assert frames[0] == frames[1]
        assert len(frames[0]) > 5
        assert texts[0] != texts[1]
        assert _without_arguments(texts[0]) == _without_arguments(texts[1])


def _without_arguments(text: str) -> str:
    return re.sub(r"^\w+ += .*(?:\n .*)*$", "ARGUMENT", text, flags=re.MULTILINE)


def test_collect_only_and_exit_codes(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """--collect-only and --setup-plan run nothing; no tests, bad usage and a broken module have their exit codes."""
    pytester.makepyfile(TESTS)
    pytester.makepyfile(broken_module="import no_such_module\n")
    for options, code in (
        (["--co", "-q"], pytest.ExitCode.OK),
        (["-k", "nothing"], pytest.ExitCode.NO_TESTS_COLLECTED),
        (["broken_module.py"], pytest.ExitCode.INTERRUPTED),
        (["no_such_file.py"], pytest.ExitCode.USAGE_ERROR),
        (["-k", "passes"], pytest.ExitCode.OK),
    ):
        plain, crated = run_inner(*options), run_inner("--crate-all", *options, way="crated")
        assert plain.ret == crated.ret == code
        assert crated.printed() == plain.printed()


@pytest.mark.parametrize("option", ["--fixtures-per-test", "--setup-plan"])
def test_fixtures_shown(pytester: pytest.Pytester, run_inner: RunInner, option: str) -> None:
    """--fixtures-per-test and --setup-plan say the same."""
    pytester.makepyfile(TESTS)
    plain, crated = run_inner(option), run_inner("--crate-all", option, way="crated")
    assert crated.printed() == plain.printed()
