from __future__ import annotations

import json

import pytest

from pytest_crate.report import TestRecord
from pytest_crate.result import CrateResult, Exit
from pytest_crate.spec import CrateSpec
from pytest_crate.usage import Usage

RECORD = TestRecord(
    nodeid="test_a.py::test_b[é]",
    outcome="failed",
    worker="gw1",
    spec=CrateSpec(memory_bytes=1 << 26, env=(("TZ", "UTC"), ("LANG", None))).to_json(),
    crates=(
        CrateResult(name="body", usage=Usage(wall_usec=5), exceeded=("memory", "timeout"), exit=Exit(signal=9)),
        CrateResult(name="crate_sandbox[2]", usage=Usage(pids_peak=0), exit=Exit(code=3)),
    ),
    crate_specs={"crate_sandbox[2]": CrateSpec(memory_bytes=1 << 20).to_json()},
    uncrated="no cgroup",
)


def test_a_record_survives_json() -> None:
    """A record crosses a process boundary as JSON of builtins and comes back equal."""
    assert TestRecord.from_json(json.loads(json.dumps(RECORD.to_json()))) == RECORD


def test_a_crate_has_a_spec_of_its_own_only_where_it_differs() -> None:
    """A crate's entry names its spec only if it is not the test's."""
    data = RECORD.to_json()
    crates = data["crates"]
    assert isinstance(crates, list)
    assert [crate.get("spec", {}).get("memory_bytes") for crate in crates] == [None, 1 << 20]


def test_spec_of_gives_each_crate_its_own_spec() -> None:
    """A crate made with keys of its own is measured against its own limit, others against the test's."""
    limits = [RECORD.spec_of(crate)["memory_bytes"] for crate in RECORD.crates]
    assert limits == [1 << 26, 1 << 20]


def test_an_unknown_outcome_is_refused() -> None:
    """Data with an outcome that is not one of ours does not become a record."""
    with pytest.raises(ValueError, match="outcome 'rerun' is not one of passed, failed"):
        TestRecord.from_json(RECORD.to_json() | {"outcome": "rerun"})
