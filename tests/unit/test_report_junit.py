from __future__ import annotations

from pytest_crate.report import TestRecord, junit_properties
from pytest_crate.result import CrateResult, Exit, Shared
from pytest_crate.spec import CrateSpec
from pytest_crate.usage import Usage


def test_properties_name_crate_field_and_limit() -> None:
    """Known numbers become properties in base units; unknown ones and absent limits become none."""
    record = TestRecord(
        nodeid="t",
        outcome="failed",
        spec=CrateSpec(memory_bytes=4096, pids=None).to_json(),
        crates=(
            CrateResult(
                name="body",
                usage=Usage(memory_peak_bytes=4096, cpu_usage_usec=0),
                exceeded=("memory", "timeout"),
                exit=Exit(signal=9),
            ),
            CrateResult(name="crate_sandbox", usage=Usage(pids_peak=2)),
        ),
        crate_specs={"crate_sandbox": CrateSpec(pids=7).to_json()},
    )
    assert junit_properties(record) == [
        ("crate.body.limit.memory_bytes", "4096"),
        ("crate.body.cpu_usage_usec", "0"),
        ("crate.body.memory_peak_bytes", "4096"),
        ("crate.body.exceeded", "memory,timeout"),
        ("crate.body.exit", "killed by SIGKILL"),
        ("crate.crate_sandbox.limit.pids", "7"),
        ("crate.crate_sandbox.pids_peak", "2"),
    ]


def test_an_unsandboxed_test_has_its_reason() -> None:
    """A test that ran without a crate says why, and has no numbers."""
    record = TestRecord(nodeid="t", outcome="passed", spec=CrateSpec().to_json(), uncrated="no cgroup")
    assert junit_properties(record) == [("crate.uncrated", "no cgroup")]


def test_a_shared_crate() -> None:
    """A test that shares its crate has what was used while it ran, and what all of the crate had used by its end."""
    shared = Shared(name="t.py", number=2, tests=3, usage=Usage(memory_peak_bytes=4096))
    crate = CrateResult(name="body", usage=Usage(cpu_usage_usec=5), shared=shared)
    record = TestRecord(nodeid="t", outcome="passed", spec=CrateSpec(pids=None).to_json(), crates=(crate,))
    assert junit_properties(record) == [
        ("crate.body.cpu_usage_usec", "5"),
        ("crate.body.shared.name", "t.py"),
        ("crate.body.shared.number", "2"),
        ("crate.body.shared.tests", "3"),
        ("crate.body.shared.memory_peak_bytes", "4096"),
    ]
