"""Options and ini settings take effect, the nearer one wins, and the run says what it does."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import jsonschema
import pytest

from pytest_crate.kernel import hierarchies
from tests.inner import RunInner

SHOW = """
import json, os, pytest
def show():
    return {"env": os.environ.get("A"), "host": os.uname().nodename}
def test_plain(): pass
@pytest.mark.crate
def test_marked(): pass
@pytest.mark.crate(memory="32m", pids=7, timeout=9, cpus=0.25, network="none")
def test_own(): pass
"""


def _specs(path: Path) -> dict[str, dict[str, object]]:
    report = json.loads(path.read_text())
    return {test["nodeid"].rpartition("::")[2]: test["spec"] for test in report["tests"]}


@pytest.mark.parametrize("by", ["ini", "option"])
def test_defaults(pytester: pytest.Pytester, run_inner: RunInner, by: str) -> None:
    """Each default is taken from the ini file or the command line; the marker's own keys win."""
    pytester.makepyfile(SHOW)
    (pytester.path / "data").mkdir()
    values = {"memory": "64m", "cpus": "0.5", "pids": "33", "timeout": "20", "network": "host", "mount": "data:/data"}
    if by == "ini":
        pytester.makeini("[pytest]\n" + "".join(f"crate_{key} = {value}\n" for key, value in values.items()))
        options = []
    else:
        pytester.makeini("[pytest]\ncrate_memory = 1g\ncrate_cpus = 2\ncrate_pids = 5\ncrate_timeout = 1\n")
        options = [f"--crate-{key}={value}" for key, value in values.items()]
    report = pytester.path / "report.json"
    run = run_inner(*options, f"--crate-report={report}")
    assert run.outcomes() == {"passed": 3}
    specs = _specs(report)
    assert specs.keys() == {"test_marked", "test_own"}
    fields = ("memory_bytes", "cpu_quota_usec", "pids", "timeout_usec", "network", "mounts")
    assert [specs["test_marked"][field] for field in fields] == [
        64 << 20, 50_000, 33, 20_000_000, "host", [f"{pytester.path}/data:/data:ro"],
    ]  # fmt: skip
    assert [specs["test_own"][field] for field in fields[:5]] == [32 << 20, 25_000, 7, 9_000_000, "none"]


