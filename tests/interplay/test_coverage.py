"""coverage.py and pytest-cov: what is measured is the same to the line, branch and context."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import coverage
import pytest

from tests.inner import RunInner

MODULE = """
import subprocess, sys

def classify(number):
    if number < 0:
        return "negative"
    if number == 0:
        return "zero"
    return "positive"

def set_up():
    return 1

def tear_down():
    return 2

def outside():
    return 3

def program():
    subprocess.run([sys.executable, "-c", "import measured; measured.in_program()"], check=True)

def in_program():
    return 4

def never():
    return 5
"""

TESTS = """
import measured, pytest

@pytest.fixture(scope="module")
def wide():
    yield measured.outside()
    measured.outside()

@pytest.fixture
def own():
    yield measured.set_up()
    measured.tear_down()

@pytest.mark.parametrize("number, word", [(-1, "negative"), (1, "positive")])
def test_classify(number, word, own):
    assert measured.classify(number) == word

def test_zero(wide):
    assert measured.classify(0) == "zero"

def test_program():
    measured.program()

def test_fails(own):
    assert measured.classify(3) == "negative"
"""


def _measured(directory: Path) -> dict[str, Any]:
    """Return lines, branches and contexts of each file in the directory's data file."""
    target = directory / "coverage.json"
    command = [sys.executable, "-m", "coverage", "json", "-q", "--show-contexts", "-o", str(target)]
    subprocess.run(command, cwd=directory, check=True, timeout=100)
    files = json.loads(target.read_text())["files"]
    target.unlink()
    keys = ("executed_lines", "missing_lines", "executed_branches", "missing_branches")
    return {
        name: {
            **{key: file.get(key) for key in keys},
            "contexts": {line: sorted(set(found)) for line, found in file.get("contexts", {}).items()},
        }
        for name, file in files.items()
    }


def _lines() -> list[str]:
    return MODULE.strip().splitlines()


def _missing(measured: dict[str, Any]) -> list[str]:
    lines = _lines()
    return [lines[number - 1].strip() for number in measured["measured.py"]["missing_lines"]]


