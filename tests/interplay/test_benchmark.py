"""pytest-benchmark: the timings of crates are in its table, its files and its comparisons."""

from __future__ import annotations

import json
import pstats
from pathlib import Path
from typing import Any

import pytest

from tests.inner import RunInner

SUITE = """
import pytest, time

@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.benchmark(group="marked", min_rounds=3, max_time=0.01)
def test_sleeps(benchmark, count):
    benchmark.extra_info["count"] = count
    assert benchmark(lambda: time.sleep(0.002 * count) or count) == count

def test_pedantic(benchmark):
    benchmark.group = "set inside"
    benchmark.pedantic(time.sleep, args=(0.001,), rounds=4, iterations=2)

def test_fails(benchmark):
    benchmark.pedantic(time.sleep, args=(0,), rounds=2)
    assert 0

def test_without(): pass
"""


def _kept(path: Path) -> list[Any]:
    benchmarks = json.loads(path.read_text())["benchmarks"]
    for benchmark in benchmarks:
        figures = benchmark["stats"]
        assert len(figures["data"]) == figures["rounds"]
        assert min(figures["data"]) == figures["min"]
        # How often a function is timed depends on how fast it was.
        benchmark["stats"] = {
            "iterations": figures["iterations"],
            "enough": figures["rounds"] >= 2,
            **dict.fromkeys(figures),
        }
        benchmark["stats"].pop("rounds")
    return list(benchmarks)


def test_numbers_come_back(pytester: pytest.Pytester, run_inner: RunInner, tmp_path: Path) -> None:
    """--benchmark-json and the table have what was timed in crates, and it is as long as what was done."""
    pytester.makepyfile(SUITE)
    found, tables = {}, {}
    for way in ("plain", "crated"):
        file = tmp_path / f"{way}-benchmarks.json"
        options = (["--crate-all"] if way == "crated" else []) + [f"--benchmark-json={file}"]
        run = run_inner(*options, way=way, plugins=["benchmark"])
        assert run.outcomes() == {"passed": 4, "failed": 1}
        found[way] = _kept(file)
        tables[way] = sorted(
            line.split()[0] for line in run.result.outlines if line.startswith(("test_", "--")) and "(" in line
        )
    assert found["crated"] == found["plain"]
    names = ["test_sleeps[1]", "test_sleeps[2]", "test_pedantic", "test_fails"]
    assert [benchmark["name"] for benchmark in found["crated"]] == names
    assert [benchmark["extra_info"] for benchmark in found["crated"]] == [{"count": 1}, {"count": 2}, {}, {}]
    assert [benchmark["group"] for benchmark in found["crated"]] == ["marked", "marked", "set inside", None]
    assert tables["crated"] == tables["plain"] != []
    times = [benchmark["stats"]["min"] for benchmark in json.loads(file.read_text())["benchmarks"]]
    assert times[0] >= 0.002
    assert times[1] >= 0.004


def test_saved_and_compared(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A run in crates is saved; the next is compared with it, and fails if it is slower than allowed."""
    pytester.makepyfile(
        """
        import os, time
        def test_it(benchmark): benchmark.pedantic(time.sleep, args=(float(os.environ["TIME"]),), rounds=3)
        """
    )
    first = run_inner("--crate-all", "--benchmark-save=first", plugins=["benchmark"], env={"TIME": "0.001"})
    assert first.ret == 0
    assert len(list((pytester.path / ".benchmarks").rglob("0001_first.json"))) == 1
    compare = ("--benchmark-compare=0001", "--benchmark-compare-fail=min:300%")
    slower = run_inner("--crate-all", *compare, plugins=["benchmark"], env={"TIME": "0.2"})
    assert "Performance has regressed" in slower.text + slower.result.stderr.str()
    assert slower.ret != 0
    same = run_inner("--crate-all", *compare, plugins=["benchmark"], env={"TIME": "0.001"})
    assert same.ret == 0
    assert "test_it (0001_first)" in same.text


def test_profile(pytester: pytest.Pytester, run_inner: RunInner, tmp_path: Path) -> None:
    """--benchmark-cprofile shows what was called in the crate, and its dump is written outside."""
    pytester.makepyfile("def inner(): return 1\ndef test_it(benchmark): benchmark.pedantic(lambda: inner(), rounds=2)")
    calls = []
    for way in ("plain", "crated"):
        options = ["--crate-all"] if way == "crated" else []
        dump = tmp_path / f"dump-{way}"
        run = run_inner(
            *options, "--benchmark-cprofile=ncalls", f"--benchmark-cprofile-dump={dump}", plugins=["benchmark"]
        )
        assert "cProfile (time in s)" in run.text
        (file,) = tmp_path.glob(f"dump-{way}*.prof")
        stats: Any = pstats.Stats(str(file))
        calls.append(sorted((function[2], figures[:2]) for function, figures in stats.stats.items()))
    assert ("inner", (1, 1)) in calls[0]
    assert calls[1] == calls[0]


def test_disabled_under_xdist(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Under pytest-xdist it is disabled, in crates as without."""
    pytester.makepyfile("def test_it(benchmark): assert benchmark(lambda: 5) == 5")
    for way in ((), ("--crate-all",)):
        run = run_inner("-n2", *way, plugins=["benchmark", "xdist"])
        assert run.ret == 0
        assert "Benchmarks are automatically disabled" in run.result.stderr.str()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("{'data': [float('nan')]}", "ValueError: a round of nan s"),
        ("{'data': [1.0, float('inf')]}", "ValueError: a round of inf s"),
        ("{'data': []}", "ValueError: a benchmark without a round"),
        ("{'group': 1}", "TypeError: int where str or NoneType is expected"),
    ],
)
def test_forged(pytester: pytest.Pytester, run_inner: RunInner, tmp_path: Path, changed: str, said: str) -> None:
    """What is no timing fails the test that sent it; the table and the file have the others'."""
    pytester.makepyfile(
        f"""
        def test_forges(benchmark):
            from pytest_crate.plugin.interplay import benchmark as adapter
            packed = adapter._packed
            adapter._packed = lambda measured: packed(measured) | {changed}
            benchmark.pedantic(int, rounds=2)
        def test_later(benchmark): benchmark.pedantic(int, rounds=2)
        """
    )
    file = tmp_path / "benchmarks.json"
    run = run_inner("--crate-all", f"--benchmark-json={file}", plugins=["benchmark"])
    assert (run.outcomes()["passed"], run.outcomes()["errors"]) == (2, 1), run.text
    text = run.of("test_forges", "teardown")["longrepr"]
    assert text == f"what benchmark kept in the crate could not be used: {said}"
    assert [benchmark["name"] for benchmark in json.loads(file.read_text())["benchmarks"]] == ["test_later"]


def test_forged_without_end(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A great many benchmarks, each short to say, are not made."""
    pytester.makepyfile(
        """
        def test_forges(benchmark):
            from pytest_crate.plugin.interplay.benchmark import _Benchmarks
            take = _Benchmarks.take
            _Benchmarks.take = lambda *args: take(*args) * 2000
            benchmark.pedantic(int, rounds=2)
        """
    )
    run = run_inner("--crate-all", plugins=["benchmark"])
    assert (run.outcomes()["passed"], run.outcomes()["errors"]) == (1, 1), run.text
    assert "more than 1000 benchmarks of one test" in run.of("test_forges", "teardown")["longrepr"]
