"""Plugins that change what is printed or write reports of their own: they print and write the same."""

from __future__ import annotations

import base64
import difflib
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.inner import FORGING, BothWays, RunInner

# The order of differing items in an assertion's message is that of a set.
_STEADY = {"PYTHONHASHSEED": "0", "COLUMNS": "120"}

SUITE = """
import logging, sys, pytest, warnings
@pytest.fixture
def late():
    yield
    print("late output")
    raise ValueError("late")
def test_passes(record_property):
    record_property("key", "value"); print("said"); print("cried", file=sys.stderr); logging.warning("logged")
def test_fails(): left = {"a": [1, 2, 3], "b": "x" * 30}; assert left == {"a": [1, 3, 3], "b": "x" * 31}
def test_text(): assert "first\\nsecond\\nthird" == "first\\n2nd\\nthird"
def test_error(late): pass
@pytest.mark.skip(reason="by marker")
def test_skips(): pass
def test_skips_inside(): pytest.skip("inside")
@pytest.mark.xfail(reason="known")
def test_xfails(): assert 0
@pytest.mark.xfail
def test_xpasses(): pass
@pytest.mark.parametrize("number", range(3))
def test_numbers(number): assert number < 2
def test_warns(): warnings.warn("careful")
class TestClass:
    def test_method(self): raise KeyError("missing")
"""


@pytest.mark.parametrize(
    "plugins",
    [["sugar"], ["pretty"], ["instafail"], ["clarity"], ["sugar", "instafail", "clarity"]],
    ids="+".join,
)
def test_terminal(pytester: pytest.Pytester, both_ways: BothWays, plugins: Sequence[str]) -> None:
    """pytest-sugar, pytest-pretty (rich), pytest-instafail and pytest-clarity: line by line."""
    pytester.makepyfile(SUITE)
    options = ["--instafail"] if "instafail" in plugins else []
    run = both_ways("-vv", *options, plugins=plugins, env=_STEADY)
    assert run.ret == 1


class _Text(HTMLParser):
    """The words of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.blob: dict[str, Any] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs).get("data-jsonblob")
        if found:
            self.blob = json.loads(found)


def _without_times(value: Any) -> Any:
    """Return plain data without times, durations, processes and crates' own properties."""
    if isinstance(value, dict):
        dropped = {"duration", "created", "start", "stop", "pid", "crate", "$report_type", "msecs", "relativeCreated"}
        dropped |= {"thread", "process", "uuid", "source", "children", "Thread", "thread_name"}
        kept = {name: _without_times(each) for name, each in value.items() if name not in dropped}
        return {name: each for name, each in kept.items() if (name, each) != ("user_properties", [])}
    if isinstance(value, list):
        return [_without_times(each) for each in value if not _is_crates_own(each)]
    if isinstance(value, str):
        for pattern in (r"0x[0-9a-f]+", r"\d+(\.\d+)? ?m?s\b", r"\d\d:\d\d:\d\d", r"popen-gw\d", r"plain|crated"):
            value = re.sub(pattern, "N", value)
    return value


def _is_crates_own(value: Any) -> bool:
    """Whether it is a property that JUnit XML has of a crate."""
    name = next(iter(value), "") if isinstance(value, (list, dict)) else ""
    return isinstance(name, str) and name.startswith("crate.")


def _assert_equal(crated: Any, plain: Any) -> None:
    one, two = (json.dumps(each, indent=1, sort_keys=True).splitlines() for each in (plain, crated))
    differences = list(difflib.unified_diff(one, two, "plain", "in crates", lineterm=""))
    assert not differences, "\n".join(differences)


