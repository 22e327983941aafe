"""What a body can do to the rest of the run with the descriptor that its reports travel on."""

from __future__ import annotations

import json
import re
import sys
import time
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from tests.inner import PATIENCE

if TYPE_CHECKING:
    from tests.escape.conftest import RunHere

pytestmark = pytest.mark.needs("root", "overlay")

FORGING = """
    import fcntl, json, os, struct
    import pytest

    pytestmark = pytest.mark.crate(timeout=60)

    def frame(message):
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        return struct.pack(">I", len(body)) + body

    def report(name, when="call", outcome="passed"):
        return {"$report_type": "TestReport", "nodeid": f"test_inner.py::{name}",
                "location": ["test_inner.py", 1, name], "keywords": {}, "outcome": outcome, "longrepr": None,
                "when": when, "user_properties": [], "sections": [], "duration": 0, "start": 0, "stop": 0}

    def phase(name, when):
        return {"phase": when, "report": report(name, when), "warnings": [], "properties": [], "failed_subtests": 0,
                "stops": {}, "junit": None, "values": {}, "exception": None, "kept": {}}

    def forge(data, times=1):
        for name in os.listdir("/proc/self/fd"):
            try:
                link, flags = os.readlink(f"/proc/self/fd/{name}"), fcntl.fcntl(int(name), fcntl.F_GETFL)
            except OSError:
                continue
            if link.startswith("pipe:") and flags & os.O_ACCMODE == os.O_WRONLY and int(name) > 2:
                for _ in range(times):
                    left = memoryview(data)
                    while left:
                        left = left[os.write(int(name), left):]

    @pytest.fixture(scope="session", autouse=True)
    def memory():
        def peak():
            return int(__import__("re").search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
        before = peak()
        yield
        print(f"\\nGREW BY {(peak() - before) >> 10} MIB")
"""


@pytest.mark.parametrize("crash", ["os.kill(os.getpid(), 11)", "os._exit(3)", "os.abort()"])
def test_no_pass_after_a_crash(run_here: RunHere, crash: str) -> None:
    """Whoever forges the rest of its own reports, and crashes, has failed; who forges them and leaves has its word."""
    done = run_here(
        FORGING
        + f"""
    def test_crashes():
        forge(frame(phase("test_crashes", "call")) + frame(phase("test_crashes", "teardown")))
        {crash}

    def test_leaves():
        forge(frame(phase("test_leaves", "call")) + frame(phase("test_leaves", "teardown")))
        os._exit(0)
    """
    )
    assert "ERROR test_inner.py::test_crashes" in done, done
    assert "PASSED test_inner.py::test_leaves" in done  # the control: the frames are as good as its own


def test_a_report_before_ones_own_is_told(run_here: RunHere) -> None:
    """Who reports that it has passed, goes on and fails, has not passed: there is one report of each phase."""
    done = run_here(
        FORGING
        + """
    def test_call():
        forge(frame(phase("test_call", "call")))
        assert 0

    def test_both():
        forge(frame(phase("test_both", "call")) + frame(phase("test_both", "teardown")))
        assert 0

    def test_after(): pass
    """
    )
    for name in ("test_call", "test_both"):
        assert f"ERROR test_inner.py::{name}" in done, done
    assert done.count("wrote to its report's descriptor") >= 2
    assert "PASSED test_inner.py::test_after" in done


def test_what_a_test_leaves_behind_reports_for_no_other(run_here: RunHere) -> None:
    """In a crate that tests share, a process that one of them has left has the descriptor, too: its report is one too
    many."""
    done = run_here(
        FORGING
        + """
    import time
    pytestmark = pytest.mark.crate(timeout=60, scope="module")

    def test_leaves_a_process():
        if os.fork() == 0:
            while not os.path.exists("/tmp/begun"):
                time.sleep(0.01)
            forge(frame(phase("test_fails", "call")))
            open("/tmp/forged", "w").close()
            os._exit(0)

    def test_fails():
        open("/tmp/begun", "w").close()
        while not os.path.exists("/tmp/forged"):
            time.sleep(0.01)
        assert 0

    def test_after(): pass
    """
    )
    assert "PASSED test_inner.py::test_leaves_a_process" in done, done
    assert re.search("(ERROR|FAILED) test_inner.py::test_fails", done), done
    assert "PASSED test_inner.py::test_after" in done


