"""What a test finds around it: variables, its item, its directories, the way its module was imported."""

from __future__ import annotations

import sys

import pytest

from tests.inner import BothWays, RunInner


def test_current_test(pytester: pytest.Pytester, both_ways: BothWays, monkeypatch: pytest.MonkeyPatch) -> None:
    """PYTEST_CURRENT_TEST names test and phase, inside and outside, and is gone after it; PYTEST_VERSION stays."""
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")  # a child process writes past Python's buffer (test_capture.py)
    pytester.makeconftest(
        """
        import os, pytest
        def show(where): print(where, os.environ.get("PYTEST_CURRENT_TEST"), os.environ["PYTEST_VERSION"])
        def pytest_runtest_logreport(report): show("outside")
        def pytest_runtest_logfinish(): show("finished")
        @pytest.fixture(scope="session", autouse=True)
        def wide(): show("wide up"); yield; show("wide down")
        @pytest.fixture
        def inner(): show("inner up"); yield; show("inner down")
        """
    )
    pytester.makepyfile(
        """
        import subprocess
        from conftest import show
        def test_shows(inner):
            show("body"); subprocess.run("echo child $PYTEST_CURRENT_TEST", shell=True, check=True)
        """
    )
    run = both_ways("-rA", "-s", "-v")
    assert "body test_current_test.py::test_shows (call)" in run.text
    assert "inner down test_current_test.py::test_shows (teardown)" in run.text


