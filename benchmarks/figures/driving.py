"""What a program in a crate costs that a test drives: in a fresh crate, and in one that exists."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping

from benchmarks import sessions
from benchmarks.commands import run
from benchmarks.place import Place
from benchmarks.programs import Programs
from benchmarks.rounds import Comparison, Figure, Round, Turn, figure_of
from benchmarks.sessions import Session

# Tests of one kind follow each other. A crate is removed, and the next one made ready, while others are at work: the
# first ones pay for what was before them, so they are not counted.
_BLOCK, _UNCOUNTED = 14, 3

_HEAD = """\
import json
import os
import subprocess

COMMANDS = json.load(open("commands.json"))


def sandbox(name):
    command, environ = COMMANDS[name]
    subprocess.run(command, env={**os.environ, **environ}, stdin=subprocess.DEVNULL, capture_output=True, check=True)


def nothing():
    pass


"""


def fresh(place: Place, *, quick: bool) -> Figure:
    """``run(["true"])`` in a crate of its own each."""
    programs = Programs(place)
    programs.look_for_all()
    commands = {name: (found.command, found.environ) for name, found in programs.found.items()}
    commands["no sandbox"] = (["true"], {})
    # In turn within one run of pytest, so that all have the same process around them.
    tests = [_HEAD]
    tests += [f"def test_nothing_{number}():\n    nothing()\n" for number in range(_BLOCK)]
    tests += [
        f"def test_crate_{number}(crate_sandbox):\n    assert crate_sandbox.run(['true']).returncode == 0\n"
        for number in range(_BLOCK)
    ]
    tests += [
        f"def test_{name.replace(' ', '_')}_{number}():\n    sandbox({name!r})\n"
        for name in commands
        for number in range(_BLOCK)
    ]
    where = place.project("fresh", {"test_fresh.py": "\n\n".join(tests), "commands.json": json.dumps(commands)})
    session = Session(python=place.only_plugin, where=where, args=sessions.DRIVE)
    names = ["crate", *commands]
    turns = [Turn(names=names, measure=lambda: _blocks(session, names))]
    absent = dict(programs.absent)
    if "C limit" in programs.found:
        turns.append(Turn(names=("C limit, in a loop",), measure=functools.partial(_loop, programs)))
    else:
        absent["C limit, in a loop"] = absent["C limit"]
    return figure_of(
        'run(["true"]), a fresh crate each',
        "ms per run",
        turns,
        (
            Comparison(one="crate", other="bwrap", bar=1.0),
            Comparison(one="crate", other="runc", bar=0.3),
            Comparison(one="crate", other="crun"),
            Comparison(one="crate", other="unshare"),
            Comparison(one="crate", other="C limit"),
            Comparison(one="crate", other="C limit, in a loop", aim=2.0),
        ),
        absent,
    )


def _blocks(session: Session, names: list[str]) -> Round:
    timed = session.run()
    around = timed.ms_of("::test_nothing_", first=_UNCOUNTED)
    return {name: timed.ms_of(f"::test_{name.replace(' ', '_')}_", first=_UNCOUNTED) - around for name in names}


def _loop(programs: Programs) -> Round:
    _, output = run([programs.found["C limit"].command[0], str(_BLOCK), "true", *programs.shown()])
    nanoseconds = [int(line) for line in output.splitlines()]
    return {"C limit, in a loop": sessions.mean(nanoseconds[_UNCOUNTED:]) / 1e6}


_AGAIN = """\
import json
import subprocess
import time

COUNT = 30


def timed(function):
    started = time.perf_counter()
    for _ in range(COUNT):
        function()
    return (time.perf_counter() - started) / COUNT * 1e3


def test_again(crate_sandbox):
    ways = {
        "subprocess.run": lambda: subprocess.run(["true"], stdin=subprocess.DEVNULL, capture_output=True, check=True),
        "crate": lambda: crate_sandbox.run(["true"], check=True),
        "usage": lambda: crate_sandbox.usage,
    }
    for way in ways.values():
        way()
    with open("found.json", "w") as file:
        json.dump({name: timed(way) for name, way in ways.items()}, file)
"""


def again(place: Place, *, quick: bool) -> Figure:
    """``run(["true"])`` in a crate that exists, and a look at what it has used."""
    where = place.project("again", {"test_again.py": _AGAIN})
    session = Session(python=place.only_plugin, where=where, args=sessions.DRIVE)

    def measure() -> Round:
        session.run()
        found: Mapping[str, float] = json.loads((where / "found.json").read_text())
        return found

    return figure_of(
        'run(["true"]) in a crate that exists; usage',
        "ms each",
        [Turn(names=("subprocess.run", "crate", "usage"), measure=measure)],
        (Comparison(one="crate", other="subprocess.run", bar=1.5), Comparison(one="usage", other="subprocess.run")),
    )
