from __future__ import annotations

import dataclasses
import importlib.resources
import json
import os
import stat
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_crate.errors import CrateError
from pytest_crate.report import OUTCOMES, SCHEMA_VERSION, TestRecord, json_report, write_report
from pytest_crate.result import CrateResult, Exit, Shared
from pytest_crate.spec import KEYS, CrateSpec, Layer, build_spec
from pytest_crate.usage import Usage

EVERY_KEY = {
    "memory": "64m",
    "swap": "1m",
    "cpus": 0.5,
    "cpuset": "0-1",
    "pids": 3,
    "timeout": 10,
    "image": "debian12",
    "network": "host",
    "mounts": ["/a:/b:rw"],
    "tmpfs": "1m",
    "env": {"TZ": "UTC", "LANG": None},
    "clean_env": True,
    "hostname": "box",
    "user": 1000,
    "workdir": "/src",
    "cap_add": ["net_admin"],
    "seccomp": False,
    "scope": "module",
}


def _schema() -> dict[str, Any]:
    file = importlib.resources.files("pytest_crate.report") / f"schema-{SCHEMA_VERSION}.json"
    schema: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return schema


def _validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(_schema())


def _record(nodeid: str = "t.py::test", **changes: Any) -> TestRecord:
    spec = build_spec([Layer(origin="test", values=EVERY_KEY)]).to_json()
    crate = CrateResult(name="body", usage=Usage(wall_usec=1), exceeded=("memory",), exit=Exit(signal=9))
    return dataclasses.replace(TestRecord(nodeid=nodeid, outcome="failed", spec=spec, crates=(crate,)), **changes)


def test_the_schema_is_one() -> None:
    """The shipped file is a valid schema of draft 2020-12."""
    schema = _schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(schema)


def test_the_schema_names_exactly_what_is_written() -> None:
    """Every field that a report has is described, and no other: an addition must reach the schema."""
    definitions = _schema()["$defs"]
    record = _record()
    data = record.to_json()
    assert set(EVERY_KEY) == set(KEYS)
    assert definitions["test"]["required"] == list(definitions["test"]["properties"]) == list(data)
    assert definitions["spec"]["required"] == list(definitions["spec"]["properties"]) == list(record.spec)
    assert definitions["usage"]["required"] == list(definitions["usage"]["properties"]) == list(Usage().to_json())
    assert definitions["crate"]["required"] == list(record.crates[0].to_json())
    assert set(definitions["crate"]["properties"]) - set(definitions["crate"]["required"]) == {"spec", "shared"}
    report: dict[str, Any] = json_report({}, _rides(None, 1, False))
    shared = definitions["crate"]["properties"]["shared"]
    assert shared["required"] == list(shared["properties"]) == list(report["tests"][0]["crates"][0]["shared"])
    whole = definitions["shared_crate"]
    assert whole["required"] == list(whole["properties"]) == list(report["shared_crates"][0])
    assert definitions["test"]["properties"]["outcome"]["enum"] == list(OUTCOMES)


@pytest.mark.parametrize(
    "record",
    [
        _record(),
        _record(worker="gw0", uncrated="no cgroup", crates=()),
        _record(spec=CrateSpec().to_json()),
        _record(crate_specs={"body": CrateSpec().to_json()}),
    ],
    ids=["every key", "uncrated", "defaults", "crate's own spec"],
)
def test_reports_are_valid(record: TestRecord) -> None:
    """Reports as they are written, after a way through JSON, satisfy the schema."""
    report = json.loads(json.dumps(json_report({"kernel": "6.8", "limits": ["memory"]}, [record])))
    assert list(_validator().iter_errors(report)) == []


_NUMBER = st.none() | st.integers(0, 1 << 63)


@settings(deadline=None)
@given(
    st.builds(Usage, **{field.name: _NUMBER for field in dataclasses.fields(Usage)}),
    st.sets(st.sampled_from(["memory", "pids", "timeout"])).map(sorted).map(tuple),
    st.builds(Exit, code=st.integers(0, 255)) | st.builds(Exit, signal=st.integers(1, 64)) | st.just(Exit()),
    st.sampled_from(OUTCOMES),
)
def test_any_result_makes_a_valid_report(usage: Usage, exceeded: Any, exit_: Exit, outcome: Any) -> None:
    """Whatever a crate used and however it ended, the report satisfies the schema."""
    crate = CrateResult(name="body", usage=usage, exceeded=exceeded, exit=exit_)
    report = json_report({}, [_record(outcome=outcome, crates=(crate,))])
    assert list(_validator().iter_errors(report)) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["schema"], 2),
        (["tests", 0, "outcome"], "rerun"),
        (["tests", 0, "crates", 0, "usage", "wall_usec"], -1),
        (["tests", 0, "crates", 0, "usage", "pids_peak"], 1.5),
        (["tests", 0, "crates", 0, "exceeded"], ["disk"]),
        (["tests", 0, "crates", 0, "exit", "code"], 256),
        (["tests", 0, "spec", "network"], "bridge"),
    ],
)
def test_the_schema_refuses_what_is_not_a_report(path: list[str | int], value: object) -> None:
    """A wrong version, outcome, number, limit, exit or network does not satisfy the schema."""
    report: Any = json.loads(json.dumps(json_report({}, [_record()])))
    place = report
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert [list(error.absolute_path)[: len(path)] for error in _validator().iter_errors(report)] == [path]