BAD_PARTS = """
    ENTRIES = {"reprentries": [], "extraline": 3, "style": 1}
    PARTS = {
        "duration": ["x", None, [], 1e400], "start": ["x"], "stop": [None], "keywords": [3, [], None],
        "longrepr": [3, [1, 2], [1, 2, 3], {}, True, {"reprcrash": 1, "reprtraceback": 2, "sections": 3, "chain": 4},
                     {"reprcrash": None, "sections": [], "reprtraceback": ENTRIES,
                      "chain": [[ENTRIES, {"path": 1, "lineno": [], "message": 2}, 3]]}],
        "sections": [3, [[1]]], "location": [3, [], [1, 2, 3], ["a", "b", "c"], [None, None, None]],
        "user_properties": [3, [1], [[1]]], "when": ["call ", None, 3, []], "outcome": ["x", None, [], "PASSED"],
        "nodeid": [None, 3, []], "wasxfail": [3, [], None], "toterminal": ["x"], "_to_json": [3],
        "get_sections": [None], "crate": [3, {}, None, {"crates": 3}],
        "crate_reach": [3, {"ports": 3, "paths": True}, {"ports": [[]], "paths": [{}]}],
        "$report_type": ["x", 3, "CollectReport"],
    }
    CASES = [(key, value, form) for key, values in PARTS.items() for value in values for form in ("logged", "phase")]

    @pytest.mark.parametrize("number", range(len(CASES)))
    def test_forger(number):
        key, value, form = CASES[number]
        own = f"test_forger[{number}]"
        message = {"logged": report(own)} if form == "logged" else phase(own, "call")
        message["logged" if form == "logged" else "report"] |= {"outcome": "failed", key: value}
        forge(frame(message))

    @pytest.mark.parametrize("form", ["logged", "phase"])
    def test_skipper(form):
        own = f"test_skipper[{form}]"
        message = {"logged": report(own)} if form == "logged" else phase(own, "call")
        message["logged" if form == "logged" else "report"] |= {"outcome": "skipped"}
        forge(frame(message))

    def test_failer():
        forge(frame({"logged": report("test_failer", outcome="failed")}))

    def test_after(): pass
"""


def test_a_report_with_a_part_that_none_has_fails_its_test_alone(run_here: RunHere) -> None:
    """pytest's own reporters, the terminal's and JUnit's, get nothing from a crate that they would stumble over."""
    done = run_here(FORGING + BAD_PARTS, args=["--junitxml=junit.xml", "--durations=3", "-v"])
    assert "INTERNALERROR" not in done, done[-3000:]
    assert "PASSED test_inner.py::test_after" in done, done[-3000:]
    forgers = re.findall(r"^(\w+) test_inner\.py::test_forger\[(\d+)\]", done, re.MULTILINE)
    failed = {number for outcome, number in forgers if outcome in ("FAILED", "ERROR")}
    assert failed == {number for _, number in forgers}
    assert len(failed) > 70
    assert len(re.findall(r"^(?:FAILED|ERROR) test_inner\.py::test_(?:skipper|failer)", done, re.MULTILINE)) == 3


ONLY_PYTESTS = """
    from pytest_crate.plugin import transfer

    NAMES = ["_id", "node", "crate", "worker_id", "item_index", "testrun_uid", "session"]

    @pytest.mark.parametrize("value", [[], {}, "x"])
    @pytest.mark.parametrize("name", NAMES)
    def test_call(name, value, request):
        forge(frame({"logged": report(request.node.name) | {name: value}}))
        whole = transfer.pack_report
        transfer.pack_report = lambda *args: whole(*args) | {name: value}

    def test_after(): pass
"""


