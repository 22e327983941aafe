"""What only a crate's failures and warnings are: a limit exceeded, a process lost, threads left behind."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from pytest_crate.plugin import private


class CrateFailed(private.Failed):
    """A test's crate went over a limit, or its process ended without a report.

    ``xfail`` counts it as an expected failure only if it is named: ``raises=pytest_crate.plugin.CrateFailed``.

    :ivar sections: the captured output that the child did send.
    """

    # As pytest's own outcomes: the short summary then shows the class's name alone.
    __module__ = "builtins"

    def __init__(self, message: str, sections: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(message, pytrace=False)
        self.sections = list(sections)


class CrateForkWarning(pytest.PytestWarning):
    """Threads were alive in pytest when it forked into a crate (ini ``crate_fork_check``)."""

    __module__ = "pytest_crate.plugin"