def test_the_item(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """Sections, properties, stash, keywords and finalizers that a test or fixture adds have their effect."""
    pytester.makeconftest(
        """
        import pytest
        KEY = pytest.StashKey()
        @pytest.fixture
        def item(request):
            request.node.stash[KEY] = ["set-up"]
            request.node.add_report_section("setup", "own", "by fixture")
            request.node.user_properties.append(("from", "fixture"))
            yield request.node
            print(request.node.stash[KEY])
        @pytest.fixture
        def outcome(request):
            yield
            print("the call", "failed" if request.node.rep_call.failed else "passed")
        @pytest.hookimpl(hookwrapper=True, tryfirst=True)
        def pytest_runtest_makereport(item, call):
            outcome = yield
            report = outcome.get_result()
            setattr(item, "rep_" + report.when, report)
        @pytest.fixture
        def used(): print("used")
        """
    )
    pytester.makepyfile(
        """
        import pytest
        from conftest import KEY
        def test_item(item, request):
            item.stash[KEY].append("body")
            item.add_report_section("call", "own", "by body")
            item.user_properties.append(("from", "body"))
            item.keywords["late"] = True
            request.addfinalizer(lambda: print("request's"))
            item.addfinalizer(lambda: print("item's"))
            assert 0
        def test_outcome(outcome): pass
        def test_outcome_fails(outcome): assert 0
        @pytest.mark.usefixtures("used")
        def test_used(): assert 0
        """
    )
    run = both_ways("-rA")
    assert run.of("test_item", "teardown")["sections"][-1] == [
        "Captured stdout teardown",
        "item's\nrequest's\n['set-up', 'body']\n",
    ]
    assert ["Captured stdout teardown", "the call failed\n"] in run.of("test_outcome_fails", "teardown")["sections"]


def test_monkeypatch(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """What monkeypatch changes is undone before a function fixture around it is torn down, and for later tests."""
    pytester.makepyfile(
        """
        import os, sys, pytest
        @pytest.fixture
        def around():
            before = os.getcwd(), dict(os.environ), list(sys.path)
            yield
            os.environ.pop("PYTEST_CURRENT_TEST"); before[1].pop("PYTEST_CURRENT_TEST")
            assert (os.getcwd(), dict(os.environ), list(sys.path)) == before
            os.environ["PYTEST_CURRENT_TEST"] = "again"
        def test_changes(around, monkeypatch, tmp_path):
            monkeypatch.chdir(tmp_path); monkeypatch.setenv("NEW", "1"); monkeypatch.delenv("HOME")
            monkeypatch.syspath_prepend(tmp_path); monkeypatch.setattr(os, "sep", "!")
            monkeypatch.setitem(sys.modules, "x", 1)
            assert os.getcwd() == str(tmp_path) and os.sep == "!"
        def test_unchanged():
            assert os.sep == "/" and "NEW" not in os.environ and "HOME" in os.environ and "x" not in sys.modules
        """
    )
    assert both_ways().outcomes() == {"passed": 2}


@pytest.mark.parametrize("mode", ["prepend", "append", "importlib"])
def test_import_modes(pytester: pytest.Pytester, both_ways: BothWays, mode: str) -> None:
    """Modules, packages and conftest files of directories are found the same way under each import mode."""
    for name in ("one", "two"):
        directory = pytester.mkpydir(name)
        (directory / "conftest.py").write_text(
            f"import pytest\n@pytest.fixture\ndef where(): return {name!r}\n"
            "@pytest.fixture(scope='package')\ndef package(): yield; print('package down')\n"
        )
        (directory / "test_it.py").write_text(
            "import sys\n"
            f"def test_it(where, package): assert where == {name!r} and sys.modules[__name__].__file__ == __file__\n"
            "def test_fails(package): assert __name__ == ''\n"
        )
    both_ways("-v", f"--import-mode={mode}")


def test_tmp_path_retention(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Which directories of which tests are kept, and of how many runs, is the same under each policy."""
    pytester.makepyfile(
        """
        import pytest
        def test_passes(tmp_path): (tmp_path / "file").write_text("x"); (tmp_path / "sub").mkdir()
        def test_fails(tmp_path): (tmp_path / "file").write_text("x"); assert 0
        @pytest.fixture
        def breaks(tmp_path): (tmp_path / "file").write_text("x"); yield; raise OSError
        def test_breaks(breaks): pass
        def test_skips(tmp_path): pytest.skip("no")
        @pytest.fixture(scope="session")
        def wide(tmp_path_factory): return tmp_path_factory.mktemp("wide")
        def test_wide(wide): (wide / "file").write_text("x")
        def test_tmpdir(tmpdir): tmpdir.join("file").write("x")
        """
    )
    for policy in ("all", "failed", "none"):
        kept = []
        for args in ((), ("--crate-all",)):
            base = pytester.path / f"base-{policy}{len(args)}"
            run_inner(*args, f"--basetemp={base}", "-o", f"tmp_path_retention_policy={policy}")
            kept.append(sorted(path.relative_to(base).as_posix() for path in base.rglob("*")))
        assert kept[0] == kept[1]
        assert ("test_passes0/file" in kept[0], "test_fails0/file" in kept[0]) == {
            "all": (True, True),
            "failed": (False, True),
            "none": (True, True),  # of a base directory that was given
        }[policy]


def test_tmp_path_of_earlier_runs(pytester: pytest.Pytester) -> None:
    """Of numbered base directories, so many are kept as are to be; crates make none of their own."""
    pytester.makepyfile("def test_it(tmp_path): (tmp_path / 'file').write_text('x')\n")
    root = pytester.mkdir("root")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_DEBUG_TEMPROOT", str(root))
        for _ in range(3):
            command = ("-p", "no:cacheprovider", "--crate-all", "-o", "tmp_path_retention_count=2")
            assert pytester.run(sys.executable, "-m", "pytest", *command).ret == 0
    (of_user,) = root.iterdir()
    assert sorted(path.name for path in of_user.iterdir() if not path.is_symlink()) == ["pytest-1", "pytest-2"]
    assert (of_user / "pytest-2" / "test_it0" / "file").exists()


def test_pytester(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Tests of a pytest plugin work in a crate: inner runs in the same process and in another one."""
    pytester.makeconftest("pytest_plugins = ['pytester']\n")
    pytester.makepyfile(
        """
        def test_in_process(pytester):
            pytester.makepyfile("def test_a(): pass\\ndef test_b(): assert 0\\n")
            result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
            result.assert_outcomes(passed=1, failed=1)
            result.stdout.fnmatch_lines(["*1 failed, 1 passed*"])
        def test_subprocess(pytester):
            pytester.makepyfile("def test_a(capsys): print('x')\\n")
            assert pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:hypothesispytest").ret == 0
        def test_inline(pytester):
            items, recorder = pytester.inline_genitems(pytester.makepyfile("def test_a(): pass\\n"))
            assert [item.name for item in items] == ["test_a"]
        def test_after(): assert 0
        """
    )
    for args in ((), ("--crate-all",)):
        assert run_inner(*args, "test_pytester.py").outcomes() == {"passed": 3, "failed": 1}


# Those that pytest itself can do without.
WITHOUT = """
cacheprovider capture debugging doctest faulthandler logging monkeypatch pastebin recwarn setuponly setupplan stepwise
subtests threadexception tmpdir unittest unraisableexception warnings
""".split()


@pytest.mark.parametrize("name", WITHOUT)
def test_without_a_plugin(pytester: pytest.Pytester, both_ways: BothWays, name: str) -> None:
    """With one of pytest's own plugins turned off, tests ride in crates all the same."""
    pytester.makepyfile(
        """
        import unittest, pytest
        @pytest.fixture(scope="module")
        def wide(): print("wide"); return 1
        def test_passes(wide): assert wide
        def test_fails(): print("said"); assert 1 == 2
        class Case(unittest.TestCase):
            def test_case(self): pass
        """
    )
    run = both_ways("-p", f"no:{name}")
    assert run.of("test_fails")["outcome"] == "failed"


def test_the_collector(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """The garbage collector shows, and collects, what was made before the test: in modules and in wider fixtures."""
    pytester.makepyfile(
        shapes="""
        import gc, pytest
        class Ring:
            def __init__(self): self.own = self
        class Holder: pass
        kept = Holder()
        kept.ring = Ring()
        @pytest.fixture(scope="module", autouse=True)
        def wide():
            Holder.wide = Ring()
        def counted(): return sum(type(each) is Ring for each in gc.get_objects())
        """,
        test_it="""
        import gc, weakref
        from shapes import *
        def test_lists(): assert counted() == 2
        def test_referrers(): assert kept.__dict__ in gc.get_referrers(kept.ring)
        def test_frames_that_run():
            def running(): error = ValueError(); yield gc.get_referrers(error)
            assert next(running()) == []
        def test_names(): assert {"collect", "get_objects"} <= set(dir(gc)) and gc.__dict__.get("__dir__") is None
        def test_no_such_name(): assert not hasattr(gc, "no_such_name")
        def test_imports():
            from gc import get_objects
            assert sum(type(each) is Ring for each in get_objects()) == 2
        def test_none_frozen(): assert gc.get_freeze_count() == 0
        def test_freezes():
            gc.collect(); gc.freeze(); count = gc.get_freeze_count(); assert count > 1000
            gc.unfreeze(); assert gc.get_freeze_count() == 0 and counted() == 2
        def test_as_it_was(): assert counted() == 2
        def test_mocked(monkeypatch):
            monkeypatch.setattr(gc, "collect", lambda: "mocked")
            assert (counted(), gc.collect()) == (2, "mocked")
        def test_replaced():
            before = gc.__dict__.get("collect"); gc.collect = lambda: "replaced"
            assert (counted(), gc.collect()) == (2, "replaced")
            gc.__dict__.pop("collect") if before is None else setattr(gc, "collect", before)
        def test_collects():
            gone = weakref.ref(kept.ring), weakref.ref(Holder.wide)
            del kept.ring, Holder.wide
            gc.collect()
            assert [each() for each in gone] == [None, None]
        """,
    )
    run = both_ways("-rP")
    assert run.outcomes() == {"passed": 12}


def test_objects_that_a_suite_has_frozen(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """What a suite itself has frozen stays so, inside and outside."""
    pytester.makeconftest(
        """
        import gc
        def pytest_runtest_logstart():
            if not gc.get_freeze_count(): gc.freeze()
        def pytest_runtest_logfinish(): print("frozen outside:", gc.get_freeze_count() > 1000)
        """
    )
    pytester.makepyfile("import gc\ndef test_frozen(): assert gc.get_freeze_count() > 1000\ntest_again = test_frozen")
    run = both_ways("-s")
    assert run.text.count("frozen outside: True") == 2