@pytest.mark.parametrize("args", [[], ["-n2"]], ids=["plain", "xdist"])
def test_what_only_pytest_gives_a_report_is_taken_from_no_other(
    run_here: RunHere, pytester: pytest.Pytester, args: list[str]
) -> None:
    """An attribute by which pytest, or xdist, finds a report's place: forged, it ended the run."""
    done = run_here(FORGING + ONLY_PYTESTS, args=["--junitxml=junit.xml", "--crate-report=crates.json", *args])
    assert "INTERNALERROR" not in done, done[-3000:]
    assert "PASSED test_inner.py::test_after" in done, done[-3000:]
    assert not re.search("^(FAILED|ERROR)", done, re.MULTILINE), done[-3000:]
    tests = json.loads((pytester.path / "crates.json").read_text())["tests"]
    assert len(tests) == 22


HIDING = """
    @pytest.fixture
    def hides(request):
        yield
        forge(frame({"logged": report(request.node.name, WHEN)}))

    @pytest.fixture
    def fails(hides): assert FAILING != "setup"

    def test_hidden(hides, fails): assert FAILING != "call"

    def test_after(): pass
"""


@pytest.mark.parametrize("failing", ["call", "setup"])
@pytest.mark.parametrize("when", ["setup", "call", "teardown"])
def test_a_report_beside_ones_own_hides_no_failure(
    run_here: RunHere, pytester: pytest.Pytester, when: str, failing: str
) -> None:
    """A test that has failed, and then logs that it passed, has failed: on the terminal and in either report."""
    done = run_here(
        FORGING + HIDING.replace("WHEN", repr(when)).replace("FAILING", repr(failing)),
        args=["--junitxml=junit.xml", "--crate-report=crates.json"],
    )
    outcome = "FAILED" if failing == "call" else "ERROR"
    assert f"{outcome} test_inner.py::test_hidden" in done, done[-3000:]
    assert "PASSED test_inner.py::test_after" in done
    outcomes = {
        test["nodeid"]: test["outcome"] for test in json.loads((pytester.path / "crates.json").read_text())["tests"]
    }
    assert outcomes == {"test_inner.py::test_hidden": outcome.lower(), "test_inner.py::test_after": "passed"}
    assert ("wrote to its report's descriptor" in done) == (when != "call")


LAST_WORDS = {
    "deaf": {"deaf": "HUGE"},
    "exit": {"stop": {"kind": "exit", "reason": "x", "returncode": "HUGE"}},
    "interrupt": {"stop": {"kind": "interrupt", "path": "x", "line": "HUGE"}},
    "deep": {"brought": "DEEP"},
    "steps": {"steps": "DEEP"},
}


@pytest.mark.parametrize("scope", ["function", "module"])
@pytest.mark.parametrize("word", LAST_WORDS)
def test_a_last_word_that_is_none_fails_its_test_alone(run_here: RunHere, word: str, scope: str) -> None:
    """The same of what comes after a test's last report."""
    text = json.dumps(LAST_WORDS[word]).replace('"HUGE"', "1e999").replace('"DEEP"', "[" * 900 + "]" * 900)
    source = f"""
    from pytest_crate.plugin.rider import Rider

    pytestmark = pytest.mark.crate(timeout=60, scope={scope!r})

    def test_forges():
        for name in ("finishes", "ends"):
            def forging(*args, _whole=getattr(Rider, name)):
                forge(frame({text.encode()!r}))
                return _whole(*args)
            setattr(Rider, name, forging)

    def test_after(): pass
    """
    done = run_here(FORGING + source)
    assert "INTERNALERROR" not in done, done[-3000:]
    assert "ERROR test_inner.py::test_forges" in done, done[-3000:]
    assert "wrote to its report's descriptor" in done
    assert "PASSED test_inner.py::test_after" in done, done[-3000:]


FOR_EXECNET = """
    def test_surrogate():
        forge(frame(json.dumps({"logged": report("test_surrogate") | {"sections": [["HERE", "HERE"]]}})
                    .replace("HERE", "\\\\uD800").encode()))

    def test_number():
        forge(frame({"logged": report("test_number") | {"x": {"a": -10**12}, "user_properties": [["a", -10**12]]}}))

    def test_deep():
        forge(frame(b'{"logged":' + json.dumps(report("test_deep") | {"x": "DEEP"}).encode().replace(
            b'"DEEP"', b"[" * 190 + b"]" * 190) + b"}"))

    def test_warning():
        forge(frame({"warnings": [{"text": "x", "classes": ["builtins:UserWarning"], "filename": "f",
                                   "lineno": -10**12, "line": "x"}]}))

    def test_honest(record_property):
        record_property("a", -10**12)
        record_property("b", [[-10**12]])

    @pytest.fixture
    def low(): return -10**12

    def test_value(low): assert low

    def test_after(): pass
"""


