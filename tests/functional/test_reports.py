"""What pytest's options and other plugins make of a crated test's reports is what they make of a plain one's."""

from __future__ import annotations

import pytest

from tests.inner import BothWays, RunInner

MIXED = """
import logging, sys, warnings, pytest

@pytest.fixture(scope="module")
def wide():
    print("wide up"); logging.info("wide up"); yield; print("wide down"); logging.info("wide down")

@pytest.fixture
def inner():
    print("inner up"); yield; print("inner down", file=sys.stderr)

def test_prints(wide, inner):
    print("body"); print("body's error", file=sys.stderr); logging.warning("body's log")
def test_fails(inner, wide):
    local = {"a": 1}
    print("before failing"); logging.error("failing")
    assert local == {"a": 2}, "dicts differ"
def test_warns(): warnings.warn("careful", UserWarning); warnings.warn(DeprecationWarning("old"))
def test_skips(): pytest.skip("not now")
@pytest.mark.xfail
def test_xfails(inner): assert 0
@pytest.mark.parametrize("x", [1, 2])
def test_parametrized(x): assert x
"""


@pytest.mark.parametrize(
    "options",
    [
        "-rA -v",
        "-s -v",
        "--capture=no -rP",
        "-p no:logging -rA",
        "-o log_cli=true --log-cli-level=INFO -v",
        "-x",
        "--maxfail=1 -v",
        "--setup-show -v",
        "--setup-only",
        "-W error::UserWarning -v",
        "-p no:warnings",
        "-p no:terminal",
        "--deselect test_options_make_no_difference.py::test_fails -v",
    ],
)
def test_options_make_no_difference(pytester: pytest.Pytester, both_ways: BothWays, options: str) -> None:
    """Under each option the same is reported, printed and written as JUnit XML as without crates."""
    pytester.makepyfile(test_options_make_no_difference=MIXED)
    run = both_ways(*options.split())
    assert run.reports


def test_last_failed_and_stepwise(pytester: pytest.Pytester, both_ways: BothWays, run_inner: RunInner) -> None:
    """--lf, --ff, --nf and --sw choose the same tests after a crated run as after a plain one."""
    pytester.makepyfile("def test_a(): pass\ndef test_b(): assert 0\ndef test_c(): pass\ndef test_d(): assert 0\n")
    for options in ((), ("--lf",), ("--ff",), ("--sw",), ("--sw", "--sw-skip"), ("--nf",)):
        run = both_ways("-v", *options)
        assert run.ret == (pytest.ExitCode.INTERRUPTED if "--sw" in options else pytest.ExitCode.TESTS_FAILED)
    assert run_inner("--crate-all", "--lf", way="crated").outcomes() == {"failed": 2}


