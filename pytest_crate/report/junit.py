"""A test's crates as properties of its JUnit XML test case."""

from __future__ import annotations

from pytest_crate.report.record import TestRecord, limit_in

_LIMITS = ("memory_bytes", "cpu_quota_usec", "pids", "timeout_usec")


def junit_properties(record: TestRecord) -> list[tuple[str, str]]:
    """Return names and values such as ``("crate.body.memory_peak_bytes", "52428800")``.

    The name's middle is the crate's; names and units of the last part are those of
    :class:`pytest_crate.usage.Usage`. Of a crate that tests share, ``crate.body.shared.…`` has the same of the whole
    crate, up to this test's end. What is unknown or not limited has no property.
    """
    properties: list[tuple[str, str]] = []
    if record.uncrated is not None:
        properties.append(("crate.uncrated", record.uncrated))
    for crate in record.crates:
        prefix = f"crate.{crate.name}"
        spec = record.spec_of(crate)
        numbers = {f"limit.{field}": limit_in(spec, field) for field in _LIMITS} | crate.usage.to_json()
        properties += [(f"{prefix}.{name}", str(value)) for name, value in numbers.items() if value is not None]
        if crate.shared is not None:
            known = {**crate.shared.to_json(), **crate.shared.usage.to_json()}
            del known["usage"]
            properties += [
                (f"{prefix}.shared.{name}", str(value)) for name, value in known.items() if value is not None
            ]
        if crate.exceeded:
            properties.append((f"{prefix}.exceeded", ",".join(crate.exceeded)))
        if crate.exit.returncode is not None:
            properties.append((f"{prefix}.exit", str(crate.exit)))
    return properties
