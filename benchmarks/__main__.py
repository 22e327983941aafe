"""The command: measures the figures asked for, in turn, and prints what they say beside the bars."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import filelock

from benchmarks import document, table
from benchmarks.catalogue import CATALOGUE, Entry
from benchmarks.place import CHECKOUT, Place, default_cache
from benchmarks.rounds import Measured


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if something that is there could not be measured."""
    options = _parser().parse_args(argv)
    # A CI job that is ended: what runs ends with it, and leaves nothing behind.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    place = Place(options.cache or default_cache(os.environ), _say)
    # Two at a time would measure each other.
    with filelock.FileLock(place.directory / "lock"):
        return _measure_all(options, place)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tox -e bench --", description="What a crate costs beside its peers.")
    parser.add_argument("--quick", action="store_true", help="some of the figures, in two minutes or so")
    parser.add_argument(
        "--only",
        action="append",
        choices=list(CATALOGUE),
        metavar="NAME",
        help=f"of {', '.join(CATALOGUE)}; repeatable",
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="so many rounds of each, whatever the form")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    parser.add_argument("--update", action="store_true", help="write the table into docs/benchmarks.md")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="where environments, suites and images are kept")
    return parser


def _measure_all(options: argparse.Namespace, place: Place) -> int:
    started = dt.datetime.now(dt.UTC)
    facts = list(_machine())
    print("\n".join(facts), flush=True)
    done: list[Measured] = []
    failed: list[str] = []
    for name, entry in CATALOGUE.items():
        rounds = options.rounds or (entry.quick_rounds if options.quick else entry.rounds)
        if name not in options.only if options.only else not rounds:
            continue
        measured, broken = _measure(name, entry, place, max(1, rounds), quick=options.quick)
        failed += broken
        done.append(measured)
        print("\n".join(table.lines(measured)), flush=True)
    print("\n".join(table.summary(done)), flush=True)
    if options.json:
        data = document.to_json(started, facts, done)
        options.json.write_text(json.dumps(data, indent=1) + "\n")
    if options.update:
        document.update(CHECKOUT / "docs" / "benchmarks.md", facts, done)
    for reason in failed:
        print(f"\nfailed: {reason}", file=sys.stderr)
    return 1 if failed else 0


def _measure(name: str, entry: Entry, place: Place, rounds: int, *, quick: bool) -> tuple[Measured, list[str]]:
    """Prepare a figure and measure it; return what was found, and why some contenders failed in the midst of it."""
    started = time.perf_counter()
    figure = entry.prepare(place, quick=quick)
    known = set(figure.absent)
    if entry.warm_up:
        # Byte code, files, the store of images.
        _say(f"{name}: warming up")
        figure.measure()
    found = []
    for number in range(rounds):
        _say(f"{name}: round {number + 1} of {rounds}")
        found.append(figure.measure())
    broken = [f"{name}, {each}: {reason}" for each, reason in figure.absent.items() if each not in known]
    return Measured(name=name, figure=figure, rounds=found, seconds=time.perf_counter() - started), broken


def _machine() -> Iterator[str]:
    """Yield what the numbers depend on, one fact a line."""
    yield f"Linux {platform.release()} {platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}"
    yield f"Python {platform.python_version()}"
    command = ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        described = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return
    if described.returncode == 0:
        yield f"commit {described.stdout.strip()}"


def _say(text: str) -> None:
    """Tell what is going on; on a terminal in one line."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text[: table.WIDTH]}", end="", file=sys.stderr, flush=True)
    else:
        print(f"# {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
