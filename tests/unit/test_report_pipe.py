"""The child's end of the way to the mirror."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from pytest_crate.plugin.report_pipe import ATTENDED, NEXT_PHASE, ReportPipe


@pytest.fixture
def pipes() -> Iterator[tuple[ReportPipe, int]]:
    """A pipe to the mirror that nobody reads, and the mirror's end of the way back."""
    descriptors = [*os.pipe(), *os.pipe()]
    _, sending, awaited, answering = descriptors
    yield ReportPipe(sending, awaited), answering
    for descriptor in descriptors:
        os.close(descriptor)


def test_a_word_is_not_taken_for_another(pipes: tuple[ReportPipe, int]) -> None:
    """Who waits for an answer passes over the word for the next phase, which is still there for who waits for it."""
    pipe, answering = pipes
    os.write(answering, NEXT_PHASE + ATTENDED)
    pipe.await_mirror(ATTENDED)
    pipe.await_mirror(NEXT_PHASE)
    os.write(answering, ATTENDED + NEXT_PHASE)
    pipe.await_mirror(NEXT_PHASE)
    pipe.await_mirror(ATTENDED)
