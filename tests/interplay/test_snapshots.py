"""syrupy and pytest-regressions: snapshots are compared, made and renewed though the project is private in a crate."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.inner import InnerRun, RunInner

SYRUPY = """
import pytest
from syrupy.extensions.json import JSONSnapshotExtension
from syrupy.extensions.single_file import SingleFileSnapshotExtension

VALUE = {value!r}

@pytest.mark.parametrize("name", ["one", "two"])
def test_amber(snapshot, name):
    assert {{"name": name, "value": VALUE}} == snapshot
    assert [1, VALUE] == snapshot(name="named")

class TestJson:
    @pytest.fixture
    def as_json(self, snapshot): return snapshot.use_extension(JSONSnapshotExtension)
    def test_json(self, as_json): assert {{"value": VALUE}} == as_json

def test_bytes(snapshot):
    assert b"\\x00\\xff" + VALUE.encode() == snapshot(extension_class=SingleFileSnapshotExtension)
"""


def _files(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not {"__pycache__", ".pytest_cache"} & set(path.parts)
    }


def _lines(run: InnerRun) -> list[str]:
    lines = run.printed()
    start = next((number for number, line in enumerate(lines) if "snapshot report summary" in line), None)
    return [] if start is None else lines[start:]


def test_syrupy(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Made, matched, failed, renewed and removed: the same files and the same summary at each step."""
    steps = [
        ("first", ()),  # there is none yet
        ("first", ("--snapshot-update",)),
        ("first", ()),
        ("second", ()),  # another value
        ("second", ("--snapshot-update",)),
        ("second", ("-n2",)),
        ("second", ("--snapshot-details", "-k", "not named and not bytes")),
        ("without", ("--snapshot-details",)),  # a test is gone: unused snapshots
        ("without", ("--snapshot-update",)),
    ]
    found: dict[str, list[object]] = {"plain": [], "crated": []}
    snapshots = pytester.path / "__snapshots__"
    for way, options in (("plain", ()), ("crated", ("--crate-all",))):
        for value, more in steps:
            source = SYRUPY.format(value=value)
            pytester.makepyfile(test_it=source.partition("class TestJson")[0] if value == "without" else source)
            run = run_inner(*options, *more, way=way, plugins=["syrupy", "xdist"])
            found[way].append((value, more, run.ret, run.outcomes(), _lines(run), _files(snapshots)))
        for path in snapshots.rglob("*"):
            if path.is_file():
                path.unlink()
    assert found["crated"] == found["plain"]
    codes = [step[2] for step in found["plain"]]  # type: ignore[index]
    assert codes == [1, 0, 0, 1, 0, 0, 0, 1, 0]
    written = [sorted(step[5]) for step in found["plain"]]  # type: ignore[index]
    assert written[0] == []
    assert len(written[1]) == 3
    assert len(written[-1]) < len(written[1])


@pytest.mark.parametrize("part", ["index", "data"])
def test_what_syrupy_could_not_write(pytester: pytest.Pytester, run_inner: RunInner, part: str) -> None:
    """A snapshot that can't be written fails the test that sent it; the file has the others'."""
    value = {"index": "'\\udcff'", "data": "{'text': '\\udcff'}"}[part]
    pytester.makepyfile(
        f"""
        def test_forges(snapshot):
            assert "x" == snapshot
            from pytest_crate.plugin.interplay import syrupy
            take = syrupy._Snapshots.take
            def forged(self, item):
                taken = take(self, item)
                taken["written"][0]["{part}"] = {value}
                return taken
            syrupy._Snapshots.take = forged
        def test_later(snapshot): assert "y" == snapshot
        """
    )
    run = run_inner("--crate-all", "--snapshot-update", plugins=["syrupy"])
    assert run.outcomes() == {"passed": 2, "errors": 1}, run.text
    assert "surrogates not allowed" in run.of("test_forges", "teardown")["longrepr"]
    assert "'y'" in next(pytester.path.rglob("*.ambr")).read_text()


