"""``config.cache`` written in a crate, by a body or a fixture, is there in later runs."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_crate.images.tree import remove_tree
from pytest_crate.plugin.shared_cache import SharedCache
from tests.inner import BothWays, RunInner


def test_cache_survives(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """Values and directories of the cache, written in a body, a fixture, a hook or outside, are in the next run."""
    pytester.makeconftest(
        """
        def count(item, name):
            number = item.config.cache.get(f"own/{name}", 0) + 1
            item.config.cache.set(f"own/{name}", number)
            print(name, number)
        def pytest_runtest_call(item): count(item, "calls")
        def pytest_runtest_makereport(item): count(item, "reports")
        def pytest_runtest_setup(item): count(item, "set-ups")
        """
    )
    pytester.makepyfile(
        """
        import pytest
        @pytest.fixture(scope="session")
        def wide(pytestconfig):
            yield pytestconfig.cache.get("own/wide", None)
            pytestconfig.cache.set("own/wide", "outside")
        @pytest.fixture
        def inner(cache):
            yield cache.get("own/inner", None)
            cache.set("own/inner", {"in": ["tear-down"]})
        def test_writes(request, wide, inner):
            directory = request.config.cache.mkdir("own-dir")
            print(wide, inner, request.config.cache.get("own/body", None), [p.name for p in directory.iterdir()])
            (directory / "kept").write_text("x")
            request.config.cache.set("own/body", 7)
        def test_sees_it(cache): assert cache.get("own/body", None) == 7
        """
    )
    first = both_ways("-rP").of("test_writes")["sections"]
    assert first[-1] == ["Captured stdout call", "calls 1\nNone None None []\n"]
    again = both_ways("-rP").of("test_writes")["sections"]
    assert again[-1] == ["Captured stdout call", "calls 3\noutside {'in': ['tear-down']} 7 ['kept']\n"]
    cleared = both_ways("-rP", "--cache-clear").of("test_writes")["sections"]
    assert cleared[-1] == ["Captured stdout call", "calls 1\nNone None None []\n"]


def test_nothing_else_of_the_project_is_written(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """The cache's directory is made beside the tests, as always, and is all that a body can write there."""
    pytester.makepyfile(
        """
        import pathlib, shutil
        def test_writes(cache): cache.set("a/b", 1); pathlib.Path("made").write_text("x")
        def test_removes(cache, request):
            shutil.rmtree(".pytest_cache", ignore_errors=True); assert cache.get("a/b", 0) == 0
        def test_writes_again(cache): cache.set("a/c", 2)
        """
    )
    assert run_inner("--crate-all", "-ocache_dir=.pytest_cache").outcomes() == {"passed": 3}
    assert not (pytester.path / "made").exists()
    assert json.loads((pytester.path / ".pytest_cache" / "v" / "a" / "c").read_text()) == 2
    assert run_inner("--crate-all", "-p", "no:cacheprovider", "-k", "none").ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_programs_have_no_hand_in_it(pytester: pytest.Pytester) -> None:
    """A program that puts a symbolic link in the place of the cache's file does not make pytest write elsewhere."""
    victim = pytester.path / "victim"
    victim.write_text("untouched")
    pytester.makepyfile(
        f"""
        import pytest
        @pytest.mark.crate
        def test_drives(crate_sandbox, pytestconfig):
            directory = pytestconfig.cache._cachedir / "v" / "cache"
            script = f"mkdir -p {{directory}}; rm -f {{directory}}/lastfailed; ln -s {victim} {{directory}}/lastfailed"
            crate_sandbox.run(["sh", "-c", script], check=True)
            assert 0
        """
    )
    assert pytester.runpytest_subprocess("-p", "no:hypothesispytest").ret == 1
    assert victim.read_text() == "untouched"
    assert "test_drives" in (pytester.path / ".pytest_cache/v/cache/lastfailed").read_text()


