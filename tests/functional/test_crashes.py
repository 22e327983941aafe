"""A test whose process is lost, or broken, is a clear failure of that test alone."""

from __future__ import annotations

import re
import textwrap

import pytest

from tests.inner import BothWays, RunInner

CRASHES = {
    "segfault": ("import ctypes; ctypes.string_at(0)", "the test's process was killed by SIGSEGV"),
    "exit": ("os._exit(3)", "the test's process ended with exit status 3"),
    "exit_zero": ("os._exit(0)", "the test's process ended with exit status 0"),
    "abort": ("os.abort()", "the test's process was killed by SIGABRT"),
    "kill": ("os.kill(os.getpid(), 9)", "the test's process was killed by SIGKILL"),
    "closes_all": ("os.closerange(0, 65536)", "closed the descriptor that its report travels on"),
    "closes_above_2": ("os.closerange(3, 65536)", "closed the descriptor that its report travels on"),
    "bad_repr": ("assert Bad() == 1", "AssertionError"),
    "bad_exception": ("raise BadError('x')", "BadError"),
    "base_exception": ("raise Strange('y')", "Strange: y"),
    "big_message": ("assert False, 'x' * (50 << 20)", "AssertionError: xxxxx"),
    "deep_recursion": ("def f(): f()\n    f()", "RecursionError"),
    "sys_exit": ("raise SystemExit(4)", "SystemExit: 4"),
    "surrogates": ("raise ValueError('\\ud800 \\x00 \\x1b[31m')", "ValueError"),
    "memory_error": ("raise MemoryError", "MemoryError"),
}

HEAD = """
import os, threading, time, pytest
class Bad:
    def __repr__(self): raise ValueError("no repr")
class BadError(Exception):
    def __str__(self): raise ValueError("no str")
    __repr__ = __str__
    def __reduce__(self): raise TypeError("no pickle")
class Strange(BaseException): pass
def test_before(): pass
"""