def _coverage_run(
    pytester: pytest.Pytester, options: Sequence[str], *pytest_options: str, ends: str = "1 failed, 4 passed"
) -> dict[str, Any]:
    for path in (*pytester.path.glob(".coverage"), *pytester.path.glob(".coverage.*")):
        path.unlink()
    command = [sys.executable, "-m", "coverage", "run", *options, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    # pytester makes the project its home directory; few projects are one.
    home = pytester.path.parent / "home-of-coverage"
    home.mkdir(exist_ok=True)
    done = subprocess.run(
        [*command, "-p", "pytest_crate", *pytest_options],
        cwd=pytester.path,
        env={**os.environ, "HOME": str(home), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(pytester.path)},
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert ends in done.stdout.decode(), done.stdout.decode()
    if list(pytester.path.glob(".coverage.*")):
        subprocess.run([sys.executable, "-m", "coverage", "combine", "-q"], cwd=pytester.path, check=True, timeout=100)
    return _measured(pytester.path)


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """A project whose module is run in wider and own fixtures, bodies, and a program that a test starts."""
    pytester.makepyfile(measured=MODULE, test_measured=TESTS)
    return pytester


CORES = ["ctrace", "pytrace", *(["sysmon"] if sys.version_info >= (3, 12) else [])]


@pytest.mark.parametrize(
    ("options", "core"),
    [([], "ctrace"), *((["--branch"], core) for core in CORES), (["--parallel-mode", "--context=one"], "ctrace")],
)
def test_coverage_run(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, options: Sequence[str], core: str
) -> None:
    """``coverage run -m pytest``, without configuration, with every core."""
    monkeypatch.setenv("COVERAGE_CORE", core)
    plain = _coverage_run(project, ["--source=.", *options])
    crated = _coverage_run(project, ["--source=.", *options], "--crate-all")
    assert crated == plain
    assert _missing(plain) == ["return 4", "return 5"]


def test_subprocesses_and_contexts(project: pytest.Pytester) -> None:
    """Programs that a test starts are measured (``patch = subprocess``); so is which test ran a line."""
    (project.path / ".coveragerc").write_text(
        "[run]\nbranch = true\nsource = .\npatch = subprocess\nparallel = true\ndynamic_context = test_function\n"
    )
    plain = _coverage_run(project, [])
    crated = _coverage_run(project, [], "--crate-all")
    assert _missing(plain) == ["return 5"]
    assert crated == plain
    (line,) = [number for number, text in enumerate(_lines(), 1) if "return 2" in text]
    assert plain["measured.py"]["contexts"][str(line)] == [""]
    (line,) = [number for number, text in enumerate(_lines(), 1) if "zero" in text]
    assert plain["measured.py"]["contexts"][str(line)] == ["test_measured.test_zero"]


def test_pytest_cov(project: pytest.Pytester, run_inner: RunInner) -> None:
    """pytest-cov with branches and a context for each phase, in one process and on two workers."""
    found = {}
    options = ("--cov=measured", "--cov-branch", "--cov-context=test", "--cov-report=term-missing")
    for way in ((), ("--crate-all",), ("--crate-all", "-n2")):
        run = run_inner(*options, *way, plugins=["pytest_cov", "xdist"])
        assert run.outcomes() == {"passed": 4, "failed": 1}
        (line,) = [line for line in run.result.outlines if line.startswith("measured.py")]
        found[way] = (line.split(), _measured(project.path))
    assert found["--crate-all",] == found[()]
    # Which test it is that a wider fixture is torn down after depends on how they were shared out.
    number = str(next(number for number, text in enumerate(_lines(), 1) if "return 3" in text))
    for _, measured in found.values():
        del measured["measured.py"]["contexts"][number]
    assert found["--crate-all", "-n2"] == found[()]
    contexts = {name for names in found[()][1]["measured.py"]["contexts"].values() for name in names}
    assert {"test_measured.py::test_zero|run", "test_measured.py::test_fails|teardown"} <= contexts


def test_a_full_one_is_full(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """100 % is 100 %: --cov-fail-under=100 passes."""
    pytester.makepyfile(
        measured="def double(number):\n    if number:\n        return 2 * number\n    return 0\n",
        test_it="import measured\ndef test_some(): assert measured.double(2) == 4\n"
        "def test_none(): assert measured.double(0) == 0\n",
    )
    options = ("--cov=measured", "--cov-branch", "--cov-fail-under=100")
    for way in ((), ("--crate-all",), ("--crate-all", "-n2")):
        run = run_inner(*options, *way, plugins=["pytest_cov", "xdist"])
        assert run.ret == 0
        assert "Total coverage: 100.00%" in run.text
    part = run_inner(*options, "--crate-all", "--deselect=test_it.py::test_none", plugins=["pytest_cov"])
    assert part.ret == 1


def test_exit_keeps_what_was_measured(pytester: pytest.Pytester) -> None:
    """pytest.exit() in a test ends the run, and what that test had measured is kept."""
    pytester.makepyfile(
        measured="def ran():\n    return 1\n",
        test_it="import measured, pytest\ndef test_exits(): measured.ran(); pytest.exit('enough')\n",
    )
    for way in ((), ("--crate-all",)):
        assert _coverage_run(pytester, [], *way, ends="Exit: enough")["measured.py"]["missing_lines"] == []


FORGED = """
import base64, json, os, struct, zlib

def test_forges():
    # What a body could do that knows how it is brought home.
    from pytest_crate.plugin.interplay.coverage import _Coverage
    _Coverage.take = lambda self, item: {taken}
"""


@pytest.mark.parametrize(
    ("taken", "said"),
    [
        ("'text'", "TypeError: str where list is expected"),
        ("[{'arcs': False, 'contexts': {'': {'x.py': [1 << 40]}}, 'tracers': {}}]", "1099511627776 is no line number"),
        # One line each: short to say, and long to add.
        (
            "[{'arcs': False, 'contexts': {'': {f'{n}.py': [(1 << 24) - 1]}}, 'tracers': {}} for n in range(5)]",
            "files of more than 67108864 lines",
        ),
        ("[{'arcs': True, 'contexts': {'': {'x.py': [[1]]}}, 'tracers': {}}]", "ValueError"),
        ("[{}]", "KeyError: 'arcs'"),
        ("[{'arcs': False, 'contexts': {'': {'a' + chr(0): [1]}}, 'tracers': {}}]", "embedded null byte"),
    ],
)
def test_forged(pytester: pytest.Pytester, run_inner: RunInner, taken: str, said: str) -> None:
    """What is no measurement fails the test that sent it, and nothing else."""
    pytester.makepyfile(FORGED.format(taken=taken) + "\ndef test_later(): pass\n")
    run = run_inner("--crate-all", "--cov=.", plugins=["pytest_cov"])
    assert (run.outcomes()["passed"], run.outcomes()["errors"]) == (2, 1)
    text = run.of("test_forges", "teardown")["longrepr"]
    assert text.startswith("what coverage kept in the crate could not be used: ")
    assert said in text


NAMED = {
    "a device": "/dev/zero",
    "a file of the kernel's": "/proc/kmsg",
    "a large file": "large",
    "a link to a device": "link",
    "a pipe": "pipe",
}


@pytest.mark.parametrize("named", NAMED)
def test_what_is_no_source(pytester: pytest.Pytester, run_inner: RunInner, named: str) -> None:
    """Nothing is kept of a file that coverage.py could not read to its end, as it does when it reports."""
    with (pytester.path / "large").open("wb") as large:
        large.truncate(1 << 30)
    (pytester.path / "link").symlink_to("/dev/zero")
    os.mkfifo(pytester.path / "pipe")
    taken = f"[{{'arcs': False, 'contexts': {{'': {{{NAMED[named]!r}: [1]}}}}, 'tracers': {{}}}}]"
    pytester.makepyfile(FORGED.format(taken=taken) + "\ndef test_later(): pass\n")
    run = run_inner("--crate-all", "--cov=.", plugins=["pytest_cov"])
    assert run.outcomes() == {"passed": 2}
    assert re.search(r"^test_what_is_no_source\.py +\d", run.text, re.MULTILINE)
    assert NAMED[named] not in coverage.CoverageData(pytester.path / ".coverage").measured_files()


def test_project_in_memory(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """/dev/shm is no device: what is measured there is reported on."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        Path(directory, "measured.py").write_text("def ran():\n    return 1\n")
        pytester.makeconftest(f"import sys; sys.path.insert(0, {directory!r}); import measured")
        pytester.makepyfile("import measured\ndef test_runs(): measured.ran()")
        options = [f"--cov={directory}", "--cov-report=term-missing"]
        run = run_inner("--crate-all", *options, plugins=["pytest_cov"])
    assert run.outcomes() == {"passed": 1}
    assert re.search(r"measured\.py +2 +0 +100%", run.text), run.text


def test_what_a_body_can_replace_is_not_reported_on(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """What is measured in pytest's temporary directory stays in the crate: a pipe there would hold the report up."""
    pytester.makepyfile(
        measured="def ran():\n    return 1\n",
        test_it="""
        import os, runpy
        import measured
        def test_runs(tmp_path):
            measured.ran()
            path = tmp_path / "made.py"
            path.write_text("made = 1\\n")
            runpy.run_path(str(path))
            path.unlink()
            os.mkfifo(path)
        """,
    )
    run = run_inner("--crate-all", "--cov", "--cov-report=term-missing", plugins=["pytest_cov"])
    assert run.outcomes() == {"passed": 1}
    assert re.search(r"measured\.py +2 +0 +100%", run.text)
    assert str(pytester.path) not in "".join(re.findall(r"\S*/made\.py", run.text))


@pytest.mark.parametrize("many", ["[part] * 5000", "[part | {'contexts': {str(n): {} for n in range(70000)}}]"])
def test_parts_without_end(pytester: pytest.Pytester, run_inner: RunInner, many: str) -> None:
    """What takes no lines, and time all the same, is bounded with them."""
    taken = f"(lambda part: {many})({{'arcs': False, 'contexts': {{'': {{'x.py': [1]}}}}, 'tracers': {{}}}})"
    pytester.makepyfile(FORGED.format(taken=taken) + "\ndef test_later(): pass\n")
    run = run_inner("--crate-all", "--cov=.", plugins=["pytest_cov"])
    assert (run.outcomes()["passed"], run.outcomes()["errors"]) == (2, 1)
    assert "files of more than 67108864 lines" in run.of("test_forges", "teardown")["longrepr"]
