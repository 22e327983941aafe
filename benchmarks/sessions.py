"""Runs of pytest whose tests are timed from the end of one to the end of the next."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from benchmarks.commands import CommandFailed, run

LIMITS = ("--crate-memory=256m", f"--crate-cpus={os.cpu_count() or 1}", "--crate-pids=128")
"""The limits of the benchmarks' crates: all three kinds, none of them tight."""

PLAIN: tuple[str, ...] = ()
FORK_ONLY = ("-p", "bench_fork_only")
FORKED = ("-p", "pytest_forked", "--forked")
ISOLATE = ("-p", "pytest_isolate", "--isolate")
DRIVE = ("-p", "pytest_crate", "--crate-require", *LIMITS)
"""Tests that drive crates, and marked ones, have limits."""
CRATE = (*DRIVE, "--crate-all")

OWN_WARNINGS = ("-o", "filterwarnings=")
"""For suites that make errors of warnings: pytest-forked and pytest-isolate leave files open."""

WARM = 20
"""The first tests of a run are not counted: they start what serves the others."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """A run of pytest.

    :ivar seconds: of the whole command.
    :ivar ends: the node id of each test, and when it had ended, on one clock.
    """

    seconds: float
    ends: Sequence[tuple[str, float]]

    def ms_per_test(self, first: int = WARM, last: int | None = None) -> float:
        """Return the mean from the end of the ``first`` tests to the end of the ``last`` one."""
        times = [end for _, end in self.ends[first - 1 : last]]
        return (times[-1] - times[0]) / (len(times) - 1) * 1e3

    def typical_ms(self, first: int, last: int) -> float:
        """Return the median of the tests from after the ``first`` to the ``last``: bursts of other work don't count."""
        times = [end for _, end in self.ends[first - 1 : last]]
        return statistics.median(after - before for before, after in itertools.pairwise(times)) * 1e3

    def ms_of(self, word: str, *, first: int) -> float:
        """Return the mean over the tests that have a word in their names, which follow each other.

        :param first: so many of these are not counted.
        """
        numbers = [number for number, (name, _) in enumerate(self.ends) if word in name]
        if numbers != list(range(numbers[0], numbers[-1] + 1)):
            raise ValueError(f"the tests named {word} do not follow each other")
        return self.ms_per_test(numbers[0] + first, numbers[-1] + 1)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One way to run pytest.

    :ivar autoload: installed plugins are loaded, as in everybody's runs; else those that ``args`` name.
    """

    python: Path
    where: Path
    args: Sequence[str]
    environ: Mapping[str, str] = dataclasses.field(default_factory=dict)
    autoload: bool = False

    def but(self, *args: str, **environ: str) -> Self:
        """Return the same with more arguments and variables."""
        return dataclasses.replace(self, args=(*self.args, *args), environ={**self.environ, **environ})

    def run(self) -> Timed:
        """Run it; every test must pass, or be skipped.

        :raises CommandFailed: one did not, or there was none.
        """
        with tempfile.TemporaryDirectory(prefix="pytest-crate-bench-") as directory:
            noted = Path(directory, "ends.json")
            environ = {
                **({} if self.autoload else {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}),
                **self.environ,
                "BENCH_STOPWATCH": str(noted),
            }
            command: list[str | Path] = [self.python, "-m", "pytest", "-q", "-p", "bench_stopwatch", *self.args]
            seconds, output = run(command, where=self.where, environ=environ)
            data = json.loads(noted.read_text())
        outcomes = data["outcomes"]
        if not outcomes.get("passed") or outcomes.get("failed"):
            raise CommandFailed(f"{outcomes} in {self.where}\n{output[-2000:]}")
        return Timed(seconds=seconds, ends=data["ends"])

    def whole_ms(self) -> float:
        """Run it and return the milliseconds of the whole command."""
        return self.run().seconds * 1e3

    def ms_per_test(self) -> float:
        """Run it and return the milliseconds per test, once the first :data:`WARM` have ended."""
        return self.run().ms_per_test()


def empty_tests(count: int) -> str:
    """Return a test file of so many empty tests."""
    return "".join(f"def test_{number:04}():\n    pass\n" for number in range(count))


def mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)
