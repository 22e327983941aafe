"""What pytest prints under its options for the terminal is what it prints without crates."""

from __future__ import annotations

import pytest

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
        "--xfail-tb -rP -o verbosity_assertions=2 --maxfail=3",
    ],
)
def test_options(pytester: pytest.Pytester, both_ways: BothWays, options: str) -> None:
    """Traceback styles, sections, locals, summaries, verbosities, colours: the same text."""
    pytester.makepyfile(TESTS)
    both_ways(*options.split())


@pytest.mark.parametrize("option", ["--tb=native", "--full-trace"])
def test_every_frame(pytester: pytest.Pytester, run_inner: RunInner, option: str) -> None:
    """Where every frame is shown, those of the plugin's own hooks are among pytest's; the test's are the same."""
    pytester.makepyfile(TESTS)
    plain, crated = (
        run_inner(option, *args, way=way).of("test_fails")["longrepr"]
        for way, args in (("plain", ()), ("crated", ("--crate-all",)))
    )
    start = "in test_fails" if option == "--tb=native" else ">   def test_fails(inner)"
    assert crated[crated.index(start) :] == plain[plain.index(start) :]


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
        assert crated.printed(plain) == plain.printed()


@pytest.mark.parametrize("option", ["--fixtures-per-test", "--setup-plan"])
def test_fixtures_shown(pytester: pytest.Pytester, run_inner: RunInner, option: str) -> None:
    """--fixtures-per-test and --setup-plan say the same."""
    pytester.makepyfile(TESTS)
    plain, crated = run_inner(option), run_inner("--crate-all", option, way="crated")
    assert crated.printed(plain) == plain.printed()
