"""What the report knows of one test: its outcome, its spec and what became of its crates."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal, cast, get_args

from pytest_crate.result import CrateResult, Limit, Shared

Outcome = Literal["passed", "failed", "skipped", "error", "xfailed", "xpassed"]
OUTCOMES: tuple[str, ...] = get_args(Outcome)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TestRecord:
    """One test that had crates, or should have had one.

    :ivar nodeid: pytest's id of the test.
    :ivar outcome: one of :data:`OUTCOMES`.
    :ivar worker: the xdist worker that ran it, such as ``"gw0"``; None without xdist.
    :ivar spec: the test's spec, as :meth:`pytest_crate.spec.CrateSpec.to_json` gives it.
    :ivar crates: how its crates ended, in the order of their making.
    :ivar crate_specs: the specs of those crates whose spec is not the test's (``crate_sandbox_factory``
        takes keys of its own), by the crate's name.
    :ivar uncrated: why the test ran unsandboxed (``crate_unsupported = run``); None if it did not.
    """

    __test__: ClassVar[bool] = False  # pytest would collect it for its name

    nodeid: str
    outcome: Outcome
    spec: Mapping[str, object]
    worker: str | None = None
    crates: tuple[CrateResult, ...] = ()
    crate_specs: Mapping[str, Mapping[str, object]] = dataclasses.field(default_factory=dict)
    uncrated: str | None = None

    def spec_of(self, crate: CrateResult) -> Mapping[str, object]:
        """Return the spec that one of the test's crates was made from."""
        return self.crate_specs.get(crate.name, self.spec)

    def to_json(self) -> dict[str, object]:
        """Return the record as builtins, as the JSON report publishes it.

        A crate has a ``spec`` of its own there only where it is not the test's.
        """
        crates = []
        for crate in self.crates:
            data = crate.to_json()
            if crate.name in self.crate_specs:
                data["spec"] = dict(self.crate_specs[crate.name])
            crates.append(data)
        return {
            "nodeid": self.nodeid,
            "outcome": self.outcome,
            "worker": self.worker,
            "uncrated": self.uncrated,
            "spec": dict(self.spec),
            "crates": crates,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> TestRecord:
        """Rebuild a record that :meth:`to_json` wrote.

        :raises ValueError: the outcome or a usage field is not one of ours.
        """
        outcome = data["outcome"]
        if outcome not in OUTCOMES:
            raise ValueError(f"outcome {outcome!r} is not one of {', '.join(OUTCOMES)}")
        crates = cast("list[Mapping[str, object]]", data["crates"])
        return cls(
            nodeid=str(data["nodeid"]),
            outcome=cast("Outcome", outcome),
            worker=cast("str | None", data["worker"]),
            uncrated=cast("str | None", data["uncrated"]),
            spec=cast("Mapping[str, object]", data["spec"]),
            crates=tuple(CrateResult.from_json(crate) for crate in crates),
            crate_specs={
                str(crate["name"]): cast("Mapping[str, object]", crate["spec"]) for crate in crates if "spec" in crate
            },
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SharedCrate:
    """A crate that several tests rode in, as a whole.

    :ivar tests: their ids, in the order in which they were in it.
    :ivar crate: what became of it: the usage of all of it, up to the end of its last test.
    """

    name: str
    worker: str | None
    spec: Mapping[str, object]
    tests: tuple[str, ...]
    crate: CrateResult

    def to_json(self) -> dict[str, object]:
        """Return it as builtins, as the JSON report publishes it."""
        return {
            "name": self.name,
            "worker": self.worker,
            "tests": list(self.tests),
            "usage": self.crate.usage.to_json(),
            "exceeded": list(self.crate.exceeded),
            "exit": self.crate.to_json()["exit"],
        }


def shared_crates(records: Iterable[TestRecord]) -> list[SharedCrate]:
    """Return the crates that tests shared, by name, and in the order of their making."""
    found: dict[tuple[str, str, int], list[tuple[int, TestRecord, CrateResult]]] = {}
    for record in records:
        for crate in record.crates:
            if crate.shared is not None:
                key = (crate.shared.name, record.worker or "", crate.shared.number)
                found.setdefault(key, []).append((crate.shared.tests, record, crate))
    made = []
    for _, rides in sorted(found.items()):
        rides.sort(key=lambda ride: ride[0])
        _, record, last = rides[-1]
        shared = cast("Shared", last.shared)
        exceeded = {limit for _, _, crate in rides for limit in crate.exceeded}
        order: tuple[Limit, ...] = get_args(Limit)
        made.append(
            SharedCrate(
                name=shared.name,
                worker=record.worker,
                spec=record.spec,
                tests=tuple(record.nodeid for _, record, _ in rides),
                crate=dataclasses.replace(
                    last, usage=shared.usage, exceeded=tuple(limit for limit in order if limit in exceeded), shared=None
                ),
            )
        )
    return made


def limit_in(spec: Mapping[str, object], field: str) -> int | None:
    """Return a numeric limit of a spec that is plain data, such as ``memory_bytes``; None if it is not set."""
    value = spec.get(field)
    return value if isinstance(value, int) else None