@pytest.mark.parametrize("place", ["v", "v/cache", "v/cache/lastfailed"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_a_test_puts_in_the_place_of_a_value(
    pytester: pytest.Pytester, run_inner: RunInner, tmp_path: Path, place: str, kind: str
) -> None:
    """pytest writes its values into its cache, not where a test's symbolic link leads, and waits for no pipe there."""
    victim = tmp_path / "victim"
    (victim / "cache").mkdir(parents=True)
    (victim / "lastfailed").write_text("{}")
    pytester.makepyfile(
        f"""
        import os, shutil, pytest
        @pytest.mark.crate
        def test_replaces(pytestconfig):
            path = pytestconfig.cache._cachedir / {place!r}
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir(): shutil.rmtree(path)
            path.unlink(missing_ok=True)
            if {kind!r} == "pipe": os.mkfifo(path)
            else: path.symlink_to({str(victim)!r} + ("/lastfailed" if path.name == "lastfailed" else ""))
            assert 0
        """
    )
    for _ in range(2):
        run = run_inner()
        assert run.outcomes() == {"failed": 1}
        assert "INTERNALERROR" not in run.text
        cache = tmp_path / "plain.cache"
        assert "test_replaces" in (cache / "v/cache/lastfailed").read_text()
        assert not any(path.is_symlink() for path in cache.rglob("*"))
    assert (victim / "lastfailed").read_text() == "{}"
    assert os.listdir(victim / "cache") == []


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_a_wider_fixture_keeps_after_that(
    pytester: pytest.Pytester, run_inner: RunInner, tmp_path: Path, kind: str
) -> None:
    """A value that pytest writes between two tests goes into the cache, too."""
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    pytester.makepyfile(
        f"""
        import os, pytest
        pytestmark = pytest.mark.crate
        def test_replaces(pytestconfig):
            path = pytestconfig.cache._cachedir / "v" / "a" / "b"
            path.parent.mkdir(parents=True, exist_ok=True)
            if {kind!r} == "pipe": os.mkfifo(path)
            else: path.symlink_to({str(victim)!r})
        @pytest.fixture(scope="module")
        def kept(pytestconfig):
            pytestconfig.cache.set("a/b", 1)
            yield
        def test_goes_on(kept, pytestconfig):
            assert pytestconfig.cache.get("a/b", None) == 1
        """
    )
    assert run_inner().outcomes() == {"passed": 2}
    assert victim.read_text() == "untouched"


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_a_killed_run_left_there(pytester: pytest.Pytester, tmp_path: Path, kind: str) -> None:
    """A run reads no value that a run before left in the place of one when it was killed, nor writes where it leads."""
    victim = tmp_path / "victim"
    victim.write_text("{}")
    value = pytester.path / ".pytest_cache" / "v" / "cache" / "lastfailed"
    value.parent.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(value)
    else:
        value.symlink_to(victim)
    pytester.makepyfile("def test_it(): assert 0")
    done = pytester.runpytest_subprocess("-p", "no:hypothesispytest", timeout=60)
    assert done.ret == pytest.ExitCode.TESTS_FAILED
    assert victim.read_text() == "{}"
    assert "test_it" in value.read_text()


def test_directories_without_end(pytester: pytest.Pytester, run_inner: RunInner, tmp_path: Path) -> None:
    """A body that nests more directories among the values than a walk has stack for does not end the run."""
    pytester.makepyfile(
        """
        import os, pytest
        pytestmark = pytest.mark.crate
        def test_nests(pytestconfig):
            place = os.open(pytestconfig.cache._cachedir, os.O_RDONLY)
            for name in "v", *["nested"] * 3000:
                try: os.mkdir(name, dir_fd=place)
                except FileExistsError: pass
                place, above = os.open(name, os.O_RDONLY, dir_fd=place), place
                os.close(above)
        def test_after(): pass
        """
    )
    try:
        for _ in range(2):
            run = run_inner()
            assert run.outcomes() == {"passed": 2}
            assert run.ret == 0
    finally:
        # pytest's own removal of old directories has no stack for them either.
        with _opened(tmp_path) as place:
            remove_tree(place, b"plain.cache")


@pytest.mark.parametrize("there", [False, True], ids=["new", "grown"])
def test_values_without_end(pytester: pytest.Pytester, run_inner: RunInner, there: bool) -> None:
    """A value of a gigabyte that a body leaves is removed: neither this run reads it at its end, nor the next one."""
    pytester.makeconftest(
        """
        import os, resource, pytest
        pid = os.getpid()
        most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        before = most()  # at least what the process had that started this one (execve(2) keeps it)
        @pytest.hookimpl(trylast=True)
        def pytest_sessionfinish():
            if os.getpid() == pid: assert most() < before + (400 << 10)
        """
    )
    pytester.makepyfile(
        f"""
        import time, pytest
        pytestmark = pytest.mark.crate
        def test_before(cache):
            if {there}:
                for name in "lastfailed", "nodeids", "other": cache.set("cache/" + name, [])
        def test_in_between(): time.sleep(0.3)  # until the directory's time is no longer the last tick's
        def test_leaves(cache):
            (cache._cachedir / "v/cache").mkdir(parents=True, exist_ok=True)
            for name in "lastfailed", "nodeids", "other":
                with open(cache._cachedir / "v/cache" / name, "ab") as file: file.truncate(1 << 30)
        def test_after(cache): assert cache.get("cache/other", "gone") == "gone"
        """
    )
    for _ in range(2):
        run = run_inner()
        assert run.outcomes() == {"passed": 4}, run.text


_BROKEN = {
    "deep": "[" * 200000,
    "list": "[1]",
    "ids": '["test_it.py::test_it"]',
    "number": "5",
    "name": json.dumps({"a" * 5000: True}),
    "surrogate": json.dumps({"\udcff": True}),
    "zone": json.dumps(
        {"last_failed": "test_it.py::test_it", "last_test_count": 1, "last_cache_date_str": "2020-01-01T00:00:00+01:00"}
    ),
}


@pytest.mark.parametrize("kind", _BROKEN)
def test_values_of_pytests_own_that_are_none(
    pytester: pytest.Pytester, run_inner: RunInner, tmp_path: Path, kind: str
) -> None:
    """What a run that was killed left in place of pytest's own values is removed before pytest takes it apart."""
    cache = tmp_path / "plain.cache/v/cache"
    cache.mkdir(parents=True)
    pytester.makepyfile(test_it="def test_it(): pass")
    for option in "--lf", "--sw", "--nf":
        for name in "lastfailed", "nodeids", "stepwise":
            (cache / name).write_text(_BROKEN[kind])
        run = run_inner(option)
        assert run.outcomes() == {"passed": 1}, run.text + run.result.stderr.str()


def test_a_value_that_nests_too_deep(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A body that writes one in place of what pytest reads at the run's end does not take the summary away."""
    pytester.makepyfile(
        """
        import pytest
        pytestmark = pytest.mark.crate
        def test_writes(cache):
            cache.set("cache/lastfailed", {})
            (cache._cachedir / "v/cache/lastfailed").write_text("[" * 200000)
        def test_writes_in_place(cache):
            with open(cache._cachedir / "v/cache/lastfailed", "w") as file: file.write("[" * 200000)
        def test_fails(): assert 0
        """
    )
    run = run_inner()
    assert run.outcomes() == {"passed": 2, "failed": 1}, run.text + run.result.stderr.str()
    assert "short test summary" in run.text


def test_values_of_pytests_own_are_kept(pytester: pytest.Pytester, run_inner: RunInner, tmp_path: Path) -> None:
    """pytest's own values are as they are without crates: --lf, --sw and --nf go on from the run before."""
    pytester.makepyfile("def test_passes(): pass\ndef test_fails(): assert 0\ndef test_last(): pass")
    assert run_inner("--crate-all", "--sw").outcomes() == {"passed": 1, "failed": 1}
    cache = tmp_path / "plain.cache/v/cache"
    before = {path.name: path.read_text() for path in cache.iterdir()}
    assert sorted(before) == ["lastfailed", "nodeids", "stepwise"]
    assert run_inner("--crate-all", "--collect-only").ret == 0
    assert {path.name: path.read_text() for path in cache.iterdir()} == before
    assert run_inner("--crate-all", "--sw").outcomes() == {"failed": 1, "deselected": 1}
    assert run_inner("--crate-all", "--lf").outcomes() == {"failed": 1}


def test_files_in_any_number(pytester: pytest.Pytester, run_inner: RunInner, tmp_path: Path) -> None:
    """Of the files that a body makes among the values a number is left: every test's end would look at each."""
    pytester.makepyfile(
        """
        import pytest
        pytestmark = pytest.mark.crate
        def test_makes(cache):
            cache.set("own/value", 1)
            for number in range(20_000): (cache._cachedir / f"v/own/{number}").touch()
        def test_after(): pass
        """
    )
    assert run_inner().outcomes() == {"passed": 2}
    made = [path for path in (tmp_path / "plain.cache/v").rglob("*") if path.is_file()]
    assert len(made) <= (1 << 14) + 3  # pytest's own, written at the run's end


@pytest.mark.parametrize("value", ["[" + "{}," * 2_000_000 + "{}]", "[" + '"ab",' * 2_500_000 + '"ab"]'])
def test_a_value_of_pytests_own_is_weighed_before_it_is_taken_apart(tmp_path: Path, value: str) -> None:
    """A list of a great many small things takes many times as much memory as its file has bytes."""
    path = tmp_path / "v/cache/nodeids"
    path.parent.mkdir(parents=True)
    path.write_text(value)
    tracemalloc.start()
    try:
        SharedCache(str(tmp_path)).clean()
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert not path.exists()


def test_what_failed_where_nobody_may_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An id below a directory that is shut would end each later run with --lf; a mere absence does not matter."""
    exists = Path.exists

    def shut(path: Path) -> bool:  # root may look everywhere
        if "shut" in path.parts:
            raise PermissionError(errno.EACCES, "", str(path))
        return exists(path)

    monkeypatch.setattr(Path, "exists", shut)
    path = tmp_path / "v/cache/lastfailed"
    path.parent.mkdir(parents=True)
    for name, kept in (("shut/x.py::test_it", False), ("../shut/x.py", False), ("gone/x.py::test_it", True)):
        path.write_text(json.dumps({name: True}))
        SharedCache(str(tmp_path), tmp_path).clean()
        assert exists(path) is kept


def test_directories_in_any_number(pytester: pytest.Pytester, run_inner: RunInner, tmp_path: Path) -> None:
    """Of the directories that a body makes among the values a number is left; what has been there stays a value."""
    pytester.makepyfile(
        """
        import os, pytest
        pytestmark = pytest.mark.crate
        def test_makes(cache):
            cache.set("own/value", 1)
            for number in range(9000): os.mkdir(cache._cachedir / "v/own" / str(number))
            (cache._cachedir / "v/own/0/below").mkdir()
        def test_after(cache): assert cache.get("own/value", 0) == 1
        """
    )
    assert run_inner().outcomes() == {"passed": 2}
    made = [path for path in (tmp_path / "plain.cache/v").rglob("*") if path.is_dir() and path.name != "cache"]
    assert len(made) == 4096


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
