"""What is told of the world outside of a crate: a hostile body's word, of which only so much is looked at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_crate.plugin import reach


def _told(facts: object, looked_at: list[str] | None = None) -> list[tuple[str, str]]:
    report = pytest.TestReport(
        nodeid="test_it", location=("", None, ""), keywords={}, outcome="failed", longrepr=None, when="call"
    )
    setattr(report, reach.ATTRIBUTE, facts)

    def hidden(paths: Iterable[str]) -> Iterator[str]:
        for path in paths:
            if looked_at is not None:
                looked_at.append(path)
            yield path

    reach.tell(report, hidden)
    assert not hasattr(report, reach.ATTRIBUTE)
    return report.sections


def test_only_so_many_paths_are_looked_at(tmp_path: Path) -> None:
    """As soon as there are enough to tell of, no other is looked at; nor are more than an honest failure names."""
    for number in range(100):
        (tmp_path / str(number)).touch()
    looked_at: list[str] = []
    paths = [str(tmp_path / str(number)) for number in range(100)]
    ((_, text),) = _told({"paths": paths}, looked_at)
    assert len(text.splitlines()) == len(looked_at) == 3
    assert _told({"paths": [*(f"/nowhere/{number}" for number in range(1000)), *paths]}) == []


@pytest.mark.parametrize(
    "facts",
    [
        3,
        {"ports": 3},
        {"paths": True},
        {"ports": [[], {}, None, 1 << 70], "paths": [[], {}, 3, "\0", "\ud800", "x" * 10_000]},
        {"network": 1},
    ],
)
def test_what_is_no_such_word_tells_nothing(facts: Any) -> None:
    """What is of another form than the child sends is no error of pytest's."""
    assert _told(facts) == []
