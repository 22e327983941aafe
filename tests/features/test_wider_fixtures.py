"""Fixtures with a scope wider than a function, where a test gets at them in unusual ways."""

from __future__ import annotations

import socket

import pytest

from tests.inner import BothWays, RunInner

TRAIL = """
import os, pytest

def note(*words):
    with open(os.environ["TRAIL"], "a") as file: print(*words, file=file)
"""


@pytest.fixture
def trail(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A file that is the host's in a crate, too: what it is told of happens both inside and outside."""
    pytester.mkdir("shared")
    shared = pytester.path / "shared"
    pytester.makeini(f"[pytest]\ncrate_mount = {shared}:{shared}:rw\n")
    monkeypatch.setenv("TRAIL", str(pytester.path / "shared" / "trail"))
    return pytester


def _lines(pytester: pytest.Pytester) -> list[str]:
    return (pytester.path / "shared" / "trail").read_text().splitlines()


def test_overridden_by_a_function_fixture(trail: pytest.Pytester, both_ways: BothWays) -> None:
    """A wider fixture is set up once, outside, also where a function's fixture of its name wraps it."""
    trail.makeconftest(
        TRAIL
        + """
@pytest.fixture(scope="session")
def db():
    note("db up", os.getpid()); yield ["db"]; note("db down", os.getpid())
@pytest.fixture(scope="module", params=["x", "y"])
def kind(request):
    note("kind", request.param, os.getpid()); return request.param
@pytest.fixture(scope="session")
def unused(): note("unused")
@pytest.fixture(scope="session")
def deep(): note("deep", os.getpid()); return "deep"
"""
    )
    trail.makepyfile(
        """
        import pytest
        @pytest.fixture
        def db(db): return [*db, "wrapped"]
        @pytest.fixture
        def kind(kind): return kind * 2
        @pytest.fixture
        def unused(): return "other"
        @pytest.fixture
        def between(deep): return deep + " between"
        @pytest.fixture
        def deep(between_deep): return "own " + between_deep
        @pytest.fixture
        def between_deep(deep): return deep
        def test_first(db): assert db == ["db", "wrapped"]; db.append("changed")
        def test_second(db): assert db == ["db", "wrapped"]
        def test_kind(kind): assert kind in ("xx", "yy")
        def test_unused(unused): assert unused == "other"
        def test_deep(between): assert between == "own deep between"
        def test_deep_again(between): pass
        """
    )
    run = both_ways("-v")
    lines = _lines(trail)
    plain, crated = lines[: len(lines) // 2], lines[len(lines) // 2 :]
    assert [line.rpartition(" ")[0] for line in plain] == ["db up", "kind x", "kind y", "deep", "db down"]
    assert crated == [f"{line.rpartition(' ')[0]} {run.reports[0]['pid']}" for line in plain]


def test_parametrized(trail: pytest.Pytester, both_ways: BothWays) -> None:
    """A parametrized wider fixture is made again for each parameter, in the same order, with what depends on it."""
    trail.makepyfile(
        TRAIL
        + """
@pytest.fixture(scope="session", params=[1, 2])
def outer(request): note("outer up", request.param); yield request.param; note("outer down", request.param)
@pytest.fixture(scope="module")
def inner(outer): note("inner up", outer); yield -outer; note("inner down", outer)
@pytest.fixture(params="ab")
def own(request, inner): return request.param
def test_one(inner, outer): assert inner == -outer
def test_two(outer): pass
def test_three(own, inner): pass
@pytest.mark.parametrize("outer", [3], indirect=True)
def test_four(outer, own): assert outer == 3
@pytest.mark.parametrize("inner", [4])
def test_five(inner): assert inner == 4
"""
    )
    both_ways("-v", "--setup-show")
    lines = _lines(trail)
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]
    assert lines[:4] == ["outer up 1", "inner up 1", "inner down 1", "outer down 1"]


@pytest.mark.parametrize("scope", ["function", "module"])
def test_asked_for_in_a_body(trail: pytest.Pytester, run_inner: RunInner, scope: str) -> None:
    """A wider fixture that a body gets with getfixturevalue is set up in its crate, and torn down at the test's end."""
    trail.makepyfile(
        TRAIL
        + """
import socket
@pytest.fixture(scope="session")
def session_wide(): note("session up", socket.gethostname()); yield []; note("session down", socket.gethostname())
@pytest.fixture(scope="module")
def module_wide(session_wide): note("module up"); yield session_wide; note("module down")
@pytest.fixture
def own(): yield; note("own down")
def test_asks(request, own): request.getfixturevalue("module_wide").append(1)
def test_asks_again(request): assert request.getfixturevalue("module_wide") == []
def test_has(module_wide): assert module_wide == []; note("used")
def test_asks_for_one_that_is_there(request): assert request.getfixturevalue("session_wide") == []
"""
    )
    assert run_inner("--crate-all", f"--crate-scope={scope}").outcomes() == {"passed": 4}
    host = socket.gethostname()
    once = ["session up crate", "module up"]
    assert _lines(trail) == [
        *once, "own down", "module down", "session down crate",
        *once, "module down", "session down crate",
        f"session up {host}", "module up", "used", "module down", f"session down {host}",
    ]  # fmt: skip


@pytest.mark.parametrize("scope", ["function", "module"])
def test_teardown_in_the_crate_that_fails(pytester: pytest.Pytester, run_inner: RunInner, scope: str) -> None:
    """Where such a fixture fails in its tear-down, the test that asked for it has the error."""
    pytester.makepyfile(
        """
        import pytest
        @pytest.fixture(scope="session")
        def wide(): yield; raise OSError("wide won't go")
        def test_asks(request): request.getfixturevalue("wide")
        def test_other(): pass
        """
    )
    run = run_inner("--crate-all", f"--crate-scope={scope}")
    assert run.outcomes() == {"passed": 2, "errors": 1}
    assert "OSError: wide won't go" in run.of("test_asks", "teardown")["longrepr"]
