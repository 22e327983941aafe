"""Where a crate's time goes: the steps of its life by name, and a clock that notes how long each took."""

from __future__ import annotations

import time
from collections.abc import Mapping

STEPS: Mapping[str, tuple[str, ...]] = {
    "pytest": (
        "set up wider fixtures",
        "look for threads",
        "plan the root",
        "show what it is made of",
        "have it made",
        "get ready to fork",
        "fork",
        "part from the child",
        "have the next one begun",
        "wait for the set-up's report",
        "hooks after the set-up",
        "wait for the call's report",
        "hooks after the call",
        "wait for the teardown's report",
        "wait for the child's end",
        "read its usage and have it removed",
    ),
    "launcher": ("make its cgroup", "write its limits", "clone its init", "wait for its root", "open its namespaces"),
    "root": ("wait for its turn", "set up the network", "set the host name", "mount the root"),
    "body": (
        "be born",
        "join the cgroup",
        "enter the namespaces",
        "take its own session and output",
        "set the environment and the directory",
        "enter the user namespace",
        "drop the bounding set",
        "drop capabilities",
        "install the system call filter",
        "close what is the engine's",
        "change pytest's state",
        "set-up",
        "send the set-up's report",
        "call",
        "send the call's report",
        "teardown",
        "send the teardown's report",
        "wait for pytest",
        "finish",
    ),
}
"""By process, the names of the steps, in their order. Those of one process follow each other without a gap."""


def now() -> int:
    """Return the time in nanoseconds, of the clock that all processes have in common."""
    return time.monotonic_ns()


class Clock:
    """The clock of one process; this one is off, and costs a call."""

    def done(self, step: str) -> None:
        """Note that a step has ended, which began when the one before it did."""

    def spent(self) -> dict[str, int]:
        """Return what each step took, in microseconds, and begin anew."""
        return {}


class Running(Clock):
    """A clock that is on."""

    def __init__(self, began: int | None = None) -> None:
        """
        :param began: the time that :func:`now` told, maybe in another process.
        """
        self._last = now() if began is None else began
        self._spent: dict[str, int] = {}

    def done(self, step: str) -> None:
        ended = now()
        self._spent[step] = self._spent.get(step, 0) + ended - self._last
        self._last = ended

    def spent(self) -> dict[str, int]:
        spent, self._spent = self._spent, {}
        return {step: nanoseconds // 1_000 for step, nanoseconds in spent.items()}


OFF = Clock()
