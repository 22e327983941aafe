"""What would make a run's crates cheaper, as the report says it."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping

_LEAST_CRATES = 3
_LEAST_USEC = 1_000_000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PreloadHint:
    """A module that many crates import, each for itself.

    :ivar crates: how many have imported it.
    :ivar import_usec: the median of what that took.
    """

    module: str
    crates: int
    import_usec: int

    def to_json(self) -> dict[str, object]:
        """Return it as builtins, as the JSON report publishes it."""
        return {"kind": "preload", **dataclasses.asdict(self)}

    def __str__(self) -> str:
        return (
            f"hint: {self.crates} crates imported {self.module}, {self.import_usec / 1e3:.0f} ms each; "
            f"crate_preload = {self.module} imports it once"
        )


def preload_hints(imports: Iterable[Mapping[str, int]]) -> list[PreloadHint]:
    """Return the modules that it would save a second or more to import once, the dearest first.

    :param imports: for each crate what it has imported, and the microseconds that took.
    """
    spent: dict[str, list[int]] = {}
    for of_crate in imports:
        for module, usec in of_crate.items():
            spent.setdefault(module, []).append(usec)
    hints = [
        (sum(figures), PreloadHint(module=module, crates=len(figures), import_usec=int(statistics.median(figures))))
        for module, figures in spent.items()
        if len(figures) >= _LEAST_CRATES and sum(figures) - max(figures) >= _LEAST_USEC
    ]
    return [hint for _, hint in sorted(hints, key=lambda found: (-found[0], found[1].module))]
