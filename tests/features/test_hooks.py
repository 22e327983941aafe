"""Hooks of conftest files and plugins: each does its work once, where it belongs."""

from __future__ import annotations

import re

import pytest

from tests.inner import BothWays, RunInner

TESTS = """
import pytest
@pytest.fixture(scope="module")
def wide(): yield; print("wide down")
@pytest.fixture
def inner(): yield; print("inner down")
def test_passes(inner): pass
def test_fails(inner): assert 0
def test_skips(): pytest.skip("no")
def test_last(wide): pass
"""


@pytest.mark.parametrize("option", ["-v", "-s"])
def test_what_a_hook_prints(pytester: pytest.Pytester, both_ways: BothWays, option: str) -> None:
    """What a hook of a phase, a fixture or a report prints is printed once, where it is in a plain run."""
    pytester.makeconftest(
        """
        def pytest_runtest_setup(item): print("H setup")
        def pytest_runtest_call(item): print("H call")
        def pytest_runtest_teardown(item): print("H teardown")
        def pytest_exception_interact(node, call, report): print("H interact", report.when, call.excinfo.typename)
        def pytest_runtest_makereport(item, call):
            if call.when != "teardown": print("H make", call.when, call.excinfo and call.excinfo.typename)
        def pytest_runtest_logreport(report): print("H logreport", report.when, report.outcome)
        def pytest_runtest_logstart(nodeid): print("H start")
        def pytest_runtest_logfinish(nodeid): print("H finish")
        def pytest_runtest_protocol(item): print("H protocol")
        def pytest_fixture_setup(fixturedef): print("H fixture", fixturedef.argname)
        def pytest_fixture_post_finalizer(fixturedef): print("H post", fixturedef.argname)
        """
    )
    pytester.makepyfile(TESTS)
    run = both_ways("-rA", option)
    assert run.of("test_fails", "teardown")["outcome"] == "passed"


@pytest.mark.parametrize("option", ["-v", "-s"])
def test_what_a_hook_wrapper_prints(pytester: pytest.Pytester, both_ways: BothWays, option: str) -> None:
    """The same holds for both kinds of wrappers, and for what they write on the terminal, log and warn of."""
    pytester.makeconftest(
        """
        import logging, warnings, pytest
        def wrap(name, **options):
            @pytest.hookimpl(**options)
            def hook(item):
                print("H before", name)
                result = yield
                print("H after", name)
                if name != "protocol": logging.warning("logged %s", name)
                warnings.warn(f"warned {name}")
                item.config.get_terminal_writer().line(f"written {name}")
                return None if "hookwrapper" in options else result
            return hook
        pytest_runtest_setup = wrap("setup", wrapper=True)
        pytest_runtest_call = wrap("call", hookwrapper=True)
        pytest_runtest_teardown = wrap("teardown", wrapper=True)
        pytest_runtest_makereport = wrap("makereport", hookwrapper=True)
        pytest_runtest_protocol = wrap("protocol", wrapper=True)
        """
    )
    pytester.makepyfile("def test_passes(): pass\ndef test_fails(): assert 0\n")
    both_ways("-rA", "-o", "log_cli=true", option)


