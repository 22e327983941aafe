"""Other people's test suites: in crates every test looks as it does without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.parity import results
from tests.parity.suites import SUITES, Suite
from tests.parity.verdict import Verdict, describe

RESULTS = Path(__file__).parents[2] / "docs" / "parity-results.md"


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_suite(suite: Suite, compare: Callable[[Suite], Verdict]) -> None:
    """No test of the suite differs, plain to crated, without a reason; and they do ride in crates."""
    verdict = compare(suite)
    print(describe(suite, verdict))
    assert verdict.crated > 0
    if verdict.unexplained:
        pytest.fail(describe(suite, verdict), pytrace=False)


def test_every_suite_has_a_row() -> None:
    """The documentation's table has what a run saw of every suite, at the version of the table of suites."""
    rows = results.read(RESULTS)
    assert list(rows) == [suite.name for suite in SUITES]
    assert [rows[suite.name].split(" | ")[1] for suite in SUITES] == [suite.version for suite in SUITES]
