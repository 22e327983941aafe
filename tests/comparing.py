"""What two runs of pytest have to have in common, as plain data that can be compared."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

VARYING = (
    (re.compile(r"0x[0-9a-f]{6,}"), "0xADDRESS"),
    (re.compile(r"\b\d+\.\d+s\b( \(\d+:\d\d:\d\d\))?"), "N.NNs"),
    (re.compile(r"\b\d+\.\d+ms\b"), "N.NNms"),
    (re.compile(r"\bport=\d+"), "port=N"),
    # Tasks and processes that Python names by counting all of its process's, those of earlier tests among them.
    (re.compile(r"\b(Task|Process)-\d+\b"), r"\1-N"),
    (re.compile(r"\[\d\d/\w{3}/\d{4} \d\d:\d\d:\d\d\]"), "[TIME]"),
    # Hypothesis' statistics hold times; a test of their own looks at them.
    (re.compile(r'("hypothesis-statistics-[^"]*",\s*"value": )"[^"]*"'), "\\1STATISTICS"),
    (re.compile(r"\(cache from \S+ ago"), "(cache from TIME ago"),
    (re.compile(r"runpytest-\d+"), "runpytest-N"),
    # Errors of several fixtures make a group, whose own traceback is in pytest and its plugins.
    (re.compile(r"(\+ Exception Group Traceback .*?:)(?:(?:\\n|\n) *\|  (?:(?!\\n|\n).)*)+"), "\\1"),
    # On a live log the terminal's progress is at an edge that pytest reckons from what it wrote itself.
    (re.compile(r" +\[ *(\d+%\])"), r" [\1"),
    (re.compile(r"\b(plain|crated)\.(xml|json|cache)\b"), "WAY.\\2"),
)


def without_varying(text: str) -> str:
    """Return text with what differs between any two runs (addresses, times, numbered directories) made equal."""
    for pattern, replacement in VARYING:
        text = pattern.sub(replacement, text)
    return text


def read_junit(path: Path) -> list[Any]:
    """Return the suite's own properties and its test cases as plain data, without times and crates' properties."""
    tree = ET.parse(path)
    for holder in tree.findall(".//properties/.."):
        (properties,) = holder.findall("properties")
        for each in [each for each in properties if each.attrib["name"].startswith("crate.")]:
            properties.remove(each)
        if not len(properties):
            holder.remove(properties)
    return [_element(element) for element in (*tree.findall("./testsuite/properties"), *tree.iter("testcase"))]


def _element(element: ET.Element) -> Any:
    attributes = {name: without_varying(value) for name, value in element.attrib.items() if name != "time"}
    text = without_varying((element.text or "").strip())
    return [element.tag, attributes, text, [_element(each) for each in element]]
