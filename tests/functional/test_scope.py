"""Tests of a class or module that share a crate: what they share, where a crate ends, what each has used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.inner import BothWays, RunInner

SCHEMA = Path(__file__).parents[2] / "pytest_crate" / "report" / "schema-1.json"

# Each test says which process it was in; the number of a namespace is given again when it has gone.
WHERE = """
import os, pytest
kept = {}
def where(): return kept.setdefault(os.getpid(), os.urandom(8).hex())
@pytest.fixture(autouse=True)
def note(request):
    yield
    request.node.user_properties.append(("crate", where()))
"""


def _crates(run: Any) -> dict[str, str]:
    """Return which crate each test was in, by the tests' names: a letter for each crate, in the order of the tests."""
    letters: dict[str, str] = {}
    found = {}
    for report in run.reports:
        if report["when"] == "teardown":
            (crate,) = [value for name, value in report["properties"] if name == "crate"]
            found[report["nodeid"].partition("::")[2]] = letters.setdefault(crate, "abcdefghij"[len(letters)])
    return found


def test_module_and_class(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Tests of a module, or of a class, that follow each other ride in one process of one crate."""
    pytester.makepyfile(
        conftest=WHERE,
        test_module="""
        import os, pytest
        pytestmark = pytest.mark.crate(scope="module")
        seen = []
        def test_one(): seen.append(os.getpid())
        class TestIn:
            def test_two(self): assert seen == [os.getpid()]
        def test_three(): assert seen == [os.getpid()]
        """,
        test_other="""
        import pytest
        pytestmark = pytest.mark.crate(scope="class")
        def test_free(): pass
        def test_free_too(): pass
        class TestA:
            kept = []
            def test_one(self): self.kept.append(1)
            def test_two(self): assert self.kept == [1]
        class TestB:
            def test_one(self): pass
            def test_two(self): pass
        """,
    )
    run = run_inner()
    assert run.outcomes() == {"passed": 9}
    assert list(_crates(run).values()) == list("aaabcddee")


def test_another_spec_ends_it(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A test with another spec, one that drives a crate, and one that has none, end the crate; the next begins one."""
    pytester.makepyfile(
        conftest=WHERE,
        test_it="""
        import pytest
        shared = pytest.mark.crate(scope="module")
        @shared
        def test_one(): pass
        @shared
        def test_two(): pass
        @shared
        @pytest.mark.crate(memory="64m")
        def test_less(): pass
        @shared
        def test_again(): pass
        @shared
        def test_drives(crate_sandbox): assert crate_sandbox.run(["true"]).returncode == 0
        @shared
        def test_after(): pass
        def test_plain(): pass
        @shared
        def test_last(): pass
        """,
    )
    run = run_inner()
    assert run.outcomes() == {"passed": 8}
    assert list(_crates(run).values()) == list("aabcdedf")


def test_a_lost_crate(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """What ends the crate fails its test, with the reason; the tests after it go on in a fresh one."""
    pytester.makepyfile(
        test_it="""
        import os, subprocess, time, pytest
        pytestmark = pytest.mark.crate(scope="module", memory="64m", pids=20, timeout=5)
        kept = []
        def test_first(): kept.append(1)
        def test_dies(): assert kept; os._exit(3)
        def test_fresh(): assert not kept; kept.append(1)
        def test_oom(): assert kept; bytearray(200 << 20)
        def test_after_oom(): assert not kept; kept.append(1)
        def test_forks():
            for _ in range(40): subprocess.Popen(["sleep", "60"])
        def test_after_forks(): kept.append(1)
        def test_hangs(): assert kept; time.sleep(60)
        def test_after_hanging(): assert not kept
        def test_fails(): assert 0
        def test_after_failing(): pass
        """,
    )
    run = run_inner()
    assert run.outcomes() == {"passed": 6, "failed": 5}
    assert "exit status 3" in run.of("test_dies")["longrepr"]
    assert "memory limit 64 MiB exceeded" in run.of("test_oom")["longrepr"]
    assert "pids limit 20 exceeded" in run.of("test_forks")["longrepr"]
    assert "timeout of 5 s exceeded" in run.of("test_hangs")["longrepr"]
    assert any("in test_hangs" in text for _, text in run.of("test_hangs")["sections"])


def test_the_timeout_is_a_tests(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Each test has the timeout for itself, however long those before it took."""
    pytester.makepyfile(
        """
        import time, pytest
        pytestmark = pytest.mark.crate(scope="module", timeout=4)
        @pytest.mark.parametrize("number", range(3))
        def test_it(number): time.sleep(2)
        """
    )
    assert run_inner().outcomes() == {"passed": 3}


def test_wider_fixtures(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Wider fixtures are set up and torn down outside, once; where one is, a crate that was forked before ends."""
    pytester.makepyfile(
        conftest=WHERE,
        test_it="""
        import os, pytest
        pytestmark = pytest.mark.crate(scope="module")
        outside = os.getpid()
        log = open(os.environ["CRATE_LOG"], "a", buffering=1)
        def made(name):
            assert os.getpid() == outside
            log.write(f"{name} up\\n"); os.environ[name] = "1"
            yield name
            assert os.getpid() == outside
            log.write(f"{name} down\\n"); del os.environ[name]
        @pytest.fixture(scope="module")
        def early(): yield from made("early")
        @pytest.fixture(scope="module")
        def late(): yield from made("late")
        @pytest.fixture(scope="class")
        def of_class(): yield from made("of_class")
        def test_one(early): assert os.environ["early"]
        def test_two(early): assert "late" not in os.environ
        def test_late(early, late): assert os.environ["early"] and os.environ["late"]
        def test_later(late): assert os.environ["late"]
        class TestIn:
            def test_one(self, of_class): assert os.environ["of_class"]
            def test_two(self, of_class): assert os.environ["of_class"]
        def test_out(): assert "of_class" not in os.environ
        def test_last(late): assert os.environ["late"]
        """,
    )
    path = pytester.path / "log"
    run = run_inner(env={"CRATE_LOG": str(path)})
    assert run.outcomes() == {"passed": 8}
    assert list(_crates(run).values()) == list("aabbccdd")
    lines = path.read_text().splitlines()
    assert lines == ["early up", "late up", "of_class up", "of_class down", "late down", "early down"]


def test_what_is_left(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Globals, files, variables, the directory and processes are there for the next test, and gone with the crate."""
    pytester.makepyfile(
        test_it="""
        import os, pathlib, subprocess, pytest
        pytestmark = pytest.mark.crate(scope="module")
        def test_leaves():
            pathlib.Path("/etc/left").touch(); os.environ["LEFT"] = "1"; os.chdir("/etc")
            subprocess.Popen(["sleep", "1000"])
        def test_finds():
            assert os.path.exists("/etc/left") and os.environ["LEFT"] and os.getcwd() == "/etc"
            assert b"sleep" in subprocess.check_output(["cat", *[
                f"/proc/{number}/comm" for number in os.listdir("/proc") if number.isdigit() and number != "1"]])
        """,
        test_later="""
        import os, pytest
        pytestmark = pytest.mark.crate(scope="module")
        def test_does_not():
            assert not os.path.exists("/etc/left") and "LEFT" not in os.environ and os.getcwd() != "/etc"
            assert len([number for number in os.listdir("/proc") if number.isdigit()]) == 2
        """,
    )
    run = run_inner()
    assert run.outcomes() == {"passed": 3}
    (left,) = [
        each for each in json.loads(_report(pytester, run_inner).read_text())["tests"] if "leaves" in each["nodeid"]
    ]
    assert left["crates"][0]["exit"] == {"code": None, "signal": None}


def _report(pytester: pytest.Pytester, run_inner: RunInner, *args: str) -> Path:
    path = pytester.path / "report.json"
    run_inner(f"--crate-report={path}", *args)
    return path


USING = """
import pytest, time
pytestmark = pytest.mark.crate(scope="module", memory="512m")
def _burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end: pass
def test_small(): _burn(0.05)
def test_big(): bytearray(100 << 20); _burn(0.3)
def test_small_too(): _burn(0.05)
"""


def test_usage(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Each test has what was used while it ran, by difference; a peak only if it raised it. The crate has all of it."""
    pytester.makepyfile(test_it=USING)
    path = pytester.path / "report.json"
    run = run_inner(f"--crate-report={path}", "--crate-top=0")
    document = json.loads(path.read_text())
    jsonschema.validate(document, json.loads(SCHEMA.read_text()))
    used = {test["nodeid"].partition("::")[2]: test["crates"][0] for test in document["tests"]}
    cpu = {name: crate["usage"]["cpu_usage_usec"] for name, crate in used.items()}
    assert cpu["test_big"] > 250_000
    assert 40_000 < cpu["test_small_too"] < 250_000
    assert used["test_big"]["usage"]["memory_peak_bytes"] > 100 << 20
    assert used["test_small_too"]["usage"]["memory_peak_bytes"] is None
    assert [used[name]["shared"]["tests"] for name in ("test_small", "test_big", "test_small_too")] == [1, 2, 3]
    (whole,) = document["shared_crates"]
    assert (whole["name"], whole["worker"], whole["exceeded"]) == ("test_it.py", None, [])
    assert whole["tests"] == ["test_it.py::test_small", "test_it.py::test_big", "test_it.py::test_small_too"]
    assert whole["exit"] == {"code": 0, "signal": None}
    assert whole["usage"]["cpu_usage_usec"] == sum(cpu.values())
    assert whole["usage"]["memory_peak_bytes"] == used["test_big"]["usage"]["memory_peak_bytes"]
    assert whole["usage"]["wall_usec"] >= sum(crate["usage"]["wall_usec"] for crate in used.values())
    table = run.text.partition("= crates =")[2]
    assert "test_it.py (3 tests)" in table
    assert "1 crate (1 shared), cpu" in table


def test_xdist(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Under xdist each worker shares crates between its own tests, and the report says which."""
    pytester.makepyfile(
        test_it="import pytest\n@pytest.mark.parametrize('number', range(12))\ndef test_it(number): pass\n"
    )
    path = pytester.path / "report.json"
    run = run_inner("--crate-all", "--crate-scope=module", "-n2", f"--crate-report={path}")
    assert run.outcomes() == {"passed": 12}
    document = json.loads(path.read_text())
    assert sorted(id_ for crate in document["shared_crates"] for id_ in crate["tests"]) == sorted(
        test["nodeid"] for test in document["tests"]
    )
    assert {crate["worker"] for crate in document["shared_crates"]} <= {"gw0", "gw1"}
    assert len(document["shared_crates"]) < 12


def test_reruns(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Each try of a test that has failed has a fresh crate; tests that pass at once go on sharing theirs."""
    pytest.importorskip("pytest_rerunfailures")
    pytester.makepyfile(
        """
        import os, pytest
        pytestmark = [pytest.mark.crate(scope="module"), pytest.mark.flaky(reruns=2)]
        kept = []
        def test_one(tmp_path_factory): kept.append(1)
        def test_two(): assert kept == [1]
        def test_flaky(tmp_path_factory):
            tries = tmp_path_factory.getbasetemp() / "tries"
            with tries.open("a") as file: file.write(f"{len(kept)}\\n")
            assert tries.read_text().split() == ["1", "0", "0"]
        def test_after(): kept.append(1)
        """
    )
    assert run_inner().outcomes() == {"passed": 4, "rerun": 2}


def test_first_failure_stops(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """With -x the crate that waits for the next test ends, and its last test has what it used."""
    pytester.makepyfile("def test_a(): pass\ndef test_b(): assert 0\ndef test_c(): pass\n")
    path = pytester.path / "report.json"
    run = run_inner("--crate-all", "--crate-scope=module", "-x", f"--crate-report={path}")
    assert run.outcomes() == {"passed": 1, "failed": 1}
    (whole,) = json.loads(path.read_text())["shared_crates"]
    assert len(whole["tests"]) == 2


def test_bad_scope(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Another scope is a mistake that stops the run, with the valid ones."""
    pytester.makepyfile("import pytest\n@pytest.mark.crate(scope='session')\ndef test_it(): pass\n")
    run = run_inner()
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    assert "scope='session'" in run.result.stderr.str()
    assert "'function', 'class' or 'module'" in run.result.stderr.str()


MIXED = """
import logging, sys, unittest, warnings, pytest

@pytest.fixture(scope="module")
def wide():
    print("wide up"); logging.info("wide up"); yield; print("wide down"); logging.info("wide down")
@pytest.fixture
def inner():
    print("inner up"); yield; print("inner down", file=sys.stderr)
@pytest.fixture
def breaks():
    yield
    raise ValueError("in teardown")
@pytest.fixture
def refuses(): raise ValueError("in setup")
def test_prints(inner):
    print("body"); print("body's error", file=sys.stderr); logging.warning("body's log")
def test_wide(wide, inner): print("body")
def test_fails(inner, wide):
    print("before failing"); logging.error("failing")
    assert {"a": 1} == {"a": 2}, "dicts differ"
def test_warns(): warnings.warn("careful", UserWarning); warnings.warn(DeprecationWarning("old"))
@pytest.mark.filterwarnings("error")
def test_error(): warnings.warn("raised")
@pytest.mark.skip(reason="marked")
def test_marked(): pass
def test_skips(): pytest.skip("not now")
@pytest.mark.xfail
def test_xfails(inner): assert 0
@pytest.mark.xfail(strict=True)
def test_strict(): pass
@pytest.mark.parametrize("x", [1, 2])
def test_parametrized(x): assert x
def test_setup(refuses): pass
def test_teardown(breaks): print("then")
def test_subtests(subtests):
    for number in range(3):
        with subtests.test(number=number): assert number != 1
class TestUnit(unittest.TestCase):
    def setUp(self): print("setUp")
    def test_a(self): self.assertTrue(True)
    def test_b(self): self.fail("no")
    def test_c(self): self.skipTest("no")
def test_log(caplog): logging.error("seen"); assert [each.message for each in caplog.records] == ["seen"]
def test_capsys(capsys): print("x"); assert capsys.readouterr().out == "x\\n"
def test_property(record_property, record_xml_attribute): record_property("a", 1)
"""

HOOKS = """
import logging, warnings, pytest
def pytest_runtest_logstart(nodeid): print("start", nodeid)
@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    print("protocol", item.name)
    result = yield
    print("protocol ends", item.name)
    return result
def pytest_runtest_setup(item):
    print("hook", item.name); warnings.warn(f"hook of {item.name}")
@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    print("before call")
    return (yield)
def pytest_runtest_teardown(item): print("tear-down hook")
"""


@pytest.mark.parametrize(
    "options",
    [
        "-rA -v",
        "-s -v",
        "--capture=sys",
        "-o log_cli=true --log-cli-level=INFO -v",
        "-x",
        "--setup-show -v",
        "-p no:warnings",
        "--tb=native",
    ],
)
@pytest.mark.parametrize("hooks", ["", HOOKS], ids=["bare", "hooks"])
def test_outcomes_are_as_ever(pytester: pytest.Pytester, both_ways: BothWays, options: str, hooks: str) -> None:
    """Tests that share a crate are reported, printed and written as JUnit XML as without crates."""
    pytester.makepyfile(conftest=hooks, test_outcomes_are_as_ever=MIXED)
    assert both_ways("--crate-scope=module", *options.split()).reports


def test_last_failed(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """--lf, --ff and --sw choose the same tests after a run with shared crates as after a plain one."""
    pytester.makepyfile("def test_a(): pass\ndef test_b(): assert 0\ndef test_c(): pass\ndef test_d(): assert 0\n")
    for options in ((), ("--lf",), ("--ff",), ("--sw",)):
        both_ways("--crate-scope=module", "-v", *options)


def test_what_went_over_a_limit_between_two_tests(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A process that a test left, and that goes over a limit later, fails a test of its crate, with the reason."""
    pytester.makepyfile(
        """
        import subprocess, sys, time, pytest
        pytestmark = pytest.mark.crate(scope="module", memory="64m")
        def test_leaves():
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1); bytearray(200 << 20)"])
        def test_meets_it(): time.sleep(4)
        def test_after(): pass
        """
    )
    run = run_inner()
    assert run.outcomes() == {"passed": 2, "failed": 1}
    assert "memory limit 64 MiB exceeded" in run.of("test_meets_it")["longrepr"]


UNTAKEN = """
import pytest
pytestmark = pytest.mark.crate(scope="module")
@pytest.fixture(scope="class")
def refuses(): raise ValueError("no")
@pytest.fixture(scope="class")
def skips(): pytest.skip("not here")
def test_one(): pass
@pytest.mark.skip
def test_marked(): pass
def test_two(): pass
def test_refused(refuses): pass
def test_three(): pass
def test_skipped(skips): pass
def test_four(): pass
"""


def test_a_crate_that_the_next_test_does_not_take(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A crate ends with the test that never came to its own set-up; its descriptors are closed."""
    pytester.makepyfile(
        conftest="""
        import psutil
        def pytest_runtest_logfinish(nodeid):
            with open("left", "a") as file:
                print(nodeid.partition("::")[2], psutil.Process().num_fds(), file=file)
        """,
        test_it=UNTAKEN,
    )
    run = run_inner()
    assert run.outcomes() == {"passed": 4, "skipped": 2, "errors": 1}
    # pytest has descriptors of each crate's process, until that has ended.
    left = dict(map(str.split, (pytester.path / "left").read_text().splitlines()))
    assert int(left["test_marked"]) < int(left["test_one"])
    assert left["test_marked"] == left["test_refused"] == left["test_skipped"]


@pytest.mark.parametrize("how", ["@pytest.mark.skip", "@pytest.mark.usefixtures('skips')"], ids=["marker", "fixture"])
def test_a_limit_in_a_crate_that_the_next_test_does_not_take(
    pytester: pytest.Pytester, run_inner: RunInner, how: str
) -> None:
    """What a test has left in the crate goes over a limit while one that is skipped is at its hooks: that one tells."""
    pytester.makepyfile(
        conftest="""
        import pathlib, psutil, time
        def _waits(process):
            try:
                return "bytearray" in " ".join(process.cmdline())
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                return False
        def pytest_runtest_teardown(item):
            if item.name != "test_next":
                return
            pathlib.Path(item.config.cache.mkdir("left"), "go").touch()
            end = time.monotonic() + 60
            while any(map(_waits, psutil.Process().children(recursive=True))):
                assert time.monotonic() < end
                time.sleep(0.02)
        """,
        test_it=f"""
        import pathlib, subprocess, sys, pytest
        pytestmark = pytest.mark.crate(scope="module", memory="64m")
        @pytest.fixture(scope="class")
        def skips(): pytest.skip("not here")
        CODE = "import os, sys, time\\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.02)\\nbytearray(200 << 20)"
        def test_leaves(request):
            go = pathlib.Path(request.config.cache.mkdir("left"), "go")
            subprocess.Popen([sys.executable, "-c", CODE, str(go)])
        {how}
        def test_next(): pass
        def test_after(): pass
        """,
    )
    run = run_inner()
    assert run.outcomes() == {"passed": 2, "skipped": 1, "errors": 1}
    assert "has gone over a limit: memory" in run.of("test_next", "teardown")["longrepr"]


def test_stacks_of_another_test(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """The failure of a test whose process crashes shows its stacks, and not those of a process of one before it."""
    pytester.makepyfile(
        """
        import os, signal
        import pytest
        pytestmark = pytest.mark.crate(scope="module")
        def test_a_child_that_crashes():
            pid = os.fork()
            if pid == 0:
                os.kill(os.getpid(), signal.SIGABRT)
            assert os.waitpid(pid, 0)[1] == signal.SIGABRT
        def test_crashes():
            os.kill(os.getpid(), signal.SIGABRT)
        """
    )
    report = run_inner().of("test_crashes", "call")
    assert "killed by SIGABRT" in report["longrepr"]
    stacks = "\n".join(text for _, text in report["sections"])
    assert "in test_crashes" in stacks
    assert "test_a_child_that_crashes" not in stacks


def test_plugins_that_keep_what_is_a_tests(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A test of Hypothesis has a crate of its own between those that share one."""
    pytest.importorskip("hypothesis")
    pytester.makepyfile(
        conftest=WHERE,
        test_it="""
        import pytest
        from hypothesis import given, settings, strategies
        pytestmark = pytest.mark.crate(scope="module")
        def test_one(): pass
        def test_two(): pass
        @settings(max_examples=2)
        @given(strategies.integers())
        def test_property(number): pass
        def test_three(): pass
        """,
    )
    run = run_inner()
    assert run.outcomes()["passed"] == 4
    assert list(_crates(run).values()) == list("aabc")
