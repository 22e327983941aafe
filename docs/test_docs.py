"""The documentation keeps up with the code: its examples are files that run, its tables are complete."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import pytest

from pytest_crate.spec import CEILING_KEYS, KEYS
from pytest_crate.usage import Usage

DOCS = Path(__file__).parent
EXAMPLES = sorted((DOCS / "examples").rglob("*.py"))
PAGES = {path.name: path.read_text() for path in sorted(DOCS.glob("*.md"))}


@pytest.mark.parametrize("example", [path for path in EXAMPLES if path.name.startswith("test_")], ids=lambda p: p.stem)
def test_every_example_is_shown(example):
    """No example is a file that no page includes; a test of a conftest.py is shown by it."""
    shown = example.with_name("conftest.py") if example.parent.name == "hooks" else example
    assert any(f"literalinclude}} {shown.relative_to(DOCS)}\n" in text for text in PAGES.values())


@pytest.mark.parametrize("page", PAGES)
def test_python_on_a_page_is_included(page):
    """A page includes its Python from a file that is run; it has none of its own."""
    assert not re.search(r"^```(\{code-block\} )?python", PAGES[page], re.MULTILINE)


def test_python_in_the_readme_is_an_example():
    """The README's Python blocks stand in the examples, word for word."""
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS.parent / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    sources = "".join(path.read_text() for path in EXAMPLES)
    assert len(blocks) == 3
    assert [block for block in blocks if block not in sources] == []


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_documented(key):
    """The marker's page has a row for every key."""
    assert f"\n| `{key}` |" in PAGES["marker.md"]


@pytest.mark.parametrize("key", CEILING_KEYS)
def test_every_ceiling_is_documented(key):
    """The options' page names every ceiling."""
    assert f"`crate_{key}_ceiling`" in PAGES["options.md"]


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Usage)])
def test_every_usage_field_is_documented(field):
    """The usage page names every field."""
    assert f"`{field}`" in PAGES["usage.md"]


def _claims(text: str) -> list[tuple[str, list[str]]]:
    """Return what a page claims: each text that is not a heading, and the tests that its ``% test:`` comments name."""
    claims: list[tuple[str, list[str]]] = []
    open_ = False
    for line in text.splitlines():
        words = line.strip()
        if words.startswith("% test: "):
            assert claims, f"a test of nothing: {words}"
            claims[-1][1].append(words.removeprefix("% test: "))
            open_ = False
        elif not words or words.startswith("#"):
            open_ = False
        elif open_ and not words.startswith("- "):
            claims[-1] = (f"{claims[-1][0]} {words}", [])
        else:
            claims.append((words.removeprefix("- "), []))
            open_ = True
    return claims


CLAIMS = _claims(PAGES["pytest-inside.md"])


def test_every_sentence_has_a_test():
    """The page on pytest's behaviour has single sentences, each followed by the tests that show it to be true."""
    assert len(CLAIMS) > 50
    assert [text for text, tests in CLAIMS if not tests] == []
    assert [text for text, _ in CLAIMS if not text.endswith(".") or re.search(r"[.!?] +[^a-z]", text)] == []


@pytest.mark.parametrize("named", sorted({test for _, tests in CLAIMS for test in tests}))
def test_every_test_named_exists(named):
    """A test that the page names is there, by this name."""
    path, _, name = named.partition("::")
    functions = [node for node in ast.parse((DOCS.parent / path).read_text()).body if isinstance(node, ast.FunctionDef)]
    assert name.startswith("test_")
    assert name in [function.name for function in functions]


def test_a_sentence_without_a_test_is_found():
    """The page is taken apart line by line: a sentence in between is none of its neighbours'."""
    page = (
        "# Title\n\n- One\n  more.\n  % test: a::b\n  % test: c::d\n- Two.\nThree.\n\nFour.\n- Five.\n  % test: e::f\n"
    )
    assert _claims(page) == [
        ("One more.", ["a::b", "c::d"]),
        ("Two. Three.", []),
        ("Four.", []),
        ("Five.", ["e::f"]),
    ]


def test_every_way_out_is_told():
    """The threat model names each attempt to get out of a crate, and no other."""
    tree = ast.parse((DOCS.parent / "tests" / "escape" / "conftest.py").read_text())
    (protections,) = [
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "PROTECTIONS"
    ]
    told = re.findall(r"^\| `(\w+)` \|", PAGES["security.md"].partition("## What is tried")[2], re.MULTILINE)
    assert told == [key.value for key in protections.keys]


KNOWN = [line.split("|")[1:-1] for line in PAGES["security.md"].splitlines() if line.startswith("| CVE-")]


@pytest.mark.parametrize("row", KNOWN, ids=lambda row: row[0].strip()[:13])
def test_every_known_escape_has_tests(row):
    """Each known escape names attempts of the table of attempts, or tests that are there."""
    named = re.findall(r"`([^`]+)`", row[1])
    assert named
    for each in named:
        if "::" in each:
            test_every_test_named_exists(each)
        else:
            assert f"\n| `{each}` |" in PAGES["security.md"]


def test_every_escape_that_is_known_to_a_test_is_told():
    """The table of known escapes has each CVE that a test of an escape speaks of."""
    escapes = (path.read_text() for path in (DOCS.parent / "tests" / "escape").glob("*.py"))
    spoken_of = set(re.findall(r"CVE-\d+-\d+", "".join(escapes)))
    assert spoken_of
    assert spoken_of - set(re.findall(r"CVE-\d+-\d+", "".join(row[0] for row in KNOWN))) == set()


FAULTS = [line.split("|")[1:-1] for line in PAGES["faults.md"].splitlines() if line.startswith("| ")][1:]


@pytest.mark.parametrize("row", FAULTS, ids=lambda row: row[0].strip()[:40])
def test_every_fault_has_tests(row):
    """Each row of the table of faults says what is seen, and names tests that are there."""
    fault, seen, tests = (part.strip() for part in row)
    named = re.findall(r"`([^`]+)`", tests)
    assert fault
    assert seen
    assert named
    for each in named:
        test_every_test_named_exists(each)


def test_every_test_of_a_fault_is_told():
    """The table of faults names each test of tests/faults."""
    told = set(re.findall(r"`(tests/[^`]+)`", PAGES["faults.md"]))
    there = {
        f"tests/faults/{path.name}::{node.name}"
        for path in (DOCS.parent / "tests" / "faults").glob("test_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    assert there
    assert there - told == set()