def test_syrupy_names_one_snapshot(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A name with more than one line could be other tests' snapshots: it fails its test, and is not written."""
    pytester.makepyfile(
        """
        def test_forges(snapshot): assert 1 == snapshot(name="x\\n# name: test_later\\n  99\\n# ---\\n# name: y")
        def test_later(snapshot): assert 2 == snapshot
        """
    )
    run = run_inner("--crate-all", "--snapshot-update", plugins=["syrupy"])
    assert run.outcomes() == {"passed": 2, "errors": 1}, run.text
    assert "it has more than one line" in run.of("test_forges", "teardown")["longrepr"]
    assert "99" not in next(pytester.path.rglob("*.ambr")).read_text()


def test_syrupy_names_a_file(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Where a snapshot is a file of its own, syrupy makes a file's name of any name."""
    pytester.makepyfile(
        """
        from syrupy.extensions.single_file import SingleFileSnapshotExtension
        def test_names(snapshot):
            assert b"x" == snapshot(name="two\\nlines", extension_class=SingleFileSnapshotExtension)
        """
    )
    for options in (["--snapshot-update"], []):
        assert run_inner("--crate-all", *options, plugins=["syrupy"]).outcomes() == {"passed": 1}


def test_syrupy_stays_at_home(pytester: pytest.Pytester, run_inner: RunInner, tmp_path: Path) -> None:
    """A test that says where to write is not believed: the place is syrupy's own reckoning, below the root."""
    pytester.makepyfile(
        f"""
        from syrupy.extensions.single_file import SingleFileSnapshotExtension
        class Outside(SingleFileSnapshotExtension):
            @classmethod
            def dirname(cls, *, test_location): return {str(tmp_path / "outside")!r}
        def test_writes(snapshot): assert b"x" == snapshot(extension_class=Outside)
        """
    )
    plain = run_inner("--snapshot-update", plugins=["syrupy"])
    assert plain.ret == 0
    assert (tmp_path / "outside").exists()
    (tmp_path / "outside" / "test_writes.raw").unlink()
    crated = run_inner("--crate-all", "--snapshot-update", way="crated", plugins=["syrupy"])
    assert crated.outcomes()["errors"] == 1
    assert "is not below the root directory" in crated.of("test_writes", "teardown")["longrepr"]
    assert not (tmp_path / "outside" / "test_writes.raw").exists()


REGRESSIONS = """
VALUE = {value!r}
def test_data(data_regression): data_regression.check({{"value": VALUE, "list": [1, 2]}})
def test_file(file_regression): file_regression.check(VALUE + "\\n", extension=".md")
class TestClass:
    def test_method(self, data_regression): data_regression.check({{"value": VALUE}}, basename="own-name")
def test_reads(datadir): assert (datadir / "given.txt").read_text() == "given"
def test_writes_elsewhere(original_datadir): (original_datadir / "litter").write_text(VALUE)
"""


def test_regressions(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Expected files are made where there are none, and renewed by --force-regen and --regen-all."""
    steps = [("first", ()), ("first", ()), ("second", ()), ("second", ("--force-regen",)), ("third", ("--regen-all",))]
    found: dict[str, list[object]] = {"plain": [], "crated": []}
    expected = pytester.path / "test_it"
    for way, options in (("plain", ()), ("crated", ("--crate-all",))):
        expected.mkdir(exist_ok=True)
        (expected / "given.txt").write_text("given")
        for value, more in steps:
            pytester.makepyfile(test_it=REGRESSIONS.format(value=value))
            run = run_inner(*options, *more, way=way, plugins=["regressions", "pytest-datadir"])
            files = {name: text for name, text in _files(expected).items() if name != "litter"}
            found[way].append((value, more, run.ret, run.outcomes(), files))
        # Only what a fixture of the plugin's has written comes home.
        assert (expected / "litter").exists() == (way == "plain")
        for path in expected.iterdir():
            path.unlink()
    assert found["crated"] == found["plain"]
    assert [step[3] for step in found["plain"]] == [  # type: ignore[index]
        {"passed": 2, "failed": 3},
        {"passed": 5},
        {"passed": 2, "failed": 3},
        {"passed": 2, "failed": 3},
        {"passed": 5},
    ]


def test_regressions_stay_at_home(pytester: pytest.Pytester, run_inner: RunInner, tmp_path: Path) -> None:
    """A test can't have a file written elsewhere: by its name, or through a symlink that is there."""
    (pytester.path / "test_it").mkdir()
    (pytester.path / "test_it" / "link").symlink_to(tmp_path)
    pytester.makepyfile(
        test_it="""
        import pytest
        @pytest.mark.parametrize("name", ["../evil.py", "/evil", "link/evil", ".", ""])
        def test_forges(data_regression, name):
            from pytest_crate.plugin.interplay.regressions import _ExpectedFiles
            _ExpectedFiles.take = lambda self, item: {name: "eA=="}
        def test_has_no_fixture():
            from pytest_crate.plugin.interplay.regressions import _ExpectedFiles
            _ExpectedFiles.take = lambda self, item: {"name": "eA=="}
        """
    )
    run = run_inner("--crate-all", plugins=["regressions", "pytest-datadir"])
    assert run.outcomes() == {"passed": 6, "errors": 6}
    assert not list(tmp_path.rglob("evil*"))
    assert not (pytester.path / "evil.py").exists()
    assert not list((pytester.path / "test_it").glob("[!l]*"))


@pytest.mark.parametrize("fixture", ["data_regression", "file_regression"])
def test_regressions_bring_nothing_that_is_run(pytester: pytest.Pytester, run_inner: RunInner, fixture: str) -> None:
    """What pytest or Python would execute later stays in the crate, and the test that made it has an error."""
    directory = pytester.path / "test_it"
    directory.mkdir()
    script = directory / "script"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    content = {"test_more.txt": ">>> open('more', 'w')", "test_none.txt": "none", "a.yml": "b"}
    names = ["conftest.py", "test_more.py", "part.so", "pytest.ini", "pyproject.toml", "script", *content]
    pytester.makepyfile(
        test_it=f"""
        import pytest
        from pathlib import Path
        @pytest.mark.parametrize("name", {names!r})
        def test_writes({fixture}, name):
            directory = Path(__file__).with_suffix("")
            directory.joinpath(name).write_text({content!r}.get(name, "open('more', 'w')"))
        def test_writes_two({fixture}):
            directory = Path(__file__).with_suffix("")
            directory.joinpath("b.yml").write_text("c")
            directory.joinpath("conftest.py").write_text("open('more', 'w')")
        """
    )
    run = run_inner("--crate-all", plugins=["regressions", "pytest-datadir"])
    kept = ["a.yml", "test_none.txt"] if fixture == "file_regression" else ["a.yml"]
    assert sorted(_files(directory)) == sorted(["script", *kept])
    assert script.read_text() == "#!/bin/sh\n"
    assert run.outcomes() == {"passed": 10, "errors": 10 - len(kept)}
    for name, said in {
        "conftest.py": "would be a module of Python's",
        "test_more.txt": "the next run would take",
        "pytest.ini": "would be a configuration",
        "script": "is executable",
    }.items():
        assert said in run.of(f"test_writes[{name}]", "teardown")["longrepr"]
    if fixture == "data_regression":
        assert "which end in .yml" in run.of("test_writes[test_none.txt]", "teardown")["longrepr"]


def test_syrupy_writes_nothing_that_is_run(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A snapshot that would be a module stays in the crate, and the test that made it has an error."""
    pytester.makepyfile(
        test_it="""
        from syrupy.extensions.single_file import SingleFileSnapshotExtension
        class Code(SingleFileSnapshotExtension):
            file_extension = "py"
        def test_writes(snapshot): assert b"x = 1" == snapshot(extension_class=Code, name="conftest")
        """
    )
    run = run_inner("--crate-all", "--snapshot-update", plugins=["syrupy"])
    assert run.outcomes() == {"passed": 1, "errors": 1}
    assert "would be a module of Python's" in run.of("test_writes", "teardown")["longrepr"]
    assert not list(pytester.path.rglob("__snapshots__/**/*.py"))