def test_warnings_have_their_place(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """The warnings summary names test, file and line; pytest.warns, recwarn and filters work inside."""
    pytester.makepyfile(
        """
        import warnings, pytest
        class OwnWarning(UserWarning):
            def __init__(self, first, second): super().__init__(first, second)
        @pytest.fixture
        def warns_too(): warnings.warn("in setup"); yield; warnings.warn("in teardown")
        def test_warns(warns_too): warnings.warn("in body")
        def test_own(): warnings.warn(OwnWarning(1, 2))
        def test_local():
            class Local(Warning): pass
            warnings.warn("local", Local)
        def test_expected():
            with pytest.warns(UserWarning, match="yes"): warnings.warn("yes")
        def test_recwarn(recwarn):
            warnings.warn("kept"); assert len(recwarn) == 1
        @pytest.mark.filterwarnings("error")
        def test_error(): warnings.warn("raised")
        @pytest.mark.filterwarnings("ignore")
        def test_ignored(): warnings.warn("silent")
        def test_unraisable():
            class Bad:
                def __del__(self): raise ValueError("in del")
            Bad()
        def test_thread():
            import threading
            thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join()
        """
    )
    run = both_ways("-v")
    assert "test_warnings_have_their_place.py:6: UserWarning: in body" in run.text
    assert run.outcomes()["warnings"] >= 5


def test_properties(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """record_property, record_xml_attribute and record_testsuite_property reach the XML, whatever the object."""
    pytester.makepyfile(
        """
        import pytest
        def test_plain(record_property): record_property("key", "value"); record_property("number", 7)
        def test_objects(record_property):
            for value in (object, {1, 2} - {2}, b"bytes", ("a", 1), {"k": [1]}, 1.5, None, True, ValueError("x")):
                record_property("any", value)
        @pytest.fixture
        def late(record_property):
            yield
            record_property("late", "in teardown")
        def test_late(late): pass
        @pytest.mark.filterwarnings("ignore")
        def test_attribute(record_xml_attribute): record_xml_attribute("own", "attribute")
        def test_suite(record_testsuite_property): record_testsuite_property("suite", "wide")
        @pytest.fixture(scope="session", autouse=True)
        def session_property(record_testsuite_property): record_testsuite_property("session", "wide")
        """
    )
    run = both_ways("-o", "junit_family=xunit1")
    assert '"suite"' in str(run.junit).replace("'", '"')
    assert run.of("test_plain", "call")["properties"] == [["key", "value"], ["number", "7"]]


def test_values_that_json_does_not_hold(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """Of a list that holds itself, nests without end or holds what JSON has none of, JUnit XML shows the same."""
    pytester.makepyfile(
        """
        import pytest
        LONG = 10**5000
        @pytest.fixture
        def long(): return LONG
        def test_fixture(long): assert long
        @pytest.mark.xfail(raises=ValueError, strict=True)
        def test_raises(): raise ValueError(LONG)
        def test_itself(record_property): own = []; own.append(own); record_property("a", own)
        def test_deep(record_property):
            deep = []
            for _ in range(400): deep = [deep]
            record_property("a", deep)
        def test_mixed(record_property): record_property("a", {1: (2, {3})}); record_property("b", [(1,), None])
        def test_plain(record_property): record_property("a", {"b": [1, None, "c", 1.5]}); record_property("b", -10**12)
        def test_middle(record_property): record_property("a", 10**1000)
        """
    )
    outcomes = both_ways("-o", "junit_family=xunit1").outcomes()
    assert {name: outcomes[name] for name in outcomes if name != "warnings"} == {"passed": 6, "xfailed": 1}


@pytest.mark.parametrize("args", [[], pytest.param(["-n2"], marks=pytest.mark.needs("xdist"))], ids=["plain", "xdist"])
def test_numbers_without_end(pytester: pytest.Pytester, run_inner: RunInner, args: list[str]) -> None:
    """A number that Python reads from no digits comes home as text."""
    pytester.makepyfile(
        """
        def test_it(record_property): record_property("a", 10**5000); record_property("b", [10**5000])
        """
    )
    run = run_inner("--crate-all", "-o", "junit_family=xunit1", *args)
    assert run.outcomes() == {"passed": 1}
    assert run.of("test_it")["properties"][0] == ["a", hex(10**5000)]


def test_every_name_of_xml(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """An attribute may have any name that XML allows."""
    pytester.makepyfile(
        """
        def test_it(record_xml_attribute):
            for name in ("größe", "xmlns:xsi", "xsi:type", "a.b-c_1·"): record_xml_attribute(name, "urn:x")
        """
    )
    assert "größe" in str(both_ways("-o", "junit_family=xunit1").junit)


def test_makereport_hooks(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """The documentation's recipe of a fixture that looks at rep_call works; hooks of a conftest file change reports."""
    pytester.makeconftest(
        """
        import pytest
        phase_report_key = pytest.StashKey()
        @pytest.hookimpl(wrapper=True, tryfirst=True)
        def pytest_runtest_makereport(item, call):
            report = yield
            item.stash.setdefault(phase_report_key, {})[report.when] = report
            setattr(item, "rep_" + report.when, report)
            if call.when == "call" and "renamed" in item.name:
                report.sections.append(("from hook", "hello"))
                report.extra = ["extra"]
            return report
        @pytest.fixture
        def something(request):
            yield
            report = request.node.stash[phase_report_key]
            if report["setup"].failed: print("setting up a test failed")
            elif "call" not in report or report["call"].failed: print("executing test failed", request.node.nodeid)
            else: print("passed", request.node.rep_call.duration >= 0)
        def pytest_runtest_logreport(report):
            if report.when == "call": assert ("renamed" in report.nodeid) == hasattr(report, "extra")
        def pytest_terminal_summary(terminalreporter):
            terminalreporter.write_line(f"passed: {len(terminalreporter.getreports('passed'))}")
        def pytest_report_teststatus(report):
            if report.when == "call" and report.passed: return "passed", "+", "GOOD"
        def pytest_runtest_logstart(nodeid): print("start", nodeid)
        """
    )
    pytester.makepyfile(
        """
        def test_passes(something): pass
        def test_fails(something): assert 0
        def test_renamed(something): pass
        """
    )
    run = both_ways("-rA", "-v")
    assert ["Captured stdout teardown", "passed True\n"] in run.of("test_passes", "teardown")["sections"]
    assert run.of("test_fails", "teardown")["sections"][-1][1].startswith("executing test failed")


def test_assert_rewriting(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """Asserts are rewritten in tests, conftest files and registered modules; long diffs are cut by -v as usual."""
    pytester.makeconftest("import pytest\npytest.register_assert_rewrite('lib')\n")
    pytester.makepyfile(
        lib="def check(a):\n    assert a == [1, 2]\n",
        test_it="""
        import lib
        def pytest_assertrepr_compare(): ...
        def test_lib(): lib.check([1, 3])
        def test_long(): assert list(range(100)) == list(range(1, 101))
        def test_text(): assert "a\\n" * 30 == "a\\n" * 31
        def test_late_import():
            import late
            late.check(3)
        """,
        late="def check(a):\n    assert a == 4, 'late'\n",
    )
    run = both_ways()
    assert "assert [1, 3] == [1, 2]" in run.text


def test_reruns_have_fresh_crates(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """pytest-rerunfailures tries a test again in a crate of its own; what an earlier try did is gone."""
    pytest.importorskip("pytest_rerunfailures")
    pytester.makepyfile(
        """
        import os, pytest, pathlib
        @pytest.fixture
        def mark(): yield; pathlib.Path("/etc/tried").touch()
        @pytest.mark.flaky(reruns=2)
        def test_flaky(mark, tmp_path_factory):
            assert not os.path.exists("/etc/tried")
            tries = tmp_path_factory.getbasetemp() / "tries"
            with tries.open("a") as file: file.write(f"{os.readlink('/proc/self/ns/pid')}\\n")
            assert len(tries.read_text().split()) == 3
        @pytest.mark.flaky(reruns=1)
        def test_never(mark): assert not os.path.exists("/etc/tried"); raise ValueError
        """
    )
    run = run_inner("--crate-all", "-v")
    assert run.outcomes() == {"passed": 1, "failed": 1, "rerun": 3}
    crates = [report["crates"] for report in run.reports if report["when"] == "teardown"]
    assert crates == [["body"]] * len(crates)