def test_html(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """pytest-html: the same rows, logs and extras that tests have added."""
    pytester.makepyfile(
        SUITE + "\ndef test_extra(extras):\n    import pytest_html\n"
        '    extras.append(pytest_html.extras.text("added", name="note"))\n'
    )
    blobs = []
    for way in ("plain", "crated"):
        target = pytester.path / f"{way}.html"
        options = ["--crate-all"] if way == "crated" else []
        options += [f"--html={target}", "--self-contained-html"]
        run = run_inner(*options, way=way, plugins=["html", "html_fixtures", "metadata"], env=_STEADY)
        assert run.ret == 1
        page = _Text()
        page.feed(target.read_text())
        keys = ("result", "testId", "log", "extras")
        blobs.append(
            _without_times([[str(row[key]) for key in keys] for rows in page.blob["tests"].values() for row in rows])
        )
    _assert_equal(blobs[1], blobs[0])
    assert base64.b64encode(b"added").decode() in json.dumps(blobs[0])


@pytest.mark.parametrize("kind", ["path", "module", "tests", "decoded", "shape"])
def test_html_keeps_nothing_that_is_run(
    pytester: pytest.Pytester, run_inner: RunInner, tmp_path: Path, kind: str
) -> None:
    """A test says neither where pytest-html writes an extra, nor has it write what a later run would execute."""
    outside = str(tmp_path / "outside")
    extension = {"path": outside.rjust(255, "/"), "module": "py"}.get(kind, "txt")
    pytester.makepyfile(
        f"""
        import base64
        from pytest_html import extras as of
        def test_adds(extras):
            content = ">>> print(1)"
            extra = of.image(base64.b64encode(content.encode()).decode()) if {kind!r} == "decoded" else of.text(content)
            extra["extension"] = {extension!r}
            if {kind!r} == "shape": del extra["extension"]
            extras.append(extra)
        def test_is_fine(extras): extras.append(of.text("text")), extras.append(of.url("https://example.org"))
        """
    )
    run = run_inner("--crate-all", "--html=it.html", plugins=["html", "html_fixtures", "metadata"], env=_STEADY)
    assert run.of("test_is_fine")["outcome"] == "passed"
    assert "what html takes from a report" in run.text
    assert not (tmp_path / "outside").exists()
    kept = [path.name for path in (pytester.path / "assets").iterdir()]
    assert sorted(kept) == ["style.css", "test_html_keeps_nothing_that_is_run.py__test_is_fine_0_0.txt"]


_EXTRA = {"name": "x", "format_type": "url", "content": "x", "mime_type": None, "extension": None}


@pytest.mark.parametrize(
    "added",
    [
        {"duration": -1.7e308},
        {"duration": 1.7e308},
        {"rerun": "x"},
        {"extras": [{**_EXTRA, "format_type": "text", "content": 5}]},
        {"extras": [{**_EXTRA, "format_type": "image", "content": 5}]},
        {"extras": [{name: value for name, value in _EXTRA.items() if name != "mime_type"}]},
    ],
    ids=str,
)
def test_html_gets_what_it_can_show(pytester: pytest.Pytester, run_inner: RunInner, added: dict[str, object]) -> None:
    """What pytest-html would stumble over in a report fails the test that sent it: it would end the run."""
    pytester.makepyfile(FORGING.format(added=added))
    run = run_inner("--crate-all", "--html=it.html", plugins=["html", "html_fixtures", "metadata"], env=_STEADY)
    assert run.ret == 1, run.text
    assert "INTERNALERROR" not in run.text
    assert run.of("test_forges")["outcome"] == "failed"
    assert run.of("test_later")["outcome"] == "passed"
    assert "test_later" in (pytester.path / "it.html").read_text()


def test_html_extras_that_are_no_text(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """pytest-html shows a name, and what is no text, image or video, whatever it is."""
    pytester.makepyfile(
        """
        from pytest_html import extras as made
        def test_shows(extras):
            extras += [made.text("ours", name=3), made.url("x", name=("a", "b")), made.html(5), made.json([1])]
        """
    )
    run = run_inner("--crate-all", "--html=it.html", plugins=["html", "html_fixtures", "metadata"], env=_STEADY)
    assert run.ret == 0, run.text


def test_json_report(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """pytest-json-report: outcomes, output, logs, metadata that a test has added."""
    pytester.makepyfile(SUITE + "\ndef test_metadata(json_metadata): json_metadata['added'] = [1, 'two']\n")
    reports = []
    for way in ("plain", "crated"):
        target = pytester.path / f"{way}.json"
        options = ["--crate-all"] if way == "crated" else []
        options += ["--json-report", f"--json-report-file={target}"]
        run_inner(*options, way=way, plugins=["pytest_jsonreport", "metadata"], env=_STEADY)
        report = json.loads(target.read_text())
        reports.append(_without_times({key: report[key] for key in ("summary", "tests", "exitcode")}))
    _assert_equal(reports[1], reports[0])
    assert [test["metadata"] for test in reports[1]["tests"] if "metadata" in test] == [{"added": [1, "two"]}]


def test_reportlog(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """pytest-reportlog: a line for each report; a crated test's has what its crate used, too."""
    pytester.makepyfile(SUITE)
    logs = []
    for way in ("plain", "crated"):
        target = pytester.path / f"{way}.log"
        options = ["--crate-all"] if way == "crated" else []
        options += [f"--report-log={target}", "test_reportlog.py"]
        run_inner(*options, way=way, plugins=["pytest_reportlog"], env=_STEADY)
        lines = [json.loads(line) for line in target.read_text().splitlines()]
        logs.append([_without_times(line) for line in lines])
        assert any("crate" in line for line in lines) == (way == "crated")
    _assert_equal(logs[1], logs[0])
    assert len(logs[0]) > 30
