"""Whether what happened in a place is what must happen there."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from typing import Any

from tests.places.place import ALL_LIMITS, Findings, Place

MIB = 1 << 20
# What fails everywhere, by design: the limit's name and the message.
_EXCEEDED: Mapping[str, tuple[str, str]] = {
    "test_hangs": ("timeout", "timeout of 5 s exceeded"),
    "test_memory_exceeded": ("memory", "memory limit 64 MiB exceeded"),
    "test_memory_exceeded_by_a_child": ("memory", "memory limit 64 MiB exceeded"),
    "test_pids_exceeded": ("pids", "pids limit 16 exceeded"),
}
_KEYS = {"test_memory_": "memory", "test_cpus_": "cpus", "test_pids_": "pids", "test_cpuset": "cpuset"}
_TESTS = 33
_ACCURACY_BYTES = 4 * MIB
_ACCURACY_CPU = 0.15
_CPUS = 0.5
"""The limit of the test that is held back."""


def judge(place: Place, found: Findings) -> list[str]:
    """Return what is not as it must be, in words; empty if all is."""
    return [*_faults(place, found)]


def figures(place: Place, found: Findings) -> str:
    """Return how accurate accounting was, for people to read."""
    tests = {test["nodeid"].partition("::")[2]: test for test in (found.report or {"tests": []})["tests"]}
    said = []
    if "memory" in place.limits and place.peak:
        none, fifty = _peaks(tests)
        said.append(f"50 MiB are accounted as {((fifty or 0) - (none or 0)) / MIB:.2f} MiB")
    if "cpus" in place.limits:
        usage, own = _usage(tests["test_cpus_held_back"]), _property(found.junit, "test_cpus_held_back", "own_cpu_usec")
        said.append(f"{own} us of CPU time as {usage['cpu_usage_usec']} us")
    return ", ".join(said)


def _faults(place: Place, found: Findings) -> Iterator[str]:
    yield from _doctor(place, found)
    if found.report is None:
        yield f"there is no report:\n{found.output[-3000:]}"
        return
    tests = {test["nodeid"].partition("::")[2]: test for test in found.report["tests"]}
    cases = {case.get("name", ""): case for case in _cases(found.junit)}
    if len(cases) != _TESTS:
        yield f"{len(cases)} tests have run, not {_TESTS}"
    for name, case in cases.items():
        yield from _outcome(place, name, case, tests.get(name, {}))
    if not place.namespaces:
        return
    yield from _accuracy(place, tests, found.junit)
    if ("NO overlay" in found.output) == place.overlay:
        yield f"the header does not say what there is of overlays: {found.output[:1000]}"
    rows: Mapping[str, Any] = {row["feature"]: row for row in found.doctor.get("rows", [])}
    if rows["overlay"]["status"] != ("ok" if place.overlay else "degraded"):
        yield f"the doctor says of overlays: {rows['overlay']}"
    if "memory" in place.limits and f"({place.cgroup})" not in found.output:
        yield f"the header does not name {place.cgroup!r}: {found.output[:1000]}"
    if found.left:
        yield f"left behind: {found.left}"
    if not found.kept >= {"new", "kept"}:
        yield f"what was written to stay is not there: {sorted(found.kept)}"


def _doctor(place: Place, found: Findings) -> Iterator[str]:
    whole = place.namespaces and place.limits == ALL_LIMITS
    if found.doctor["status"] != (0 if whole else 1):
        yield f"the doctor's status is {found.doctor['status']}: {found.doctor}"
    rows = {row["feature"]: row for row in found.doctor.get("rows", [])}
    for key in ALL_LIMITS:
        status = rows.get(f"{key} limit", {}).get("status")
        if status != ("ok" if key in place.limits else "missing"):
            yield f"the doctor says of the {key} limit: {rows.get(f'{key} limit')}"
    if rows.get("a whole crate", {}).get("status") != ("ok" if place.namespaces else "missing"):
        yield f"the doctor says of a whole crate: {rows.get('a whole crate')}"


def _outcome(place: Place, name: str, case: ET.Element, test: Mapping[str, Any]) -> Iterator[str]:
    key = next((key for prefix, key in _KEYS.items() if name.startswith(prefix)), None)
    failures = [node for node in case if node.tag in ("failure", "error")]
    message = "\n".join(f"{node.get('message', '')}\n{node.text or ''}" for node in failures)
    said = f"{name}: {[node.tag for node in case]} {message[:600]}"
    if not place.namespaces or (key is not None and key not in place.limits):
        # What a place lacks: never a pass, never a skip, and the doctor's words. Limits are looked at first.
        of_limit = key is not None and key not in place.limits and "no limit on " in message
        told = ((place.namespaces or not of_limit) and place.refusal in message) or (not place.namespaces and of_limit)
        if not failures or "crate not supported here" not in message or not told:
            yield f"{said}\n(expected to be refused: {place.refusal})"
    elif name == "test_writes" and not place.overlay:
        if not failures or "Read-only file system" not in message:
            yield f"{said}\n(expected to find the project read-only)"
    elif name in _EXCEEDED:
        limit, text = _EXCEEDED[name]
        exceeded = [limit for crate in test.get("crates", ()) for limit in crate["exceeded"]]
        if not failures or exceeded != [limit] or text not in message:
            yield f"{said} (exceeded {exceeded}, expected {limit})"
    elif len(case.findall("skipped")) or failures:
        yield said


def _accuracy(place: Place, tests: Mapping[str, Any], junit: str) -> Iterator[str]:
    if "memory" in place.limits:
        # Unknown is unknown, and nothing else.
        none, fifty = _peaks(tests)
        if not place.peak:
            accurate = none is None and fifty is None
        else:
            accurate = none is not None and fifty is not None and abs(fifty - none - 50 * MIB) <= _ACCURACY_BYTES
        if not accurate:
            yield f"50 MiB are accounted as {fifty} bytes, nothing as {none}"
    if "cpus" in place.limits:
        usage = _usage(tests["test_cpus_held_back"])
        own = _property(junit, "test_cpus_held_back", "own_cpu_usec")
        counted = usage["cpu_usage_usec"]
        if own is None or counted is None or abs(counted - own) > _ACCURACY_CPU * own:
            yield f"CPU time is accounted as {counted} us; the processes say {own}"
        # On a busy host it may not have got even what it is allowed.
        allowed = _CPUS * usage["wall_usec"]
        if counted is not None and counted > allowed * (1 + _ACCURACY_CPU):
            yield f"the CPU limit did not hold: {counted} us were used, {allowed} us allowed"
        if counted is not None and counted > allowed * (1 - _ACCURACY_CPU) and not usage["cpu_nr_throttled"]:
            yield f"the CPU limit held nothing back: {usage}"


def _peaks(tests: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Return the peaks of the body that does nothing, and of the one that holds 50 MiB."""
    none, fifty = (_usage(tests[f"test_memory_of_{what}"])["memory_peak_bytes"] for what in ("nothing", "50_mib"))
    return none, fifty


def _usage(test: Mapping[str, Any]) -> Mapping[str, Any]:
    (crate,) = test["crates"]
    return dict(crate["usage"])


def _cases(junit: str) -> Iterator[ET.Element]:
    if junit:
        yield from ET.fromstring(junit).iter("testcase")


def _property(junit: str, test: str, name: str) -> int | None:
    for case in _cases(junit):
        for node in case.iter("property"):
            if case.get("name") == test and node.get("name") == name:
                return int(node.get("value", ""))
    return None