def test_a_hook_keeps_what_it_remembers(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """The hooks of the phases and reports of one test are known to those of the next: pytest's own recipe works."""
    pytester.makeconftest(
        """
        import pytest
        failed, seen = {}, []
        def pytest_runtest_makereport(item, call):
            if call.excinfo is not None:
                failed.setdefault(item.cls, (item.name, call.excinfo.typename, str(call.excinfo.value)))
        def pytest_runtest_setup(item):
            if item.cls in failed:
                pytest.xfail(f"previous test failed: {failed[item.cls]}")
        def pytest_runtest_call(item): seen.append(f"call {item.name}")
        def pytest_runtest_teardown(item, nextitem): seen.append(f"teardown {item.name} {nextitem and nextitem.name}")
        def pytest_runtest_logreport(report): seen.append(report.when)
        def pytest_terminal_summary(terminalreporter): terminalreporter.write_line(" ".join(seen))
        """
    )
    pytester.makepyfile(
        """
        import pytest
        class OwnError(Exception):
            def __init__(self, one, two): super().__init__(one, two)
        class TestAssert:
            def test_passes(self): pass
            def test_fails(self): assert 1 == 2
            def test_never(self): raise SystemExit
        class TestOwn:
            def test_fails(self): raise OwnError(1, "two")
            def test_never(self): raise SystemExit
        class TestLocal:
            def test_fails(self):
                class Local(Exception): pass
                raise Local("x")
            def test_never(self): raise SystemExit
        class Picky(ValueError):
            def __new__(cls, one, *, two): return super().__new__(cls, one)
            def __init__(self, one, *, two): super().__init__(one)
        class TestPicky:
            def test_fails(self): raise Picky(1, two=2)
            def test_never(self): raise SystemExit
        class TestOS:
            def test_fails(self): open("/no/such/file")
            def test_never(self): raise SystemExit
        class TestSkip:
            def test_skips(self): pytest.skip("not here")
            def test_never(self): raise SystemExit
        """
    )
    run = both_ways("-rA", "-v")
    assert run.outcomes() == {"passed": 1, "failed": 5, "skipped": 1, "xfailed": 6}


def test_report_hook_with_fixtures(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """A report hook that looks at a fixture's value, as pytest's own recipe does, finds it in the crate."""
    pytester.makeconftest(
        """
        import os, pytest
        @pytest.hookimpl(wrapper=True, tryfirst=True)
        def pytest_runtest_makereport(item, call):
            rep = yield
            if rep.when == "call" and rep.failed:
                mode = "a" if os.path.exists("failures") else "w"
                with open("failures", mode, encoding="utf-8") as f:
                    if "tmp_path" in item.fixturenames:
                        extra = " ({})".format(item.funcargs["tmp_path"])
                    else:
                        extra = ""
                    f.write(rep.nodeid + extra + "\\n")
            return rep
        class Driver:
            def screenshot(self): return "a picture"
        @pytest.fixture
        def driver(): return Driver()
        """
    )
    pytester.makepyfile(
        test_it="""
        def test_a(tmp_path): assert 0
        def test_b(): assert 0
        def test_c(driver): assert 0
        """,
    )
    pytester.mkpydir("sub").joinpath("conftest.py").write_text(
        "import pytest\n"
        "@pytest.hookimpl(hookwrapper=True)\n"
        "def pytest_runtest_makereport(item, call):\n"
        "    outcome = yield\n"
        "    report = outcome.get_result()\n"
        "    if report.failed:\n"
        "        report.sections.append(('screenshot', item.funcargs['driver'].screenshot()))\n"
        "def pytest_runtest_teardown(item): print(item.funcargs['driver'].screenshot())\n"
        "def pytest_runtest_call(item): item.funcargs['driver'].screenshot()\n"
    )
    (pytester.path / "sub" / "test_sub.py").write_text(
        "def test_fails(driver): assert 0\ndef test_fine(driver): pass\n"
    )
    run = both_ways("-rA", "-v")
    assert ["screenshot", "a picture"] in run.of("sub/test_sub.py::test_fails")["sections"]
    assert ["Captured stdout teardown", "a picture\n"] in run.of("test_fine", "teardown")["sections"]
    lines = (pytester.path / "failures").read_text().splitlines()
    assert len(lines) == 8
    assert [line.partition(" (")[0] for line in lines] == [
        "sub/test_sub.py::test_fails", "test_it.py::test_a", "test_it.py::test_b", "test_it.py::test_c",
    ] * 2  # fmt: skip
    assert lines[5].endswith("/test_a0)")


def test_hooks_that_decide(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """A hook that skips, fails, or changes a report does so; one that hides a failure hides it as in a plain run."""
    pytester.makeconftest(
        """
        import pytest
        def pytest_runtest_setup(item):
            if "skip_setup" in item.name: pytest.skip("by set-up hook")
        def pytest_runtest_call(item):
            if "skip_call" in item.name: pytest.skip("by call hook")
            if "fail_call" in item.name: pytest.fail("by call hook", pytrace=False)
        @pytest.hookimpl(hookwrapper=True)
        def pytest_runtest_teardown(item):
            outcome = yield
            if "fail_down" in item.name: outcome.force_exception(pytest.fail.Exception("late", pytrace=False))
        @pytest.hookimpl(wrapper=True)
        def pytest_pyfunc_call(pyfuncitem):
            try:
                return (yield)
            except OSError:
                return True
        @pytest.hookimpl(hookwrapper=True)
        def pytest_runtest_makereport(item, call):
            outcome = yield
            report = outcome.get_result()
            if "flip" in item.name and call.when == "call":
                report.outcome = "passed" if report.failed else "failed"
                report.longrepr = "flipped"
        """
    )
    pytester.makepyfile(
        """
        def test_skip_setup(): pass
        def test_skip_call(): pass
        def test_fail_call(): pass
        def test_fail_down(): pass
        def test_hidden(): raise OSError
        def test_flip_fails(): assert 0
        def test_flip_passes(): pass
        def test_last(): pass
        """
    )
    run = both_ways("-rA", "-v")
    assert run.outcomes() == {"passed": 4, "failed": 2, "skipped": 2, "errors": 1}


def test_where_hooks_run(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Set-up's hooks before pytest's own run in pytest; later ones, and those of body and tear-down, in the crate."""
    pytester.makeconftest(
        """
        import socket, pytest
        def say(words): print("hook:", words, "inside" if socket.gethostname() == "crate" else "outside")
        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_setup(item):
            say("wrapper before set-up")
            yield
            say("wrapper after set-up")
        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_call(item): say("wrapper before call"); return (yield)
        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_makereport(item, call): say(f"report of {call.when}"); return (yield)
        class More:
            def pytest_runtest_setup(self, item): say("set-up")
            def pytest_runtest_call(self, item): say("call")
            def pytest_runtest_teardown(self, item): say("tear-down")
        class Late:
            @pytest.hookimpl(trylast=True)
            def pytest_runtest_setup(self, item): say("last of set-up")
            @pytest.hookimpl(trylast=True)
            def pytest_runtest_teardown(self, item): say("last of tear-down")
        def pytest_configure(config):
            config.pluginmanager.register(More())
            config.pluginmanager.register(Late())
        """
    )
    pytester.makepyfile("def test_it(): pass\n")
    run = run_inner("--crate-all", "-s")
    said = re.findall(r"hook: ([a-z -]*) (inside|outside)", run.text)
    assert [words for words, where in said if where == "outside"] == ["wrapper before set-up", "set-up"]
    assert [words for words, where in said if where == "inside"] == [
        *("last of set-up", "wrapper after set-up", "report of setup"),
        *("wrapper before call", "call", "report of call"),
        *("tear-down", "last of tear-down", "report of teardown"),
    ]


def test_hooks_of_pytests_own(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Reports are logged, and warnings recorded, in pytest's process and in no crate."""
    pytester.makeconftest(
        """
        import os
        def note(words):
            with open("noted/log", "a") as file: print(words, os.getpid(), file=file)
        def pytest_runtest_logreport(report): note(f"logged {report.when}")
        def pytest_warning_recorded(warning_message): note(f"recorded {warning_message.message}")
        """
    )
    pytester.mkdir("noted")
    pytester.makepyfile("import warnings\ndef test_it(): warnings.warn('careful')\n")
    run = run_inner("--crate-all", "--crate-mount=noted:rw")
    words = ["logged setup", "recorded careful", "logged call", "logged teardown"]
    pid = run.reports[0]["pid"]
    assert sorted((pytester.path / "noted" / "log").read_text().splitlines()) == sorted(
        f"{each} {pid}" for each in words
    )


def test_a_crash_and_hooks(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """When the crate is lost, hooks of the report run in pytest: loudly, and what they lack there stops nothing.

    No hook makes an expected failure of it, nor a success.
    """
    pytester.makeconftest(
        """
        import pytest
        @pytest.hookimpl(hookwrapper=True)
        def pytest_runtest_makereport(item, call):
            outcome = yield
            report = outcome.get_result()
            if report.when == "call" and report.failed:
                report.sections.append(("by hook", call.excinfo.typename))
                if "known" in item.name: report.outcome, report.wasxfail = "skipped", "known"
                if "fine" in item.name: report.outcome = "passed"
                item.funcargs["driver"].screenshot()
        @pytest.hookimpl(hookwrapper=True)
        def pytest_runtest_call(item):
            outcome = yield
            outcome.force_result(None)
        @pytest.fixture
        def driver(): return object()
        """
    )
    pytester.makepyfile(
        """
        import os
        def test_crashes(driver): os._exit(1)
        def test_known(driver): os._exit(1)
        def test_fine(driver): os._exit(1)
        def test_after(driver): pass
        """
    )
    run = run_inner("--crate-all")
    assert run.outcomes() == {"passed": 1, "failed": 3}
    assert ["by hook", "CrateFailed"] in run.of("test_crashes")["sections"]


def test_assertion_and_warning_hooks(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """Hooks that explain asserts, see passing ones or see warnings have the same effect; the last runs in pytest."""
    pytester.makeini("[pytest]\nenable_assertion_pass_hook = true\n")
    pytester.makeconftest(
        """
        import os
        class Foo:
            def __init__(self, value): self.value = value
            def __eq__(self, other): return self.value == other.value
        seen = []
        def pytest_assertrepr_compare(op, left, right):
            if isinstance(left, Foo): return ["comparing Foos:", f"   {left.value} != {right.value}"]
        def pytest_assertion_pass(item, lineno, orig, expl): print("asserted", lineno, orig, expl)
        def pytest_warning_recorded(warning_message, when, nodeid, location):
            seen.append(f"{nodeid} {when} {warning_message.message}")
        def pytest_terminal_summary(terminalreporter): terminalreporter.write_line(" | ".join(seen))
        """
    )
    pytester.makepyfile(
        """
        import warnings
        from conftest import Foo
        warnings.warn("at collection")
        def test_compares(): assert Foo(1) == Foo(2)
        def test_asserts(): one = 1; assert one == 1
        def test_warns(): warnings.warn("in body")
        """
    )
    run = both_ways("-rA", "-v")
    assert "test_assertion_and_warning_hooks.py::test_warns runtest in body" in run.text
    assert "comparing Foos:" in run.of("test_compares")["longrepr"]
    assert run.of("test_asserts")["sections"] == [["Captured stdout call", "asserted 5 one == 1 1 == 1\n"]]