def test_what_execnet_does_not_carry_does_not_end_its_worker(run_here: RunHere) -> None:
    """On its way to xdist's controller a report meets a format that holds less than JSON: no test may get lost."""
    done = run_here(FORGING + FOR_EXECNET, args=["-n2", "--junitxml=junit.xml"])
    assert "INTERNALERROR" not in done, done[-3000:]
    assert "DumpError" not in done, done[-3000:]
    assert "crashed" not in done
    outcomes = {name: outcome for outcome, name in re.findall(r"^([A-Z]+) test_inner\.py::(\w+)", done, re.MULTILINE)}
    assert outcomes == {"test_warning": "FAILED"} | dict.fromkeys(
        ("test_surrogate", "test_number", "test_deep", "test_honest", "test_value", "test_after"), "PASSED"
    )


FLOODS = {
    "a frame that claims a quarter of a gigabyte": 'forge(struct.pack(">I", 255 << 20) + b" " * (1 << 20), 255)',
    "an array of empty objects": 'forge(frame(b\'{"x":[\' + b"{}," * 2_600_000 + b"{}]}"))',
    "reports without end": 'forge(frame({"logged": report("test_floods")}) * 500, 5000)',
    "reports with names that none had before": 'for first in (1 << 20, 2 << 20, 3 << 20): forge(frame({"logged": '
    'report("test_floods") | {"keywords": {f"{first + number:x}": 1 for number in range(195_000)}}}))',
    "an array of empty texts": "forge(frame(b'{\"x\":[' + b'\"\",' * 2_600_000 + b'\"\"]}'))",
    "questions without end": 'forge(frame({"interacts": True}) * 1000, 100)',
    "a debugger that comes and goes": 'forge(frame({"debugger": False}) * 1000, 100)',
    "a name of characters that XML does not hold": 'forge(frame(json.dumps({"logged": report("x") | '
    '{"nodeid": "HERE"}}).replace("HERE", "\\x7f" * 7_000_000).encode()))',
    "a phase that is no phase, and long when quoted": """forge(frame({"phase": "'" * 7_000_000 + '"'}))""",
    "warnings of wide characters": 'forge(frame({"warnings": [{"text": "x" * 1_000_000 + "\\N{GRINNING FACE}", '
    '"classes": ["builtins:UserWarning"], "filename": "f", "lineno": 1, "line": ""}]}), 1000)',
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_of_frames_takes_bounded_memory(run_here: RunHere, flood: str) -> None:
    """Whatever is written, pytest's memory grows by at most 50 MiB, the test fails, and the next one runs."""
    done = run_here(FORGING + f"\n    def test_floods():\n        {FLOODS[flood]}\n\n    def test_next(): pass\n")
    assert "FAILED test_inner.py::test_floods" in done, done[-3000:]
    assert "wrote to its report's descriptor" in done
    assert "PASSED test_inner.py::test_next" in done
    (grown,) = re.findall(r"GREW BY (\d+) MIB", done)
    assert int(grown) <= 50


BRINGING = """
from pytest_crate.plugin.interplay import Interplay
Interplay.brings_much = lambda *_: True
"""


MANY = {**FLOODS, "one frame after the other": 'forge(frame({"x": "x" * (100 << 20)}), 20)'}
del MANY["reports without end"]  # logging so many takes minutes
for flood in (
    "reports with names that none had before",
    "an array of empty texts",
    "a name of characters that XML does not hold",
):
    del MANY[flood]  # so many there may be here


@pytest.mark.parametrize("flood", MANY)
def test_a_flood_where_plugins_bring_much_home(run_here: RunHere, pytester: pytest.Pytester, flood: str) -> None:
    """With coverage, or attachments, more may come; what it takes is bounded all the same: by 160 MiB, and a copy."""
    source = FORGING + f"\n    def test_floods():\n        {MANY[flood]}\n\n    def test_next(): pass\n"
    pytester.makeconftest(BRINGING)
    done = run_here(source)
    assert "FAILED test_inner.py::test_floods" in done, done[-3000:]
    assert "wrote to its report's descriptor" in done
    assert "PASSED test_inner.py::test_next" in done
    (grown,) = re.findall(r"GREW BY (\d+) MIB", done)
    print(f"{flood}: {grown} MiB")
    assert int(grown) <= 400


# Where pytest has seen that a pipe can be read, or written to, it dawdles: what it saw is so no more.
DAWDLING = """
import selectors, select, time, types
from pytest_crate.plugin import body
from pytest_crate.sandbox import program

def poll():
    real = select.poll()
    def slowly(timeout=None):
        ready = real.poll(timeout)
        time.sleep(0.3 if ready else 0)
        return ready
    return types.SimpleNamespace(register=real.register, unregister=real.unregister, poll=slowly)

class Selector(selectors.DefaultSelector):
    def select(self, timeout=None):
        ready = super().select(timeout)
        time.sleep(0.3 if ready else 0)
        return ready

constants = {name: getattr(select, name) for name in ("POLLIN", "POLLOUT", "PIPE_BUF")}
body.select = types.SimpleNamespace(poll=poll, **constants)
program.selectors = types.SimpleNamespace(
    DefaultSelector=Selector, EVENT_READ=selectors.EVENT_READ, EVENT_WRITE=selectors.EVENT_WRITE
)
"""

TAKING_BACK = """
    import fcntl, os, sys, time
    import pytest

    def the_pipes(kind):
        for name in os.listdir("/proc/self/fd"):
            try:
                link, flags = os.readlink(f"/proc/self/fd/{name}"), fcntl.fcntl(int(name), fcntl.F_GETFL)
            except OSError:
                continue
            if link.startswith("pipe:") and flags & os.O_ACCMODE == kind and int(name) > 2:
                yield int(name)

    @pytest.mark.crate(timeout=5)
    def test_takes_back():
        ends = [(number, os.open(f"/proc/self/fd/{number}", os.O_RDONLY | os.O_NONBLOCK))
                for number in the_pipes(os.O_WRONLY)]
        time.sleep(2)
        for number, other in ends:
            os.write(number, b"\\0")
            time.sleep(0.05)
            try:
                os.read(other, 1)
            except BlockingIOError:
                pass
        time.sleep(60)

    OUT = '''if True:
        import contextlib, os, time
        other = os.open("/proc/self/fd/1", os.O_RDONLY | os.O_NONBLOCK)
        for _ in range(5):
            os.write(1, b"x")
            time.sleep(0.05)
            with contextlib.suppress(BlockingIOError):
                os.read(other, 1)
            time.sleep(0.5)
        os.write(2, b"done")
    '''
    IN = '''if True:
        import contextlib, os, time
        other = os.open("/proc/self/fd/0", os.O_WRONLY | os.O_NONBLOCK)
        for _ in range(5):
            os.read(0, 4096)
            time.sleep(0.05)
            with contextlib.suppress(BlockingIOError):
                os.write(other, b"x" * 4096)
            time.sleep(0.5)
        os.write(2, b"done")
    '''

    @pytest.mark.crate(timeout=30)
    @pytest.mark.parametrize("program", [OUT, IN])
    def test_program(crate_sandbox, program):
        done = crate_sandbox.run([sys.executable, "-S", "-c", program], input="x" * (1 << 20), timeout=20)
        assert (done.returncode, done.stderr) == (0, "done")

    def test_next(): pass
"""


def test_what_is_taken_back_from_a_pipe_is_not_waited_for(run_here: RunHere, pytester: pytest.Pytester) -> None:
    """Who has one end of a pipe can open the other, and then pytest finds nothing, or no room, where it had just seen
    it: a body's timeout holds all the same, and a program's run ends as it does."""
    pytester.makeconftest(DAWDLING)
    done = run_here(TAKING_BACK)
    assert "FAILED test_inner.py::test_takes_back" in done, done[-3000:]
    assert "timeout of 5 s exceeded" in done
    assert done.count("PASSED test_inner.py::test_program") == 2, done[-3000:]
    assert "PASSED test_inner.py::test_next" in done


# Before pytest looks again, the pipe is full again.
SLOWLY = """
import time
from pytest_crate.plugin.body import Body

def slowly(body, read=Body._read_stacks):
    more = read(body)
    time.sleep(0.05)
    return more

Body._read_stacks = slowly
"""


FLOODING = """
    import fcntl, os, subprocess, time
    import pytest

    @pytest.mark.crate(timeout=3)
    @pytest.mark.parametrize("leaves", [False, True])
    def test_floods(leaves):
        found = []
        for name in os.listdir("/proc/self/fd"):
            try:
                link, flags = os.readlink(f"/proc/self/fd/{name}"), fcntl.fcntl(int(name), fcntl.F_GETFL)
            except OSError:
                continue
            if link.startswith("pipe:") and flags & os.O_ACCMODE == os.O_WRONLY and int(name) > 2:
                found.append(int(name))
        # The first is that of the reports.
        for number in sorted(found)[1:]:
            with open("/dev/zero", "rb") as zero:
                subprocess.Popen(["cat"], stdin=zero, stdout=number)
        time.sleep(1 if leaves else 60)
        os._exit(1)

    def test_next(): pass
"""


def test_a_flood_of_stacks(run_here: RunHere, pytester: pytest.Pytester) -> None:
    """What is written to the pipe that tells where a test hangs keeps pytest from nothing, however much it is."""
    pytester.makeconftest(SLOWLY)
    done = run_here(FLOODING)
    assert done.count("FAILED test_inner.py::test_floods") == 2, done[-3000:]
    assert "timeout of 3 s exceeded" in done
    assert "PASSED test_inner.py::test_next" in done


STRANGE = """
    import pytest

    pytestmark = pytest.mark.crate

    def test_property(record_property):
        record_property("\\ud800 \\0", "\\ud800 \\0")

    def test_suite(record_testsuite_property):
        record_testsuite_property("\\ud800 \\0", "\\ud800 \\0")

    def test_message():
        raise ValueError("\\ud800 \\0")

    def test_attribute(record_xml_attribute):
        record_xml_attribute('a="1"></testcase><testcase name="test_forged" b', "c")

    def test_warning():
        __import__("warnings").warn("\\ud800 \\0")

    def test_next(): pass
"""
IN_A_NAME = """
    def test_logs():
        forge(frame({"logged": report("\\ud800")}))

    def test_counts():
        forge(frame(phase("test_counts", "call") | {"failed_subtests": "x"}))

    def test_next(): pass
"""


@pytest.mark.parametrize("args", [[], ["-n1"]], ids=["plain", "xdist"])
def test_what_cannot_be_written_does_not_end_the_run(
    run_here: RunHere, pytester: pytest.Pytester, args: list[str]
) -> None:
    """Neither JUnit XML nor the way to xdist's controller can hold every text, or any name: the run goes on, and the
    file is one, without a test that is none."""
    # With xdist there is no JUnit XML where the test runs, to record an attribute for.
    strange = {"test_message"} if args else {"test_message", "test_attribute"}
    for source, failed in ((STRANGE, strange), (FORGING + IN_A_NAME, {"test_logs", "test_counts"})):
        done = run_here(source, args=["--junitxml=junit.xml", *args])
        assert "INTERNALERROR" not in done, done[-3000:]
        assert "PASSED test_inner.py::test_next" in done, done[-3000:]
        cases = ET.parse(pytester.path / "junit.xml").getroot().iter("testcase")
        outcomes = {case.get("name"): bool({"failure", "error"} & {part.tag for part in case}) for case in cases}
        assert {name for name, bad in outcomes.items() if bad} == failed
        assert "test_forged" not in outcomes


COLOURED = """
    def longrepr(lines):
        place = {"path": "x", "lineno": 1, "message": "m"}
        entry = {"lines": lines, "reprfuncargs": None, "reprlocals": None, "reprfileloc": place, "style": "long"}
        traceback = {"extraline": None, "style": "long", "reprentries": [{"type": "ReprEntry", "data": entry}]}
        return {"reprcrash": place, "sections": [], "chain": None, "reprtraceback": traceback}

    SOURCES = [["     "] * 30_000 + ["    x"], ["    '%" + "0" * 300_000]]

    @pytest.mark.parametrize("number", [0, 1])
    def test_fails(number, request):
        lines = [*SOURCES[number], "E   said"]
        forge(frame({"logged": report(request.node.name, outcome="failed") | {"longrepr": longrepr(lines)}}))
"""


def test_a_source_that_is_long_to_colour(run_here: RunHere) -> None:
    """What a test says is its source is shown in a time that grows with its length: pytest's lexer took hours."""
    done = run_here(FORGING + COLOURED, args=["--color=yes"])
    assert len(re.findall(r"FAILED\S* test_inner\.py::\S*test_fails", done)) == 2, done[-3000:]
    assert done.count("E   said") == 2


OF_SUBTESTS = """
    from pytest_crate.plugin import transfer

    def test_hides():
        whole = transfer.pack_report
        def pack(config, report):
            of_subtest = {"_report_type": "SubTestReport", "_subtest.context": {"msg": None, "kwargs": {}}}
            return whole(config, report) | (of_subtest if report.when == "call" else {})
        transfer.pack_report = pack

    def test_after(): pass
"""


@pytest.mark.parametrize("args", [[], ["-n1"]], ids=["plain", "xdist"])
def test_a_tests_report_is_no_subtests(run_here: RunHere, args: list[str]) -> None:
    """A test whose own report were one of a subtest would be missing among those that passed, and none would have
    failed."""
    if "_pytest.subtests" not in sys.modules:
        pytest.skip("this pytest has no subtests")
    done = run_here(FORGING + OF_SUBTESTS, args=args)
    assert "FAILED test_inner.py::test_hides" in done, done[-3000:]
    assert "PASSED test_inner.py::test_after" in done


# As where the child is quicker than pytest: whenever pytest looks there is more.
PIECEMEAL = """
from pytest_crate.plugin import body

body._read_now = lambda descriptor, count, read=body._read_now: read(descriptor, 8)
"""


@pytest.mark.parametrize("last", [False, True], ids=["in its call", "at its end"])
def test_a_timeout_while_a_frame_comes_piece_by_piece(run_here: RunHere, pytester: pytest.Pytester, last: bool) -> None:
    """Who always has more to send has no more time than another."""
    pytester.makeconftest(PIECEMEAL)
    source = f"""
    from pytest_crate.plugin.rider import Rider

    def sends(*_):
        forge(struct.pack(">I", 8_000_000) + b"x" * 8_000_000)

    @pytest.mark.crate(timeout=2)
    def test_sends():
        if {last}:
            Rider.ends = sends
        else:
            sends()

    def test_after(): pass
    """
    began = time.monotonic()
    done = run_here(FORGING + source)
    assert "timeout of 2 s exceeded" in done, done[-3000:]
    assert "PASSED test_inner.py::test_after" in done
    assert time.monotonic() - began < 10 * PATIENCE


LEFT = """
    import time
    from pytest_crate.plugin import report_pipe

    SENDING = []
    begin = report_pipe.ReportPipe.__init__

    def note(self, sending, *args, **options):
        SENDING.append(sending)
        begin(self, sending, *args, **options)

    report_pipe.ReportPipe.__init__ = note

    @pytest.mark.crate(timeout=TIMEOUT)
    def test_leaves():
        if os.fork() == 0:
            while True:
                os.write(SENDING[-1], frame({}) * 600)  # whole at a time (pipe(7), PIPE_BUF)
        time.sleep(0.2)

    def test_after(): pass
"""


@pytest.mark.parametrize(
    ("timeout", "said"), [("1", "timeout of 1 s exceeded"), ("None", "all in all it took more than")]
)
def test_a_flood_of_a_process_that_is_left_behind(
    run_here: RunHere, pytester: pytest.Pytester, timeout: str, said: str
) -> None:
    """It fails the test, be it at its timeout or for its length: what else came with it is not known."""
    pytester.makeconftest(PIECEMEAL)
    began = time.monotonic()
    done = run_here(FORGING + LEFT.replace("TIMEOUT", timeout))
    assert "ERROR test_inner.py::test_leaves" in done, done[-3000:]
    assert said in done
    assert "PASSED test_inner.py::test_after" in done
    assert time.monotonic() - began < 10 * PATIENCE
