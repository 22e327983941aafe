"""No attempt to get out of a crate succeeds, and each succeeds where the protection that holds it is missing."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.escape.attempts import ATTEMPTS
from tests.escape.conftest import PROTECTIONS, WAYS, Outcome

pytestmark = pytest.mark.needs("root", "overlay", "loop devices")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_attempt_is_held(attempted: Mapping[str, Mapping[str, Outcome]], attempt: str, way: str) -> None:
    """A body, and a program, on the host's root and on an image, made by root and by an ordinary user: none escapes."""
    outcomes = attempted[way]
    # An ordinary user has a limit on processes only with a delegated cgroup.
    word, said = (
        outcomes.get(attempt, ("held", "not attempted")) if attempt == "start_many_processes" else outcomes[attempt]
    )
    assert word == "held", said


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_control_escapes(controls: Mapping[str, Outcome], attempt: str) -> None:
    """The same attempt succeeds where what holds it is missing: it does try."""
    word, said = controls[attempt]
    assert word == "escaped", said


def test_every_attempt_has_a_control() -> None:
    """For each attempt it is known where it succeeds."""
    assert set(PROTECTIONS) == set(ATTEMPTS)
