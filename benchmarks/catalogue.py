"""The figures by name: how each is prepared, and how many rounds it has."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from benchmarks.figures import bodies, driving, growth, suites
from benchmarks.place import Place
from benchmarks.rounds import Figure


class Prepare(Protocol):
    """Makes everything ready for a figure."""

    def __call__(self, place: Place, *, quick: bool) -> Figure: ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A figure that can be asked for.

    :ivar rounds: of the whole form.
    :ivar quick_rounds: of the quick form; 0 if it is measured there only when it is asked for by name.
    :ivar warm_up: a first round, for the caches, is not counted. Where one takes a minute, it doesn't matter.
    """

    prepare: Prepare
    rounds: int
    quick_rounds: int
    warm_up: bool = True


CATALOGUE = {
    "empty": Entry(prepare=bodies.empty, rounds=7, quick_rounds=3),
    "click": Entry(prepare=bodies.click, rounds=3, quick_rounds=0, warm_up=False),
    "fresh": Entry(prepare=driving.fresh, rounds=15, quick_rounds=5),
    "again": Entry(prepare=driving.again, rounds=11, quick_rounds=5),
    "rss": Entry(prepare=growth.rss, rounds=7, quick_rounds=3),
    "image": Entry(prepare=growth.image, rounds=7, quick_rounds=0),
    "many": Entry(prepare=growth.many, rounds=3, quick_rounds=0, warm_up=False),
    "workers": Entry(prepare=suites.workers, rounds=3, quick_rounds=0, warm_up=False),
    "scope": Entry(prepare=bodies.scope, rounds=7, quick_rounds=3),
    "start": Entry(prepare=suites.start, rounds=21, quick_rounds=5),
    "unused": Entry(prepare=suites.unused, rounds=15, quick_rounds=3),
    "itsdangerous": Entry(prepare=suites.itsdangerous, rounds=3, quick_rounds=0, warm_up=False),
    "jinja2": Entry(prepare=suites.jinja2, rounds=3, quick_rounds=0, warm_up=False),
}