def test_markers_merge_from_module_to_function(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Keys of module, class and function merge, the nearest wins; env merges variable by variable."""
    pytester.makepyfile(
        """
        import os, pytest
        pytestmark = pytest.mark.crate(memory="64m", hostname="module", env={"A": "module", "B": "module"})
        @pytest.mark.crate(hostname="class", env={"B": "class"})
        class TestIt:
            @pytest.mark.crate(pids=40, env={"C": "function", "HOME": None})
            def test_merged(self):
                assert os.uname().nodename == "class"
                assert [os.environ[name] for name in "ABC"] == ["module", "class", "function"]
                assert "HOME" not in os.environ
            @pytest.mark.parametrize("x", [1, pytest.param(2, marks=pytest.mark.crate(hostname="two"))])
            def test_param(self, x): assert os.uname().nodename == {1: "class", 2: "two"}[x]
        @pytest.mark.crate(clean_env=True, workdir="/usr", user=65534)
        def test_other():
            assert os.getcwd() == "/usr" and os.getuid() == 65534 and os.environ["A"] == "module"
            assert "OUTSIDE" not in os.environ
        """
    )
    report = pytester.path / "report.json"
    assert run_inner(f"--crate-report={report}", env={"OUTSIDE": "1"}).outcomes() == {"passed": 4}
    spec = _specs(report)["test_merged"]
    assert (spec["memory_bytes"], spec["pids"], spec["hostname"]) == (64 << 20, 40, "class")


def test_all_and_off(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """--crate-all puts every test into a crate, --crate-off none, and says so loudly."""
    pytester.makepyfile(SHOW)
    crates = {"--crate-all": [["body"]] * 3, "--crate-off": [[]] * 3, "-v": [[], ["body"], ["body"]]}
    for option, expected in crates.items():
        run = run_inner(option)
        assert [report["crates"] for report in run.reports if report["when"] == "teardown"] == expected
    off = run_inner("--crate-off")
    assert "crate: OFF (--crate-off): marked tests run UNSANDBOXED, no limit is enforced" in off.result.outlines


def test_top(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """--crate-top is the length of the table, 0 means all; the total counts all."""
    pytester.makepyfile("import pytest\n@pytest.mark.parametrize('n', range(14))\ndef test_it(n): pass\n")
    for option, rows in ((), 10), (("--crate-top=3",), 3), (("--crate-top=0",), 14):
        run = run_inner("--crate-all", *option)
        assert len([line for line in run.result.outlines if line.startswith("test_top.py::test_it[")]) == rows
        assert any(line.startswith("14 crates, ") for line in run.result.outlines)


def test_debug(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """--crate-debug shows the spec and each mount of a crate, and the open directories that a body inherits."""
    pytester.makepyfile(
        """
        import os, pytest
        DIRECTORY = os.open("/usr/lib", os.O_RDONLY)
        @pytest.mark.crate(memory="64m")
        def test_it(): pass
        """
    )
    run = run_inner("--crate-debug")
    lines = [line.strip() for line in run.result.outlines]
    assert "memory_bytes = 67108864" in lines
    assert any("overlay" in line and " / " in f"{line} " for line in lines)
    assert any(line.endswith(" /usr/lib") for line in lines)


def test_report_follows_its_schema(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """The JSON report, of every outcome and both uses, validates against the published schema."""
    pytester.makepyfile(
        """
        import os, pytest
        pytestmark = pytest.mark.crate(memory="64m", cpus=1, cpuset="0", env={"SECRET": "value"})
        def test_passes(): pass
        def test_fails(): assert 0
        def test_skips(): pytest.skip()
        @pytest.mark.xfail
        def test_xfails(): assert 0
        @pytest.mark.xfail
        def test_xpasses(): pass
        def test_crashes(): os._exit(1)
        def test_oom(): bytearray(200 << 20)
        @pytest.fixture
        def broken(): raise OSError
        def test_error(broken): pass
        def test_drives(crate_sandbox, crate_sandbox_factory):
            crate_sandbox.run(["true"]); crate_sandbox_factory(memory="32m").run(["false"])
        """
    )
    path = pytester.path / "deep" / "report.json"
    run = run_inner(f"--crate-report={path}")
    report = json.loads(path.read_text())
    schema = json.loads((resources.files("pytest_crate.report") / "schema-1.json").read_text())
    jsonschema.validate(report, schema)
    assert {test["nodeid"].rpartition("::")[2]: test["outcome"] for test in report["tests"]} == {
        "test_passes": "passed", "test_fails": "failed", "test_skips": "skipped", "test_xfails": "xfailed",
        "test_xpasses": "xpassed", "test_crashes": "failed", "test_oom": "failed", "test_error": "error",
        "test_drives": "passed",
    }  # fmt: skip
    exceeded = {test["nodeid"]: test["crates"][0]["exceeded"] for test in report["tests"]}
    assert [nodeid for nodeid, limits in exceeded.items() if limits == ["memory"]] == [
        "test_report_follows_its_schema.py::test_oom"
    ]
    assert f"crate report: {path}" in run.result.outlines


def test_report_without_crates(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A report is written even if no test had a crate."""
    pytester.makepyfile("def test_it(): pass\n")
    path = pytester.path / "report.json"
    assert run_inner(f"--crate-report={path}").ret == 0
    assert json.loads(path.read_text())["tests"] == []


@pytest.fixture
def memory_only() -> Iterator[str]:
    """A control group below which only memory can be limited: it is in no other hierarchy."""
    mounts = hierarchies.parse_mountinfo(Path("/proc/self/mountinfo").read_text())
    name = f"pytest-crate-test-{os.getpid()}"
    directory = Path(next(mount.point for mount in mounts if "memory" in mount.controllers), name)
    directory.mkdir()
    yield f"/{name}"
    directory.rmdir()


@pytest.mark.needs("root", "cgroup v1")
@pytest.mark.parametrize("policy", ["fail", "skip", "run"])
@pytest.mark.parametrize("require", [False, True])
def test_unsupported(
    pytester: pytest.Pytester, run_inner: RunInner, memory_only: str, policy: str, require: bool
) -> None:
    """A crate that the host can't enforce fails, is skipped or runs outside, as set; --crate-require lets none pass."""
    pytester.makeini(f"[pytest]\ncrate_unsupported = {policy}\ncrate_cgroup_parent = {memory_only}\n")
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.crate(cpus=0.5)
        def test_it(): pass
        @pytest.mark.crate(cpus=0.5)
        def test_drives(crate_sandbox): pass
        @pytest.mark.crate
        def test_other(): pass
        """
    )
    run = run_inner(*(["--crate-require"] if require else []), "-rs")
    outcome = {"fail": "failed", "skip": "skipped", "run": "passed"}["fail" if require else policy]
    when = "call" if outcome == "passed" else "setup"
    assert run.of("test_it", when)["outcome"] == outcome
    if outcome == "passed":
        assert "no limit on cpus" in run.of("test_it", "teardown")["uncrated"]
    else:
        assert "no limit on cpus" in run.of("test_it", when)["longrepr"]
    assert run.of("test_drives", "setup")["outcome"] == ("failed" if outcome == "passed" else outcome)
    assert run.of("test_other")["outcome"] == "passed"


def test_cgroup_parent_that_is_none(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A crate_cgroup_parent that can't be used fails crated tests with its name; plain ones are unharmed."""
    pytester.makeini("[pytest]\ncrate_cgroup_parent = /no/such/cgroup\n")
    pytester.makepyfile(SHOW)
    run = run_inner()
    assert run.of("test_plain")["outcome"] == "passed"
    assert "/no/such/cgroup" in run.of("test_marked", "setup")["longrepr"]
    assert run.ret == pytest.ExitCode.TESTS_FAILED


def test_header(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """One line tells what enforces; none if nothing is crated."""
    pytester.makepyfile(SHOW)
    assert len([line for line in run_inner().result.outlines if line.startswith("crate: cgroup v")]) == 1
    assert not [line for line in run_inner("-k", "plain").result.outlines if "crate:" in line]
    assert len([line for line in run_inner("--collect-only").result.outlines if "crate:" in line]) == 0


def test_marker_is_documented(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """--markers and --help name the marker, its keys and every option; --fixtures names the fixtures."""
    pytester.makepyfile(SHOW)
    assert "@pytest.mark.crate(memory, swap, cpus" in run_inner("--markers").text
    text = run_inner("--help").text
    for name in ("all", "off", "memory", "cpus", "pids", "timeout", "image", "network", "mount", "require", "top"):
        assert f"--crate-{name}" in text
    assert "crate_sandbox_factory" in run_inner("--fixtures").text
    assert run_inner("--strict-markers").ret == 0
