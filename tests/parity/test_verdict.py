"""The comparison sees what differs, and blames crates for nothing that varies without them."""

from __future__ import annotations

from typing import Any

from tests.parity import results
from tests.parity.running import Run
from tests.parity.suites import Suite
from tests.parity.verdict import describe, judge


def _run(name: str, *reports: dict[str, Any], returncode: int = 0) -> Run:
    return Run(name=name, returncode=returncode, reports=list(reports), warnings=[], junit=[], output="")


def _report(test: str, outcome: str = "passed", *, when: str = "call", output: str | None = None) -> dict[str, Any]:
    sections = [] if output is None else [["Captured stdout call", output]]
    return {
        "nodeid": test,
        "when": when,
        "outcome": outcome,
        "wasxfail": None,
        "longrepr": "",
        "sections": sections,
        "kind": "TestReport",
        "crates": ["body"],
        "uncrated": None,
        "pid": 1,
    }


SUITE = Suite(name="made-up", version="1", allowed={r"test_memory.*": "it looks at the memory of a test before it"})


def test_the_same_is_no_difference() -> None:
    """Runs that look the same in every particular differ in nothing; tests and reports are counted."""
    reports = (_report("a"), _report("a", when="teardown"), _report("b"))
    verdict = judge(SUITE, [_run("plain", *reports)] * 2, [_run("crates", *reports)])
    assert (verdict.tests, verdict.reports, verdict.crated) == (2, 3, 2)
    assert verdict.differences == ()
    assert verdict.unsteady == ()


def test_what_differs_is_named() -> None:
    """An outcome, an output, a missing report, an added test and an exit status are differences of their own."""
    plain = _run("plain", _report("a"), _report("b", output="1\n2\n"), _report("c"), _report("c"), _report("d"))
    crates = _run("crates", _report("a", "failed"), _report("b", output="1\n"), _report("c"), _report("e"))
    verdict = judge(SUITE, [plain, plain], [crates])
    assert [each.test for each in verdict.unexplained] == ["a", "b", "c", "d", "e"]
    texts = [each.text for each in verdict.unexplained]
    assert '"failed"' in texts[0]
    assert "-2" in texts[1].splitlines()
    assert texts[3:] == ["only plain", "only crates"]
    other = judge(SUITE, [plain], [_run("crates", *plain.reports, returncode=1)])
    assert [each.text for each in other.unexplained] == ["exit status 0 plain, 1 in crates"]


def test_what_varies_plain_is_not_blamed_on_crates() -> None:
    """Of a test whose texts vary only its outcome counts; a flaky one may have any that it had plain, and no other."""
    first = _run("plain", _report("text", output="1"), _report("flaky"))
    second = _run("plain again", _report("text", output="2"), _report("flaky", "failed"))
    crates = _run("crates", _report("text", output="3"), _report("flaky", "failed"))
    verdict = judge(SUITE, [first, second], [crates])
    assert verdict.unsteady == ("flaky", "text")
    assert verdict.flaky == ("flaky",)
    assert verdict.differences == ()
    worse = _run("crates", _report("text", "failed", output="3"), _report("flaky", "skipped"))
    assert [each.test for each in judge(SUITE, [first, second], [worse]).unexplained] == ["flaky", "text"]


def test_allowed_differences_have_a_reason() -> None:
    """A difference that the table of suites allows is shown with its reason, and counted by it in the row."""
    plain = _run("plain", _report("test_memory[1]"), _report("test_memory[2]"))
    crates = _run("crates", _report("test_memory[1]", "failed"), _report("test_memory[2]", "failed"), returncode=1)
    verdict = judge(SUITE, [plain, plain], [crates])
    assert verdict.unexplained == []
    assert describe(SUITE, verdict).count("allowed: it looks at the memory of a test before it") == 2
    assert results.row(SUITE, verdict).endswith("| 2: it looks at the memory of a test before it |")
