"""Every outcome that a test can have is the same in a crate as without one, report by report."""

from __future__ import annotations

import re

import pytest

from tests.inner import BothWays, RunInner


def test_plain_outcomes(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """Passed, failed and skipped, by marker, in set-up, in the body, in tear-down and by importorskip."""
    pytester.makepyfile(
        """
        import sys, pytest

        def helper(value):
            assert value == {"a": 1}, "helper says no"

        def test_passes(): print("said"); print("cried", file=sys.stderr)
        def test_fails():
            left, right = [1, 2, 3], [1, 3, 3]
            assert left == right
        def test_fails_below(): helper({"a": 2})
        def test_raises(): raise ValueError("two\\nlines")
        def test_chained():
            try:
                {}["key"]
            except KeyError as error:
                raise RuntimeError("outer") from error
        def test_group(): raise ExceptionGroup("several", [ValueError(1), TypeError(2)])
        def test_note():
            error = ValueError("noted"); error.add_note("a note"); raise error
        def test_fail_without_trace(): pytest.fail("plainly", pytrace=False)
        def test_fail_with_trace(): pytest.fail("traced")
        @pytest.mark.skip(reason="by marker")
        def test_skip_marker(): raise AssertionError
        @pytest.mark.skipif("True", reason="by condition")
        def test_skipif(): raise AssertionError
        def test_skip_body(): pytest.skip("in body")
        def test_importorskip(): pytest.importorskip("no_such_module_at_all")
        @pytest.fixture
        def skips(): pytest.skip("in setup")
        def test_skip_setup(skips): raise AssertionError
        @pytest.fixture
        def skips_after():
            yield
            pytest.skip("in teardown")
        def test_skip_teardown(skips_after): pass
        def test_fails_skips_teardown(skips_after): assert 0
        def test_pytest_raises():
            with pytest.raises(ValueError, match="x"):
                raise ValueError("x")
        def test_returns_nothing(): return None
        async def test_async(): pass
        def test_approx(): assert 0.1 + 0.2 == pytest.approx(0.4)
        def test_unicode(): assert "snowman \\u2603 \\U0001f600" == "\\ud800"
        """
    )
    run = both_ways("-rA", "-vv")
    assert run.outcomes() == {"passed": 4, "failed": 12, "skipped": 7}
    assert run.of("test_passes")["sections"] == [
        ["Captured stdout call", "said\n"],
        ["Captured stderr call", "cried\n"],
    ]
    assert "left, right = [1, 2, 3], [1, 3, 3]" in run.of("test_fails")["longrepr"]
    assert "???" not in run.text


def test_expected_failures(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """xfail: strict or not, with raises=, with run=False, by pytest.xfail, in set-up and tear-down, and xpass."""
    pytester.makepyfile(
        """
        import pytest
        xfail = pytest.mark.xfail

        @xfail
        def test_xfailed(): assert 0
        @xfail(reason="why")
        def test_xpassed(): pass
        @xfail(strict=True, reason="strictly")
        def test_xpassed_strict(): pass
        @xfail(strict=True)
        def test_xfailed_strict(): assert 0
        @xfail(raises=ValueError)
        def test_raises_right(): raise ValueError
        @xfail(raises=ValueError)
        def test_raises_wrong(): raise TypeError
        @xfail(run=False, reason="never")
        def test_not_run(): raise SystemExit
        @xfail("1 == 1", reason="condition")
        def test_condition(): assert 0
        @xfail(False, reason="condition")
        def test_no_condition(): assert 1
        def test_imperative(): pytest.xfail("on second thoughts")
        @pytest.fixture
        def broken(): raise ValueError
        @xfail
        def test_setup(broken): pass
        @pytest.fixture
        def breaks():
            yield
            raise ValueError
        @xfail
        def test_teardown(breaks): assert 0
        @xfail
        def test_skips(): pytest.skip("rather")
        @pytest.fixture
        def late(request): request.applymarker(xfail(reason="late"))
        def test_late(late): assert 0
        def test_late_in_body(request):
            request.applymarker(xfail(reason="later")); assert 0
        """
    )
    run = both_ways("-rA", "-v")
    outcomes = run.outcomes()
    assert (outcomes["xfailed"], outcomes["xpassed"], outcomes["failed"]) == (11, 1, 2)
    assert run.of("test_xfailed")["wasxfail"] == ""
    assert run.of("test_xpassed")["wasxfail"] == "why"


def test_frames_of_tracebacks(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """An exception, as plugins see it, has passed through the same functions: none that crates add."""
    pytester.makeconftest(
        """
        import pytest

        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_makereport(item, call):
            report = yield
            if call.excinfo is not None:
                frames = {f"{entry.path.name}: {entry.name}" for entry in call.excinfo.traceback}
                report.sections.append(("frames", " | ".join(sorted(frames))))
            return report

        @pytest.fixture
        def broken(): raise ValueError
        @pytest.fixture
        def breaks():
            yield
            raise ValueError
        """
    )
    pytester.makepyfile(
        """
        import pytest
        def test_body(): raise ValueError
        def test_set_up(broken): pass
        def test_tear_down(breaks): pass
        @pytest.mark.xfail(run=False)
        def test_not_run(): pass
        """
    )
    run = both_ways()
    assert run.outcomes() == {"failed": 1, "passed": 1, "errors": 2, "xfailed": 1}
    assert "test_frames_of_tracebacks.py: test_body" in dict(run.of("test_body")["sections"])["frames"]


def test_function_fixtures(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """Function fixtures: failing set-up and tear-down, finalizers, order, output by phase, parametrized, dynamic."""
    pytester.makeconftest(
        """
        import pytest
        @pytest.fixture
        def far_away(): raise OSError("in conftest")
        @pytest.fixture(scope="module")
        def far_and_wide(): raise OSError("in conftest")
        @pytest.fixture
        def far_teardown():
            yield
            raise OSError("in conftest")
        """
    )
    pytester.makepyfile(
        """
        import pytest

        def test_far_away(far_away): pass
        def test_far_and_wide(far_and_wide): pass
        def test_far_teardown(far_teardown): pass
        @pytest.fixture
        def setup_breaks(): print("before"); raise OSError("in setup")
        def test_setup_breaks(setup_breaks): pass

        @pytest.fixture
        def teardown_breaks():
            print("up"); yield 1; print("down"); raise OSError("in teardown")
        def test_teardown_breaks(teardown_breaks): print("body")
        def test_both_break(teardown_breaks): assert 0
        @pytest.fixture
        def other_teardown_breaks():
            yield
            raise KeyError("another")
        def test_two_teardowns_break(teardown_breaks, other_teardown_breaks): pass

        @pytest.fixture
        def trail(request):
            trail = ["setup"]
            def check():
                assert trail == ["setup", "inner", "body", "inner down"]
            request.addfinalizer(check)
            return trail
        @pytest.fixture
        def inner(trail):
            trail.append("inner"); yield; trail.append("inner down")
        def test_order(inner, trail): trail.append("body")
        def test_order_wrong(inner, trail): trail.append("wrong")

        @pytest.fixture(params=[1, 2, pytest.param(3, marks=pytest.mark.skip(reason="three"), id="three")])
        def number(request): return request.param
        def test_params(number): assert number != 2
        def test_dynamic(request):
            trail = request.getfixturevalue("trail")
            trail += ["inner", "body", "inner down"]
        def test_missing(no_such_fixture): pass
        def test_dynamic_missing(request): request.getfixturevalue("no_such_fixture")
        @pytest.fixture(autouse=True)
        def auto(request):
            request.node.seen = True
            yield
            assert request.node.seen
        def test_auto(request): assert request.node.seen
        @pytest.fixture
        def two_yields():
            yield 1
            yield 2
        def test_two_yields(two_yields): pass
        @pytest.fixture
        def finalizer_in_body(request): return request.addfinalizer
        def test_finalizer_in_body(finalizer_in_body, request):
            def late(): print("late"); raise ValueError("in finalizer")
            request.node.addfinalizer(late)
        """
    )
    run = both_ways("-rA", "-v", "--setup-show")
    assert run.of("test_teardown_breaks", "teardown")["sections"] == [
        ["Captured stdout setup", "up\n"],
        ["Captured stdout call", "body\n"],
        ["Captured stdout teardown", "down\n"],
    ]
    assert run.of("test_order", "teardown")["outcome"] == "passed"
    assert run.of("test_order_wrong", "teardown")["outcome"] == "failed"


def test_where_fixtures_are(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A function's fixtures are set up and torn down in its crate, however they are asked for; wider ones outside."""
    pytester.makepyfile(
        """
        import socket, unittest, pytest
        def where(request, when): print(request.fixturename, when, socket.gethostname() == "crate")
        def around(**options):
            @pytest.fixture(**options)
            def fixture(request):
                where(request, "up")
                yield
                where(request, "down")
            return fixture
        asked, used, auto, wide = around(), around(params=[1]), around(autouse=True), around(scope="module")
        @pytest.fixture
        def asks(asked, wide): pass
        @pytest.mark.usefixtures("used")
        def test_asks(asks, request): request.getfixturevalue("late")
        late = around()
        class TestMethods:
            def setup_method(self): print("setup_method", socket.gethostname() == "crate")
            def teardown_method(self): print("teardown_method", socket.gethostname() == "crate")
            def test_it(self): pass
        class Case(unittest.TestCase):
            def setUp(self): print("setUp", socket.gethostname() == "crate")
            def tearDown(self): print("tearDown", socket.gethostname() == "crate")
            def test_case(self): pass
        """
    )
    run = run_inner("--crate-all", "-rP")
    assert run.outcomes() == {"passed": 3}
    said = re.findall(r"^(\w+(?: up| down)?) (True|False)$", run.text, re.MULTILINE)
    inside = [*(f"{name} {way}" for name in ("asked", "used", "late") for way in ("up", "down"))]
    inside += [*["auto up", "auto down"] * 3, "setup_method", "teardown_method", "setUp", "tearDown"]
    assert sorted(name for name, there in said if there == "True") == sorted(inside)
    assert [name for name, there in said if there == "False"] == ["wide up", "wide down"]


def test_wider_fixtures(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """Class, module and session fixtures run exactly once, outside, with the output and log of each phase once."""
    pytester.makeconftest(
        """
        import logging, os, pytest

        def note(line):
            with open("trail", "a") as file: file.write(f"{os.getpid()} {line}\\n")

        def make(scope, **options):
            @pytest.fixture(scope=scope, name=f"{scope}_fixture", **options)
            def fixture(request):
                name = f"{scope}{getattr(request, 'param', '')}"
                print(f"{name} up"); logging.warning("%s up", name); note(f"{name} up")
                yield [name]
                print(f"{name} down"); logging.warning("%s down", name); note(f"{name} down")
            return fixture

        session_fixture, package_fixture = make("session"), make("package")
        module_fixture, class_fixture = make("module"), make("class", params=["A", "B"])
        """
    )
    pytester.makepyfile(
        test_one="""
        import pytest
        def test_first(session_fixture, module_fixture): session_fixture.append("changed"); print("first")
        def test_second(session_fixture, module_fixture): assert module_fixture == ["module"]
        class TestIt:
            def test_in_class(self, class_fixture, package_fixture): assert 0
            def test_again(self, class_fixture): pass
        """,
        test_two="def test_other(module_fixture, session_fixture): pass",
    )
    run = both_ways("-rA", "-v", "--log-level=INFO")
    lines = (pytester.path / "trail").read_text().splitlines()
    plain, crated = lines[: len(lines) // 2], lines[len(lines) // 2 :]
    assert [line.split(" ", 1)[1] for line in crated] == [line.split(" ", 1)[1] for line in plain]
    assert len({line.split()[0] for line in crated}) == 1, "one process, pytest's own, ran them all"
    assert sorted(line.split(" ", 1)[1] for line in crated) == sorted(
        f"{name} {way}"
        for name in ("session", "package", "module", "module", "classA", "classB")
        for way in ("up", "down")
    )
    assert run.of("test_other", "setup")["sections"][0] == ["Captured stdout setup", "module up\n"]


def test_wider_fixtures_fail(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """A wider fixture that fails or skips in set-up or tear-down fails or skips the same tests in the same words."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture(scope="module")
        def up_fails(): print("try"); raise OSError("no server")
        @pytest.fixture(scope="module")
        def down_fails():
            yield
            print("stopping"); raise OSError("won't stop")
        @pytest.fixture(scope="class")
        def class_down_fails():
            yield
            raise OSError("class won't stop")
        @pytest.fixture(scope="session")
        def up_skips(): pytest.skip("no server here")
        @pytest.fixture
        def inner():
            print("inner up"); yield; print("inner down")

        def test_a(up_fails): pass
        def test_b(up_fails, inner): pass
        def test_c(inner, up_skips): pass
        class TestClass:
            def test_d(self, class_down_fails, inner): pass
            def test_e(self, class_down_fails, inner): assert 0
        class TestPasses:
            def test_g(self, class_down_fails, inner): pass
        def test_last(down_fails, inner): print("body")
        """
    )
    run = both_ways("-rA", "-v")
    assert run.outcomes()["errors"] == 5
    assert run.of("test_last", "teardown")["sections"] == [
        ["Captured stdout setup", "inner up\n"],
        ["Captured stdout call", "body\n"],
        ["Captured stdout teardown", "inner down\nstopping\n"],
    ]


def test_inner_and_wider_teardown_fail(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A function fixture and a wider one that both fail in tear-down are both told of."""
    pytester.makepyfile(
        """
        import pytest
        @pytest.fixture(scope="class")
        def wider():
            yield
            raise OSError("wider")
        @pytest.fixture
        def inner():
            yield
            raise KeyError("inner")
        class TestIt:
            def test_it(self, wider, inner): pass
        """
    )
    run = run_inner("--crate-all")
    assert run.outcomes() == {"passed": 1, "errors": 1}
    report = run.of("test_it", "teardown")
    assert "OSError: wider" in report["longrepr"]
    assert "KeyError: 'inner'" in dict(report["sections"])["teardown inside the crate"]
    assert "Group" not in run.text


def test_classes_and_modules(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """xunit-style set-up and tear-down of modules, classes, functions and methods."""
    pytester.makepyfile(
        """
        import pytest
        trail = []
        def setup_module(module): trail.append("module")
        def teardown_module(module): print("module down", trail)
        def setup_function(function): function.state = "up"
        def teardown_function(function): assert function.state == "used"
        def test_function(): assert trail == ["module"]; test_function.state = "used"
        class TestMethods:
            @classmethod
            def setup_class(cls): cls.shared = ["class"]
            @classmethod
            def teardown_class(cls): print("class down", cls.shared)
            def setup_method(self, method): self.own = [method.__name__]
            def teardown_method(self, method): assert self.own[-1] == "done"
            def test_one(self): assert self.shared == ["class"]; self.own.append("done")
            def test_two(self): assert self.own == ["test_two"]
            @pytest.mark.parametrize("x", [1, 2])
            @pytest.mark.parametrize("y", ["a", "b"], ids=str.upper)
            def test_grid(self, x, y): self.own.append("done"); assert (x, y) != (2, "b")
        @pytest.fixture
        def used(): print("used")
        @pytest.mark.usefixtures("used")
        class TestUse:
            def test_use(self, capsys): pass
        """
    )
    run = both_ways("-rA", "-v")
    assert run.outcomes() == {"passed": 7, "failed": 1, "errors": 1}


def test_unittest(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """unittest's cases: set-ups and tear-downs, cleanups, skips, expected failures, subtests, asyncio."""
    pytester.makepyfile(
        """
        import asyncio, unittest

        class Case(unittest.TestCase):
            @classmethod
            def setUpClass(cls): cls.shared = [1]; print("class up")
            @classmethod
            def tearDownClass(cls): print("class down")
            def setUp(self): self.own = [2]; self.addCleanup(print, "cleaned")
            def tearDown(self): assert self.own == [2], self.own
            def test_passes(self): self.assertEqual(self.shared, [1])
            def test_fails(self): self.assertEqual([1, 2], [1, 3])
            def test_tear_down_fails(self): self.own.append(3)
            def test_skips(self): self.skipTest("rather not")
            @unittest.skip("by decorator")
            def test_skipped(self): pass
            @unittest.expectedFailure
            def test_expected(self): self.fail()
            @unittest.expectedFailure
            def test_unexpected(self): pass
            def test_raises_skip(self): raise unittest.SkipTest("raised")
            def test_cleanup_fails(self): self.addCleanup(lambda: 1 / 0)

        class Broken(unittest.TestCase):
            @classmethod
            def setUpClass(cls): raise OSError("no class")
            def test_never(self): pass

        class SetUpBroken(unittest.TestCase):
            def setUp(self): raise OSError("no set-up")
            def test_never(self): pass

        class Async(unittest.IsolatedAsyncioTestCase):
            async def asyncSetUp(self): self.loop = asyncio.get_running_loop()
            async def asyncTearDown(self): assert self.loop is asyncio.get_running_loop()
            async def test_sleeps(self): await asyncio.sleep(0); self.assertTrue(self.loop.is_running())
            async def test_fails(self): await asyncio.sleep(0); self.fail("asynchronously")

        def load(): pass
        class Function(unittest.FunctionTestCase): pass
        """
    )
    run = both_ways("-rA", "-v")
    assert run.of("Async::test_sleeps")["outcome"] == "passed"
    assert run.of("Async::test_fails")["outcome"] == "failed"


@pytest.mark.skipif(pytest.version_tuple < (9,), reason="subtests came with pytest 9")
def test_unittest_subtests(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Failed subtests of unittest are told of one by one, and fail the run."""
    pytester.makepyfile(
        """
        import unittest
        class Case(unittest.TestCase):
            def test_it(self):
                print("printed")
                for number in range(4):
                    with self.subTest("numbers", number=number):
                        self.assertNotEqual(number % 2, 1)
        """
    )
    run = run_inner("--crate-all", "-v")
    assert run.ret == pytest.ExitCode.TESTS_FAILED
    subtests = [report["outcome"] for report in run.reports if report["kind"] == "SubtestReport"]
    assert subtests == ["passed", "failed", "passed", "failed"]
    assert run.of("test_it", "teardown")["sections"] == [["Captured stdout call", "printed\n"]]
    assert "(number=1)" in run.text


@pytest.mark.skipif(pytest.version_tuple < (9,), reason="subtests came with pytest 9")
def test_subtests(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """pytest's subtests: passed, failed and skipped ones, with output of their own, fail their test."""
    pytester.makepyfile(
        """
        import logging, pytest
        def test_mixed(subtests):
            print("before")
            for number in range(4):
                with subtests.test("number", number=number):
                    print("number", number); logging.warning("number %s", number)
                    if number == 3: pytest.skip("three")
                    assert number != 1
            print("after")
        def test_all_pass(subtests):
            for number in range(3):
                with subtests.test(number=number): pass
        def test_then_fails(subtests):
            with subtests.test(): assert 0
            assert "the body" == ""
        def test_xfail(subtests):
            with subtests.test("x"): pytest.xfail("expected")
        def test_nested(subtests):
            with subtests.test("outer"):
                with subtests.test("inner"): assert 0
        @pytest.fixture
        def breaks():
            yield
            assert 0
        def test_teardown(subtests, breaks):
            with subtests.test("a"): assert 0
        """
    )
    run = both_ways("-rA", "-v")
    assert "test_mixed SUBFAILED[number] (number=1)" in run.text
    assert run.of("test_all_pass", "teardown")["outcome"] == "passed"
    assert len([report for report in run.reports if report["longrepr"] == "contains 1 failed subtest"]) == 3
    assert "number=3" not in both_ways("-rA", "-v", "-x").text
    both_ways("-rA", "-v", "--maxfail=4", "--crate-scope=module")


def test_doctests(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """Doctests of modules and text files, with fixtures, a namespace and a failure."""
    pytester.makeconftest(
        """
        import pytest
        @pytest.fixture(autouse=True)
        def names(doctest_namespace): doctest_namespace["seven"] = 7
        """
    )
    pytester.makepyfile(
        doubles='''
        def double(x):
            """
            >>> double(seven)
            14
            >>> double(2)
            5
            """
            return 2 * x
        def skipped():
            """
            >>> import pytest
            >>> pytest.skip("no")
            """
        def raises():
            """
            >>> 1 / 0
            """
        '''
    )
    pytester.maketxtfile(test_text=">>> getfixture('tmp_path').is_dir()\nTrue\n>>> seven\n7\n")
    run = both_ways("--doctest-modules", "-rA", "-v", "doubles.py", "test_text.txt")
    assert run.outcomes() == {"passed": 1, "failed": 2, "skipped": 1}


def test_exits_from_the_body(pytester: pytest.Pytester, both_ways: BothWays, run_inner: RunInner) -> None:
    """sys.exit and SystemExit, in a body or a fixture, fail that test alone, as in a plain run."""
    pytester.makepyfile(
        """
        import sys, pytest
        def test_sys_exit(): sys.exit(3)
        def test_exit_zero(): sys.exit(0)
        @pytest.fixture
        def leaves(): raise SystemExit("in fixture")
        def test_fixture(leaves): pass
        @pytest.fixture
        def leaves_later():
            yield
            raise SystemExit
        def test_teardown(leaves_later): pass
        def test_generator_exit(): raise GeneratorExit
        def test_fine(): pass
        """
    )
    run = both_ways("-v")
    assert run.outcomes() == {"passed": 2, "failed": 3, "errors": 2}


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("pytest.exit('enough')", pytest.ExitCode.INTERRUPTED),
        ("pytest.exit('enough', returncode=7)", 7),
        ("raise KeyboardInterrupt", pytest.ExitCode.INTERRUPTED),
    ],
)
@pytest.mark.parametrize("phase", ["setup", "call", "teardown"])
def test_interrupts(pytester: pytest.Pytester, both_ways: BothWays, statement: str, code: int, phase: str) -> None:
    """pytest.exit and KeyboardInterrupt in any phase end the run as in a plain one; wider fixtures are torn down."""
    places = {name: statement if name == phase else "pass" for name in ("setup", "call", "teardown")}
    pytester.makepyfile(
        f"""
        import pytest
        @pytest.fixture(scope="session", autouse=True)
        def wide():
            yield
            open("session-down", "a").write("x")
        @pytest.fixture
        def fixture():
            {places["setup"]}
            yield
            open("function-down", "a").write("x")
            {places["teardown"]}
        def test_before(): pass
        def test_ends_it(fixture): {places["call"]}
        def test_never(): pass
        """
    )
    run = both_ways("-v", crated=True)
    assert run.ret == code
    assert (pytester.path / "session-down").read_text() == "xx"
    assert not [report for report in run.reports if report["nodeid"].endswith("test_never")]


@pytest.mark.parametrize("value", ["'enough'", "True"])
@pytest.mark.parametrize("name", ["shouldstop", "shouldfail"])
@pytest.mark.parametrize("phase", ["setup", "call", "teardown"])
def test_a_session_that_should_stop(
    pytester: pytest.Pytester, both_ways: BothWays, phase: str, name: str, value: str
) -> None:
    """What a test says of the session's end holds, also in a crate that others were to share."""
    statement = f"request.session.{name} = {value}"
    places = {each: statement if each == phase else "pass" for each in ("setup", "call", "teardown")}
    pytester.makepyfile(
        f"""
        import pytest
        @pytest.fixture
        def fixture(request):
            {places["setup"]}
            yield
            {places["teardown"]}
        def test_before(): pass
        def test_ends_it(fixture, request): {places["call"]}
        def test_never(): pass
        """
    )
    for args in ((), ("--crate-scope=module",)):
        run = both_ways(*args, crated=True)
        assert not [report for report in run.reports if report["nodeid"].endswith("test_never")]


def test_the_count_of_failures(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """A fixture can see by ``session.testsfailed`` whether its test has failed; an xfail does not count."""
    pytester.makepyfile(
        """
        import pytest
        @pytest.fixture(scope="module", autouse=True)
        def wide():
            yield
            print("wide down")
        @pytest.fixture(autouse=True)
        def screenshot(request, wide):
            before = request.session.testsfailed
            yield
            print("failed:", before, request.session.testsfailed - before)
        @pytest.fixture
        def broken(screenshot): raise ValueError
        def test_fails(): assert 0
        def test_passes(): pass
        def test_broken(broken): pass
        @pytest.mark.xfail
        def test_xfails(): assert 0
        @pytest.mark.parametrize("number", range(3))
        def test_each(number): assert number == 1
        """
    )
    for args in (
        ("-rA",),
        ("-rA", "--crate-scope=module"),
        ("-rA", "-x"),
        ("-rA", "--maxfail=3", "--crate-scope=module"),
    ):
        run = both_ways(*args, crated=True)
        assert "failed: 0 1" in run.text
        assert run.text.count("wide down") == 1


def test_what_a_body_changes_stays_inside(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Directory, environment, modules, warnings filters and umask changed by one body are as before for the next."""
    pytester.makepyfile(
        """
        import os, sys, warnings, signal
        STATE = []
        def test_changes():
            os.chdir("/"); os.environ["CHANGED"] = "1"; os.umask(0o777); sys.path.append("/changed")
            STATE.append(1); sys.modules["changed"] = sys; warnings.simplefilter("error")
            signal.signal(signal.SIGTERM, signal.SIG_IGN); sys.setrecursionlimit(500)
        def test_unchanged(request):
            assert os.getcwd() == str(request.config.rootpath) and "CHANGED" not in os.environ
            assert STATE == [] and "changed" not in sys.modules and "/changed" not in sys.path
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and sys.getrecursionlimit() == 1000
            assert os.umask(0o022) != 0o777
        """
    )
    run = run_inner("--crate-all")
    assert run.outcomes() == {"passed": 2}


def test_mocks_at_work_when_a_report_is_made(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A body's report is made while its monkeypatches are in force: those of what the report travels with, too."""
    pytester.makepyfile(
        """
        import json, os, pytest
        def refuse(*args, **kwargs): raise OSError("mocked")

        NAMES = ["os.getpid", "os.read", "os.write", "os.close", "os._exit", "os.getcwd", "os.kill", "json.dumps",
            "json.loads", "json.JSONEncoder", "select.poll", "signal.signal", "socket.socket", "time.sleep",
            "time.monotonic", "builtins.open", "subprocess.Popen"]
        @pytest.mark.parametrize("name", NAMES)
        def test_mocked(name, monkeypatch): monkeypatch.setattr(name, refuse)
        @pytest.mark.parametrize("name", NAMES)
        def test_mocked_and_fails(name, monkeypatch):
            monkeypatch.setattr(name, refuse)
            assert name == "failed"
        def test_another_pid(monkeypatch): monkeypatch.setattr(os, "getpid", lambda: 4242)
        def test_a_module_that_is_another(monkeypatch):
            import pytest_crate.plugin.report_pipe, pytest_crate.sandbox.wire, types
            monkeypatch.setattr(pytest_crate.plugin.report_pipe, "os", types.ModuleType("os"))
            monkeypatch.setattr(pytest_crate.sandbox.wire, "os", types.ModuleType("os"))
        """
    )
    run = run_inner("--crate-all")
    assert run.outcomes() == {"passed": 19, "failed": 17}
    assert "CrateFailed" not in run.text
