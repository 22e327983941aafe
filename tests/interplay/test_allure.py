"""allure-pytest: the same results, with the steps, attachments and labels that tests add inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.inner import RunInner

SUITE = """
import allure, pytest

@pytest.fixture(scope="module")
def wide(): yield "wide"
@pytest.fixture
def own():
    with allure.step("inside the fixture"): pass
    yield
    allure.attach("late", "from teardown", allure.attachment_type.TEXT)

@allure.step("a step with {value}")
def act(value):
    with allure.step("below"): allure.attach(b"\\x00\\xff", "bytes", extension="bin")
    return value

@allure.epic("static")
@allure.feature("feature")
def test_steps(own, wide, tmp_path):
    act("one")
    with pytest.raises(ValueError):
        with allure.step("fails"): raise ValueError("in step")
    (tmp_path / "file.json").write_text("{}")
    allure.attach.file(str(tmp_path / "file.json"), "a file", allure.attachment_type.JSON)

@pytest.mark.parametrize("number", [1, 2])
def test_dynamic(number):
    allure.dynamic.title(f"title {number}")
    allure.dynamic.description("described")
    allure.dynamic.tag("inside")
    allure.dynamic.severity(allure.severity_level.CRITICAL)
    allure.dynamic.link("https://example.org/1", name="one")
    allure.dynamic.parameter("extra", {"a": number})
    print("captured")

def test_fails(): assert [1] == [2]
def test_broken(): raise KeyError("broken")
@pytest.mark.xfail(reason="known")
def test_xfails(): assert 0
@pytest.mark.skip(reason="not now")
def test_skips(): pass
def test_skips_inside(): pytest.skip("inside")
@pytest.fixture
def bad(): raise ValueError("early")
def test_error(bad): pass
"""


def _comparable(value: Any, directory: Path) -> Any:
    """Return plain data without times and identities; attachments by what is in them."""
    if isinstance(value, dict):
        kept = {
            name: _comparable(each, directory)
            for name, each in value.items()
            if name not in {"start", "stop", "uuid", "source", "children"}
        }
        if "source" in value:
            kept["content"] = (directory / value["source"]).read_bytes().decode("latin-1")
        return kept
    if isinstance(value, list):
        return [
            _comparable(each, directory)
            for each in value
            if not (isinstance(each, dict) and each.get("name") == "thread")
        ]
    return value


def _results(directory: Path, kind: str) -> list[str]:
    found = [json.loads(path.read_text()) for path in directory.glob(f"*-{kind}.json")]
    return sorted(json.dumps(_comparable(each, directory), sort_keys=True, indent=1) for each in found)


def test_allure(pytester: pytest.Pytester, run_inner: RunInner, tmp_path: Path) -> None:
    """Results and containers are the same, file by file."""
    pytester.makepyfile(SUITE)
    directories = []
    for way in ("plain", "crated"):
        directory = tmp_path / f"allure-{way}"
        options = ["--crate-all"] if way == "crated" else []
        # The order of labels is that of a set.
        env = {"PYTHONHASHSEED": "0"}
        run = run_inner(*options, f"--alluredir={directory}", way=way, plugins=["allure_pytest"], env=env)
        assert run.outcomes() == {"passed": 3, "failed": 2, "skipped": 2, "xfailed": 1, "errors": 1}
        directories.append(directory)
    plain, crated = directories
    assert _results(crated, "result") == _results(plain, "result")
    assert _results(crated, "container") == _results(plain, "container")
    assert len(_results(plain, "result")) == 9
    assert len(list(crated.glob("*-attachment.*"))) == len(list(plain.glob("*-attachment.*"))) >= 5


# A file that Allure would take for the result of a test, of any test.
_RESULT = f"{'0' * 36}-attachment.evil-result.json"


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil-of-crates", "x/../../evil", "evil", _RESULT])
def test_forged(pytester: pytest.Pytester, run_inner: RunInner, tmp_path: Path, name: str) -> None:
    """An attachment goes into Allure's directory and nowhere else, whatever name a test gives it."""
    pytester.makepyfile(
        f"""
        def test_forges():
            from pytest_crate.plugin.interplay.allure import _Results
            _Results.take = lambda self, item: {{
                "result": {{}}, "added": [], "attached": {{{name!r}: "eA=="}}, "containers": []
            }}
        """
    )
    run = run_inner("--crate-all", f"--alluredir={tmp_path / 'allure'}", plugins=["allure_pytest"])
    assert run.outcomes() == {"passed": 1, "errors": 1}
    assert "is no name of an attachment" in run.of("test_forges", "teardown")["longrepr"]
    assert not list(tmp_path.rglob("*evil*"))


def test_what_is_no_unicode(pytester: pytest.Pytester, run_inner: RunInner, tmp_path: Path) -> None:
    """A lone surrogate, which no file of UTF-8 can hold, is in Allure's result as its escape, and the run goes on."""
    pytester.makepyfile(
        """
        import allure
        def test_surrogate():
            allure.dynamic.label("kind", "a\\udcff")
            allure.dynamic.title("b\\udcff")
            with allure.step("c\\udcff"): pass
        def test_later(): pass
        """
    )
    run = run_inner("--crate-all", f"--alluredir={tmp_path / 'allure'}", plugins=["allure_pytest"])
    assert run.outcomes() == {"passed": 2}, run.text
    texts = [path.read_text(encoding="utf-8") for path in (tmp_path / "allure").glob("*-result.json")]
    (text,) = [text for text in texts if "test_surrogate" in text]
    found = json.loads(text)
    assert (found["name"], found["steps"][0]["name"]) == ("b\\udcff", "c\\udcff")
    assert "a\\udcff" in [label["value"] for label in found["labels"]]


def test_attachments_are_no_tests(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """An attachment with an extension that makes a module of tests of it is not kept: the next run would take it."""
    pytester.makepyfile(
        """
        import allure
        def test_attaches(): allure.attach(b"open('more', 'w')", "code", extension="x_test.py")
        def test_code(): allure.attach(b"open('more', 'w')", "code", extension="py")
        """
    )
    run = run_inner("--crate-all", "--alluredir=results", plugins=["allure_pytest"])
    assert run.outcomes() == {"passed": 2, "errors": 1}
    assert "would take" in run.of("test_attaches", "teardown")["longrepr"]
    assert [path.name[36:] for path in pytester.path.rglob("*-attachment.*")] == ["-attachment.py"]