def test_each_crash_fails_its_test_alone(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Crashes of every kind in the body: each is told in words, those around it pass, the run ends with 1."""
    source = HEAD
    for name, (statement, _) in CRASHES.items():
        source += f"def test_{name}():\n    print('said by {name}')\n    {statement}\ndef test_after_{name}(): pass\n"
    pytester.makepyfile(source)
    run = run_inner("--crate-all", "-rf")
    assert run.ret == pytest.ExitCode.TESTS_FAILED
    assert run.outcomes() == {"passed": len(CRASHES) + 1, "failed": len(CRASHES)}
    for name, (_, words) in CRASHES.items():
        report = run.of(f"::test_{name}")
        assert words in report["longrepr"], name
        assert ["Captured stdout call", f"said by {name}\n"] in report["sections"], name
    assert len(run.of("::test_big_message")["longrepr"]) < 20 << 20


@pytest.mark.parametrize("phase", ["setup", "call", "teardown"])
def test_crash_in_each_phase(pytester: pytest.Pytester, run_inner: RunInner, phase: str) -> None:
    """A crash in set-up or tear-down is an error of that phase; wider fixtures are torn down, later tests run."""
    statements = {name: "os._exit(9)" if name == phase else "pass" for name in ("setup", "call", "teardown")}
    pytester.makepyfile(
        f"""
        import os, pytest
        @pytest.fixture(scope="module")
        def wide():
            yield
            open("wide-down", "w").close()
        @pytest.fixture
        def fixture():
            {statements["setup"]}
            yield
            {statements["teardown"]}
        def test_crashes(wide, fixture): {statements["call"]}
        def test_after(wide): pass
        """
    )
    run = run_inner("--crate-all")
    expected = {
        "setup": {"passed": 1, "errors": 1},
        "call": {"passed": 1, "failed": 1},
        "teardown": {"passed": 2, "errors": 1},
    }
    assert run.outcomes() == expected[phase]
    assert "ended with exit status 9 before it could report" in run.of("test_crashes", phase)["longrepr"]
    assert run.of("test_crashes", "teardown")["crates"] == ["body"]
    assert (pytester.path / "wide-down").exists()


def test_crash_and_expected_failure(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A crash is not what an xfail foresaw, unless raises= names it."""
    pytester.makepyfile(
        """
        import os, pytest, unittest
        from pytest_crate.plugin import CrateFailed
        @pytest.mark.xfail(reason="something else")
        def test_xfail(): os._exit(1)
        @pytest.mark.xfail(strict=True)
        def test_strict(): os._exit(1)
        @pytest.mark.xfail(raises=ValueError)
        def test_other(): os._exit(1)
        @pytest.mark.xfail(raises=CrateFailed)
        def test_named(): os._exit(1)
        @pytest.mark.xfail(raises=(ValueError, CrateFailed), strict=True)
        def test_named_among(): os._exit(1)
        @pytest.mark.xfail(raises=BaseException)
        def test_named_by_its_base(): os._exit(1)
        @pytest.mark.xfail(raises=pytest.RaisesExc(CrateFailed, match="exit status 1"))
        def test_named_with_its_text(): os._exit(1)
        @pytest.mark.xfail(False, reason="no", raises=CrateFailed)
        @pytest.mark.xfail(reason="something else")
        def test_named_by_one_that_does_not_apply(): os._exit(1)
        @pytest.mark.xfail(raises=None)
        def test_nothing_named(): os._exit(1)
        class TestCase(unittest.TestCase):
            @unittest.expectedFailure
            def test_case(self): os._exit(1)
        """
    )
    run = run_inner("--crate-all")
    assert run.outcomes() == {"failed": 6, "xfailed": 4}
    assert run.of("test_xfail")["wasxfail"] is None


@pytest.mark.parametrize("raises", ["", "raises=BaseExceptionGroup"])
def test_crash_and_expected_failure_beside_another(pytester: pytest.Pytester, run_inner: RunInner, raises: str) -> None:
    """A crash is not what an xfail foresaw where pytest groups it with a wider fixture's failure, either."""
    pytester.makepyfile(
        f"""
        import os, pytest
        @pytest.fixture(scope="session")
        def session():
            yield
            raise ValueError("session")
        @pytest.fixture(scope="module")
        def module():
            yield
            raise ValueError("module")
        @pytest.fixture
        def crashes():
            yield
            os._exit(3)
        @pytest.mark.xfail({raises})
        def test_it(session, module, crashes): pass
        """
    )
    run = run_inner("--crate-all")
    assert run.outcomes() == {"xpassed": 1, "errors": 1}
    report = run.of("test_it", "teardown")
    assert all(words in report["longrepr"] for words in ("ended with exit status 3", "session", "module"))


def test_forks_and_threads(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A fork that comes back into pytest, daemons, and threads left running neither double nor hold up a report."""
    pytester.makepyfile(
        """
        import os, threading, time, pytest
        def test_fork_returns():
            if os.fork() == 0: return
            os.wait()
        def test_fork_fails():
            assert os.fork()
        def test_fork_raises():
            if not os.fork(): raise SystemExit(1)
        def test_fork_skips():
            if not os.fork(): pytest.skip("child")
            os.wait()
        def test_fork_exits():
            if not os.fork(): pytest.exit("child")
            os.wait()
        @pytest.fixture
        def forks(): os.fork(); yield
        def test_fork_in_fixture(forks): pass
        def test_daemon():
            if os.fork() == 0:
                os.setsid(); time.sleep(600)
        def test_thread(): threading.Thread(target=time.sleep, args=(600,)).start()
        def test_daemon_thread(): threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
        def test_last(): pass
        """
    )
    run = run_inner("--crate-all", "-v")
    assert run.outcomes() == {"passed": 10}
    assert len(run.reports) == 30


def test_garbage_on_every_descriptor(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A body that writes to all that it inherited spoils its own report, and nothing else."""
    pytester.makepyfile(
        """
        import os
        def test_garbage():
            for fd in range(3, 64):
                try: os.write(fd, b"x" * 64)
                except OSError: pass
        def test_small_frame():
            for fd in range(3, 64):
                try: os.write(fd, b"\\x00\\x00\\x00\\x02{}")
                except OSError: pass
        def test_after(): pass
        """
    )
    run = run_inner("--crate-all")
    assert run.of("test_garbage")["outcome"] == "failed"
    assert "wrote to its report's descriptor" in run.of("test_garbage")["longrepr"]
    assert run.of("test_after")["outcome"] == "passed"
    assert run.ret == pytest.ExitCode.TESTS_FAILED


def test_stopped_process(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A process that stops itself is killed at the timeout, and not asked where it is, which it can't say; what ignores
    signals is killed, and so is what hangs in tear-down."""
    pytester.makeconftest("from pytest_crate.plugin import body\nbody._STACKS_WAIT_SECONDS = 1e6\n")
    pytester.makepyfile(
        """
        import os, signal, time, pytest
        pytestmark = pytest.mark.crate(timeout=1)
        def test_stops(): os.kill(os.getpid(), signal.SIGSTOP)
        def test_ignores():
            for number in (signal.SIGTERM, signal.SIGINT): signal.signal(number, signal.SIG_IGN)
            while True: time.sleep(60)
        @pytest.fixture
        def hangs():
            yield
            time.sleep(60)
        def test_teardown(hangs): pass
        def test_after(): pass
        """
    )
    run = run_inner()
    assert run.outcomes() == {"passed": 2, "failed": 2, "errors": 1}
    assert "timeout of 1 s exceeded" in run.of("test_stops")["longrepr"]
    assert any("in test_ignores" in text for _, text in run.of("test_ignores")["sections"])


def test_a_timeout_while_time_is_frozen(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A crate's time goes on where a wider fixture freezes it for its tests, by replacing the functions of ``time``."""
    pytester.makepyfile(
        """
        import time, pytest
        @pytest.fixture(scope="module", autouse=True)
        def frozen():
            with pytest.MonkeyPatch.context() as patch:
                for name in ("time", "monotonic", "perf_counter"):
                    now = getattr(time, name)()
                    patch.setattr(time, name, lambda now=now: now)
                    patch.setattr(time, name + "_ns", lambda now=now: int(now * 1e9))
                yield
        @pytest.mark.crate(timeout=1)
        def test_hangs():
            before = time.monotonic()
            while time.monotonic() == before: pass
        """
    )
    run = run_inner()
    assert run.outcomes() == {"failed": 1}
    assert "timeout of 1 s exceeded" in run.of("test_hangs")["longrepr"]
    run.result.stdout.re_match_lines([r"wall +[1-9][0-9.]* s of 1 s"])


def test_a_suite_that_ends_all_child_processes(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """A wider fixture that terminates every child of pytest's, and waits for it, neither hangs nor harms a test."""
    pytester.makepyfile(
        """
        import psutil, pytest

        @pytest.fixture(scope="class")
        def no_children():
            yield
            for child in psutil.Process().children():
                child.terminate()
                child.wait(timeout=20)

        @pytest.mark.usefixtures("no_children")
        class TestFirst:
            def test_it(self): pass

        class TestSecond(TestFirst): pass
        """
    )
    assert both_ways().outcomes() == {"passed": 2}


def test_other_tests_are_unharmed_by_a_dead_launcher(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """When the launcher is killed, the test that runs fails, and the next gets another launcher."""
    pytester.makepyfile(
        """
        import os, signal, psutil, pytest
        @pytest.fixture(scope="module")
        def launcher_killed():
            for child in psutil.Process().children():
                if child.name().startswith("crate-launcher"): child.kill(); child.wait()
        def test_before(): pass
        def test_first(launcher_killed): pass
        def test_second(launcher_killed): pass
        """
    )
    run = run_inner("--crate-all", "-rA")
    assert run.of("test_second")["outcome"] == "passed"
    assert run.of("test_first", "setup")["outcome"] in ("passed", "failed")
    assert "INTERNALERROR" not in run.text


@pytest.mark.parametrize("closed", ["", "with pytest.raises(SandboxError): crate_sandbox.close()"])
def test_a_test_does_not_pass_where_its_launcher_was_killed(
    pytester: pytest.Pytester, run_inner: RunInner, closed: str
) -> None:
    """Not even one that only starts programs, and does not look at how they ended."""
    pytester.makepyfile(
        f"""
        import os, subprocess, psutil, pytest
        from pytest_crate import SandboxError
        @pytest.mark.crate
        def test_starts(crate_sandbox):
            server = crate_sandbox.popen(["sleep", "100"], stdin=subprocess.DEVNULL)
            (launcher,) = [each for each in psutil.Process().children() if each.name() == "crate-launcher"]
            launcher.kill()
            assert server.wait() == -9
            {closed or "pass"}
        @pytest.mark.crate
        def test_goes_on(crate_sandbox):
            assert crate_sandbox.run(["true"]).returncode == 0
        """
    )
    run = run_inner("-rA")
    assert run.of("test_goes_on", "call")["outcome"] == "passed"
    if closed:  # it has been told
        assert run.of("test_starts", "teardown")["outcome"] == "passed"
    else:
        told = run.of("test_starts", "teardown")
        assert told["outcome"] == "failed"
        assert told["longrepr"] == "crate: ask the launcher: it ended, and every crate with it"


@pytest.mark.parametrize(
    "message",
    [
        '{"phase": "call", "report": 3}',
        '{"phase": "call", "report": {}, "properties": 1}',
        '{"logged": []}',
        '{"warnings": [1]}',
        '{"stop": 7}',
        '{"phase": "call", "report": {"$report_type": "TestReport", "when": "setup"}}',
    ],
)
def test_a_message_that_is_no_report_fails_its_test_alone(
    pytester: pytest.Pytester, run_inner: RunInner, message: str
) -> None:
    """What a body writes to its report's descriptor is taken apart with care: the run goes on."""
    pytester.makepyfile(
        f"""
        import os, struct

        def test_forges():
            message = {message!r}.encode()
            for name in os.listdir("/proc/self/fd"):
                try:
                    if os.readlink("/proc/self/fd/" + name).startswith("pipe:"):
                        os.write(int(name), struct.pack(">I", len(message)) + message)
                except OSError:
                    pass

        def test_next():
            pass
        """
    )
    run = run_inner("--crate-all")
    assert "INTERNALERROR" not in run.text
    assert run.of("test_forges")["outcome"] == "failed"
    assert "wrote to its report's descriptor" in run.of("test_forges")["longrepr"]
    assert run.of("test_next")["outcome"] == "passed"


@pytest.mark.parametrize("stop", [7, {"kind": "interrupt"}, {"kind": "exit", "reason": "", "returncode": "x"}])
def test_an_end_of_the_run_that_is_none(pytester: pytest.Pytester, run_inner: RunInner, stop: object) -> None:
    """What a test says of the run's end after its last report is taken apart with the same care."""
    pytester.makepyfile(
        f"""
        from pytest_crate.plugin.report_pipe import ReportPipe
        leave = ReportPipe.leave
        def forge(pipe, status): pipe.send({{"stop": {stop!r}}}); leave(pipe, status)
        def test_forges(): ReportPipe.leave = forge
        def test_next(): pass
        """
    )
    run = run_inner("--crate-all")
    assert "INTERNALERROR" not in run.text
    assert "wrote to its report's descriptor" in run.of("test_forges", "teardown")["longrepr"]
    assert run.outcomes() == {"passed": 2, "errors": 1}


def test_crash_under_a_debugger(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """--pdb shows nothing of a crash: the process that crashed is gone, and pytest's own frames say nothing of it."""
    pytester.makepyfile("import os\ndef test_crashes(): os._exit(9)\ndef test_after(): pass")
    run = run_inner("--crate-all", "--pdb")
    assert run.outcomes() == {"passed": 1, "failed": 1}
    assert "entering PDB" not in run.text
    assert "ended with exit status 9" in run.text


FORGER = """
    import os, struct, sys
    import pytest
    def frame(body):
        return struct.pack(">I", len(body)) + body
    def to_the_report(data):
        # Whichever of the inherited pipes takes it.
        for number in range(3, 256):
            try:
                if os.readlink(f"/proc/self/fd/{number}").startswith("pipe:"):
                    view = memoryview(data)
                    while view:
                        view = view[os.write(number, view):]
            except OSError:
                pass
"""


def test_a_report_in_another_tests_name(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A body can't report another test as passed: what it sends in a name that is not its own fails it."""
    pytester.makepyfile(
        textwrap.dedent(FORGER)
        + textwrap.dedent(
            """
            import json
            def test_forges(request):
                other = request.session.items[1]
                report = pytest.TestReport(other.nodeid, other.location, {}, "passed", None, "call")
                data = request.config.hook.pytest_report_to_serializable(config=request.config, report=report)
                to_the_report(frame(json.dumps({"logged": data}).encode()))
                os._exit(0)
            def test_other(): assert 0
            """
        )
    )
    run = run_inner("--crate-all")
    assert run.outcomes() == {"failed": 2}
    assert "a report of" in run.of("test_forges")["longrepr"]
    assert [report["outcome"] for report in run.reports if "test_other" in report["nodeid"]] == [
        *("passed", "failed", "passed")
    ]


@pytest.mark.parametrize(
    "flood",
    [
        "b'x' * (1 << 20)",  # no frame at all
        "frame(b'{\"logged\":\"' + b'x' * (7 << 20) + b'\"}')",
        "frame(b'{\"a\":[' + b'[],' * (1 << 20) + b'0]}')",
        "frame(b'{\"warnings\":[]}')",
    ],
    ids=["noise", "long texts", "many lists", "small frames"],
)
def test_a_flood_of_reports(pytester: pytest.Pytester, run_inner: RunInner, flood: str) -> None:
    """A body that floods its report's descriptor fails, and takes little of pytest's memory."""
    pytester.makeconftest(
        """
        import resource
        def pytest_terminal_summary(terminalreporter):
            terminalreporter.write_line(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10}")
        """
    )
    pytester.makepyfile(
        textwrap.dedent(FORGER)
        + textwrap.dedent(
            f"""
            def test_floods():
                flood = {flood}
                for _ in range(1 + (300 << 20) // (64 * len(flood))):
                    to_the_report(flood * 64 if len(flood) < 1000 else flood)
                os._exit(0)
            def test_after(): pass
            """
        )
    )
    plain = run_inner("--crate-all", "-k", "test_after")
    run = run_inner("--crate-all", "--crate-timeout=20")
    assert run.of("test_after")["outcome"] == "passed"
    assert run.of("test_floods")["outcome"] == "failed"
    peaks = [int(re.findall(r"^peak (\d+)", each.text, re.MULTILINE)[0]) for each in (plain, run)]
    assert peaks[1] - peaks[0] <= 50, peaks


@pytest.mark.parametrize("crashes", [True, False])
def test_a_gigabyte_of_output(pytester: pytest.Pytester, run_inner: RunInner, crashes: bool) -> None:
    """Of what a body has printed, killed or not, pytest shows both ends; it does not take it all into its memory."""
    pytester.makeconftest(
        """
        import resource
        def pytest_terminal_summary(terminalreporter):
            terminalreporter.write_line(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10}")
        """
    )
    pytester.makepyfile(
        f"""
        import os
        def test_prints():
            os.write(1, b"begins\\n")
            for _ in range(1 << 10):
                os.write(1, b"x" * (1 << 20))
            os.write(1, b"\\nends\\n")
            if {crashes}:
                os._exit(1)
        def test_after(): pass
        """
    )
    plain = run_inner("--crate-all", "-k", "test_after")
    run = run_inner("--crate-all")
    (output,) = [text for title, text in run.of("test_prints")["sections"] if title == "Captured stdout call"]
    assert output.startswith("begins\n")
    assert output.endswith("\nends\n")
    assert "cut by pytest-crate" in output
    assert run.of("test_prints")["outcome"] == ("failed" if crashes else "passed")
    assert run.of("test_after")["outcome"] == "passed"
    peaks = [int(re.findall(r"^peak (\d+)", each.text, re.MULTILINE)[0]) for each in (plain, run)]
    print(f"pytest grew by {peaks[1] - peaks[0]} MiB")
    assert peaks[1] - peaks[0] <= 50, peaks


def test_an_end_between_the_last_report_and_the_last_word(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A process that ends with status 0 before it has sent what plugins have measured fails its test: that is lost."""
    pytester.makepyfile(
        """
        import os, sys
        class Leaves:
            def __init__(self, stream): self.stream, self.flushed = stream, 0
            def __getattr__(self, name): return getattr(self.stream, name)
            def flush(self):
                self.flushed += 1
                if self.flushed == 1: os._exit(0)  # in the last one
        def test_leaves(): sys.__stdout__ = Leaves(sys.__stdout__)
        def test_after(): pass
        """
    )
    run = run_inner("--crate-all")
    assert run.of("test_leaves", "call")["outcome"] == "passed"
    assert (
        "did not leave by itself after its last report: exit status 0" in run.of("test_leaves", "teardown")["longrepr"]
    )
    assert run.of("test_after")["outcome"] == "passed"


def test_the_launchers_end_between_the_last_report_and_the_last_word(
    pytester: pytest.Pytester, run_inner: RunInner
) -> None:
    """A process that goes with the launcher after its last report fails its test, which says what it went with."""
    pytester.makepyfile(
        killer="""
        import os, time
        from pathlib import Path
        import psutil
        while not Path("last").exists(): time.sleep(0.01)
        (launcher,) = (each for each in psutil.Process(os.getppid()).children() if each.name() == "crate-launcher")
        launcher.kill()
        """
    )
    pytester.makepyfile(
        f"""
        import subprocess, sys, time
        from pathlib import Path
        import pytest

        @pytest.fixture(scope="module")
        def killer():
            with subprocess.Popen([sys.executable, "killer.py"]): yield

        class Waits:
            def __init__(self, stream): self.stream = stream
            def __getattr__(self, name): return getattr(self.stream, name)
            def flush(self):
                Path("last").touch()
                time.sleep(60)

        @pytest.mark.crate(mounts=["{pytester.path}:rw"])
        def test_waits(killer): sys.__stdout__ = Waits(sys.__stdout__)
        """
    )
    run = run_inner()
    assert run.of("test_waits", "call")["outcome"] == "passed"
    assert run.of("test_waits", "teardown")["longrepr"] == "crate: ask the launcher: it ended, and every crate with it"


def test_a_launcher_that_never_begins(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """The header says so, each test that wants a crate fails with it, and the others run."""
    pytester.makeconftest("from pytest_crate.sandbox import sandbox\nsandbox._LAUNCH = 'import sys; sys.exit(3)'\n")
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.crate
        def test_rides(): pass
        @pytest.mark.crate
        def test_drives(crate_sandbox): pass
        def test_plain(): pass
        """
    )
    run = run_inner()
    assert run.outcomes() == {"passed": 1, "errors": 2}, run.text
    said = "ask the launcher: no answer: it ended"
    assert f"\ncrate: {said}\n" in run.text
    assert said in run.of("test_rides", "setup")["longrepr"]
    assert said in run.of("test_drives", "setup")["longrepr"]
    assert "INTERNALERROR" not in run.text


def test_a_crate_that_no_test_gets_into_is_removed(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """What fails in pytest between a crate's making and the fork into it is the test's error; the crate goes."""
    pytester.makepyfile(
        """
        import errno, os, sys, time
        import psutil
        import pytest

        @pytest.fixture(scope="module")
        def no_directory():
            real = os.getcwd

            def getcwd():
                if sys._getframe(1).f_code.co_name != "_enter_crate":
                    return real()
                os.getcwd = real
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

            os.getcwd = getcwd

        @pytest.mark.crate
        def test_refused(no_directory): pass

        def names():
            return {process.name() for process in psutil.Process().children(recursive=True)}

        def test_what_is_left():
            end = time.monotonic() + 5  # for what ends in a moment
            ours = {"crate-launcher", "crate-builder"}
            while len(others := names() - ours) and time.monotonic() < end:
                time.sleep(0.01)
            assert others == set()
        """
    )
    run = run_inner()
    assert "Too many open files" in run.of("test_refused", "setup")["longrepr"]
    assert run.of("test_what_is_left")["outcome"] == "passed", run.of("test_what_is_left")["longrepr"]


TRACED = """
import ctypes, os, pytest, time
libc = ctypes.CDLL(None, use_errno=True)
PTRACE_SEIZE, PR_SET_PTRACER, PR_SET_PTRACER_ANY = 0x4206, 0x59616D61, ctypes.c_ulong(-1)
def be_traced():
    libc.prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0)  # fails without Yama, where nobody has to be let
    reading, writing = os.pipe()
    traced = os.getpid()
    if os.fork() == 0:
        os.setsid()
        if libc.ptrace(PTRACE_SEIZE, traced, 0, 0) == 0:
            os.write(writing, b"traced")
        while True: time.sleep(100)
    assert os.read(reading, 100) == b"traced"
"""


def test_a_crash_while_traced(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A process that another one of its crate traces ends as any: it is waited for when that one has been killed."""
    pytester.makepyfile(
        traced=TRACED,
        test_it="""
        import os, pytest
        from traced import be_traced
        pytestmark = pytest.mark.crate(timeout=20)
        def test_crash():
            be_traced()
            os._exit(3)
        def test_passes(): be_traced()
        def test_after(): pass
        """,
    )
    run = run_inner("--durations=0", "-vv")
    assert run.outcomes() == {"failed": 1, "passed": 2}
    assert "ended with exit status 3 before it could report" in run.of("test_crash")["longrepr"]
    assert "timeout" not in run.text