def test_tests_are_in_the_order_of_their_ids() -> None:
    """The order does not depend on which worker finished first; reruns of one test keep theirs."""
    first, second = _record("b", outcome="failed"), _record("b", outcome="passed")
    report: Any = json_report({}, [first, _record("c"), second, _record("a")])
    assert [(test["nodeid"], test["outcome"]) for test in report["tests"]] == [
        ("a", "failed"),
        ("b", "failed"),
        ("b", "passed"),
        ("c", "failed"),
    ]


def test_a_report_is_written_as_ascii_json_with_the_umasks_mode(tmp_path: Path) -> None:
    """The file is what was reported, also for ids that no encoding can write, and others may read it."""
    path = tmp_path / "made" / "on the way" / "report.json"
    report = json_report({"kernel": "6.8"}, [_record("t\udcff[漢]")])
    umask = os.umask(0o022)
    try:
        write_report(path, report)
    finally:
        os.umask(umask)
    assert json.loads(path.read_bytes().decode("ascii")) == report
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(path.parent) == ["report.json"]


def test_a_report_replaces_the_old_one_in_one_step(tmp_path: Path) -> None:
    """Who reads the old file goes on reading the old one whole; a symlink to it stays a symlink."""
    path = tmp_path / "report.json"
    path.write_text("old")
    link = tmp_path / "link.json"
    link.symlink_to(path)
    with path.open() as reader:
        write_report(link, {"new": True})
        assert reader.read() == "old"
    assert link.is_symlink()
    assert json.loads(path.read_text()) == {"new": True}


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    """What is no regular file stays what it is and receives the report."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_report(path, {"schema": 1})
        assert json.loads(os.read(reader, 4096)) == {"schema": 1}
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_failure_names_the_path_and_leaves_nothing(tmp_path: Path) -> None:
    """A report that can't be written is an error that names its path and the reason."""
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "report.json"
    with pytest.raises(CrateError, match=f"^cannot write the crate report '{path}': (Not a directory|File exists)$"):
        write_report(path, {})
    with pytest.raises(CrateError, match=f"^cannot write the crate report '{tmp_path}': Is a directory$"):
        write_report(tmp_path, {})
    assert os.listdir(tmp_path) == ["file"]


def test_a_rename_that_fails_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The half-way file is removed when the report cannot take its place."""

    def refuse(source: str, target: str) -> None:
        assert os.path.dirname(source) == os.path.dirname(target)
        assert json.loads(Path(source).read_text()) == {"schema": 1}
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(CrateError, match="No space left on device"):
        write_report(tmp_path / "report.json", {"schema": 1})
    assert os.listdir(tmp_path) == []


def _rides(worker: str | None, number: int, *exceeded: bool) -> list[TestRecord]:
    """Return the records of tests that shared a crate of number ``number``; one may have exceeded a limit."""
    return [
        _record(
            f"t.py::test_{worker}_{number}_{place}",
            worker=worker,
            crates=(
                CrateResult(
                    name="body",
                    usage=Usage(wall_usec=1),
                    exceeded=("memory",) if over else (),
                    exit=Exit(code=0) if place == len(exceeded) else Exit(),
                    shared=Shared(name="t.py", number=number, tests=place, usage=Usage(wall_usec=10 * place)),
                ),
            ),
        )
        for place, over in enumerate(exceeded, 1)
    ]


def test_shared_crates() -> None:
    """Each crate that tests shared is there once: its tests in their order, what it used up to the end of the last."""
    records = [*_rides("gw1", 1, False, True), *_rides("gw0", 2, False), *_rides("gw0", 1, False, False, False)]
    report = json_report({}, reversed(records))
    _validator().validate(report)
    found = report["shared_crates"]
    assert isinstance(found, list)
    assert [(crate["worker"], len(crate["tests"]), crate["usage"]["wall_usec"]) for crate in found] == [
        ("gw0", 3, 30),
        ("gw0", 1, 10),
        ("gw1", 2, 20),
    ]
    assert found[0]["tests"] == ["t.py::test_gw0_1_1", "t.py::test_gw0_1_2", "t.py::test_gw0_1_3"]
    assert [crate["exceeded"] for crate in found] == [[], [], ["memory"]]
    assert found[2]["exit"] == {"code": 0, "signal": None}
    assert [TestRecord.from_json(record.to_json()) for record in records] == records


def test_no_shared_crates() -> None:
    """Where each test had a crate of its own, there are none."""
    assert json_report({}, [_record()])["shared_crates"] == []
