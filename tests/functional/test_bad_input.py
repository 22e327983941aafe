"""What is wrong in markers, options and settings is said at collection, by name, and no test runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pytest_crate.images.tree import remove_tree
from tests.inner import RunInner

MARKERS = {
    'memroy="64m"': ["memroy", "'64m'", "'memory'", "'seccomp'"],
    'memory="lots"': ["memory='lots'", '"256m"'],
    "memory=-1": ["memory=-1"],
    "memory=True": ["memory=True"],
    '"64m"': ["64m", 'memory="256m"'],
    "cpus=0": ["cpus=0", "at least 0.01"],
    'cpuset="a"': ["cpuset='a'", '"0-1"'],
    "pids=0": ["pids=0"],
    "timeout=-1": ["timeout=-1", "seconds"],
    'network="bridge"': ["network='bridge'", "'none' or 'host'"],
    'mounts="data:/data"': ["mounts='data:/data'", "list"],
    'mounts=["no_such_dir:/data"]': ["no_such_dir", "existing path"],
    'mounts=["/tmp:relative"]': ["relative"],
    'env={"A": 1}': ["env={'A': 1}"],
    'env="A=1"': ["env='A=1'"],
    'hostname="under_score!"': ["hostname="],
    'workdir="relative"': ["workdir='relative'", "absolute"],
    'user="no such"': ["user='no such'"],
    'cap_add=["net_everything"]': ["net_everything", "cap_add"],
    'cap_add="net_admin"': ["cap_add='net_admin'"],
    'seccomp="no"': ["seccomp='no'", "True or False"],
    'image="no_such_image"': ["no_such_image", "known_one"],
    'image="./no_such.tar"': ["no_such.tar"],
    'memory="2g"': ["memory='2g'", "crate_memory_ceiling = 1g"],
    'tmpfs="2g"': ["tmpfs='2g'", "crate_tmpfs_ceiling = 1g"],
    "pids=100": ["pids=100", "crate_pids_ceiling = 50"],
}


@pytest.mark.parametrize("extra", [[], ["-n2"]], ids=["alone", "xdist"])
def test_markers(pytester: pytest.Pytester, run_inner: RunInner, extra: list[str]) -> None:
    """A bad marker: test, key, value and what would do are named; all bad tests are in one message; none runs."""
    pytester.makepyprojecttoml(
        """
        [tool.pytest.ini_options]
        crate_memory_ceiling = "1g"
        crate_tmpfs_ceiling = "1g"
        crate_pids_ceiling = "50"
        [tool.pytest-crate.images]
        known_one = "./known.tar"
        """
    )
    source = "import pytest\ndef test_ran(): open('ran', 'w')\n"
    for number, marker in enumerate(MARKERS):
        source += f"@pytest.mark.crate({marker})\ndef test_{number:02}(): open('ran', 'w')\n"
    path = pytester.makepyfile(source)
    numbered = list(enumerate(MARKERS))
    # After 20 faults the rest are only counted.
    for group in [numbered[:5]] if extra else [numbered[:13], numbered[13:]]:
        names = [f"test_{number:02}" for number, _ in group]
        run = run_inner(*extra, "-k", " or ".join(["test_ran", *names]))
        text = run.text + run.result.stderr.str()
        assert run.ret == pytest.ExitCode.USAGE_ERROR
        for number, marker in group:
            lines = [line for line in text.splitlines() if f"{path.name}::test_{number:02}: " in line]
            assert lines, f"{marker} is not told of"
            for words in MARKERS[marker]:
                assert words in lines[0], marker
        assert "INTERNALERROR" not in text
        assert not (pytester.path / "ran").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("crate_memory = lots", ["ini crate_memory", "'lots'"]),
        ("crate_cpus = many", ["ini crate_cpus", "'many'"]),
        ("crate_network = some", ["ini crate_network", "'none' or 'host'"]),
        ("crate_mount = nowhere:/x", ["nowhere", "existing path"]),
        ("crate_unsupported = ignore", ["crate_unsupported", "'ignore'", "fail, skip, run"]),
        ("crate_memory_ceiling = much", ["crate_memory_ceiling", "'much'"]),
        ("crate_image = nothing", ["nothing"]),
    ],
)
def test_ini(pytester: pytest.Pytester, run_inner: RunInner, line: str, words: list[str]) -> None:
    """A bad setting is named with its value and the choices, and no test runs."""
    pytester.makeini(f"[pytest]\n{line}\n")
    pytester.makepyfile("import pytest\n@pytest.mark.crate\ndef test_it(): open('ran', 'w')\n")
    run = run_inner()
    text = run.text + run.result.stderr.str()
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    assert all(word in text for word in words)
    assert not (pytester.path / "ran").exists()


def test_option(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A bad value on the command line is named with its option."""
    pytester.makepyfile("def test_it(): open('ran', 'w')\n")
    run = run_inner("--crate-all", "--crate-memory=lots")
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    run.result.stderr.fnmatch_lines(["*--crate-memory: memory='lots': expected a size*"])
    assert run_inner("--crate-top=x").ret == pytest.ExitCode.USAGE_ERROR


def test_no_temporary_directory(pytester: pytest.Pytester) -> None:
    """A --basetemp that can't be made ends the run with an error that names it; without crates nothing asks for it."""
    pytester.makepyfile("def test_it(): open('ran', 'w')\n")
    args = (f"--basetemp={pytester.path}/no/such", "-p", "no:cacheprovider")
    assert pytester.runpytest_subprocess("--crate-off", *args[1:]).ret == 0
    (pytester.path / "ran").unlink()
    run = pytester.run(sys.executable, "-m", "pytest", "--crate-all", *args)
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    run.stderr.fnmatch_lines(["ERROR: crates: *No such file or directory*/no/such*--basetemp"])
    assert not (pytester.path / "ran").exists()


def test_a_base_directory_that_cannot_be_removed(pytester: pytest.Pytester, tmp_path: Path) -> None:
    """A --basetemp in which a test before has nested 3,000 directories ends the run with an error that names the option
    where Python has no stack to remove them; where it has, the run begins."""
    pytester.makepyfile("import pytest\n@pytest.mark.crate\ndef test_it(): pass")
    base = tmp_path / "base"
    base.mkdir()
    above = os.open(tmp_path, os.O_RDONLY)
    try:
        place = os.open(base, os.O_RDONLY)
        for _ in range(3000):
            os.mkdir("nested", dir_fd=place)
            inner = os.open("nested", os.O_RDONLY, dir_fd=place)
            os.close(place)
            place = inner
        os.close(place)
        options = (f"--basetemp={base}", "-p", "no:cacheprovider", "-p", "no:hypothesispytest")
        run = pytester.runpytest_subprocess(*options)
        if run.ret != pytest.ExitCode.OK:
            assert run.ret == pytest.ExitCode.USAGE_ERROR
            run.stderr.fnmatch_lines(["ERROR: crates: *recursion*--basetemp"])
    finally:
        remove_tree(above, b"base")
        os.close(above)


def test_images_that_cannot_be_used(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A corrupt archive, an empty one and an empty directory fail their tests with path and reason, and run nothing."""
    (pytester.path / "corrupt.tar.gz").write_bytes(b"\x1f\x8b" + os.urandom(2000))
    (pytester.path / "text.tar").write_text("not an archive\n" * 100)
    (pytester.path / "empty").mkdir()
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.crate(image="./corrupt.tar.gz")
        def test_corrupt(): open("ran", "w")
        @pytest.mark.crate(image="./text.tar")
        def test_text(): open("ran", "w")
        @pytest.mark.crate(image="./empty")
        def test_empty(crate_sandbox): crate_sandbox.run(["true"])
        @pytest.mark.crate
        def test_fine(): pass
        """
    )
    run = run_inner("-o", "crate_image_store=store")
    assert "corrupt.tar.gz" in run.of("test_corrupt", "setup")["longrepr"]
    assert "text.tar" in run.of("test_text", "setup")["longrepr"]
    empty = [report["longrepr"] for report in run.reports if "test_empty" in report["nodeid"] and report["longrepr"]]
    assert f"{pytester.path}/empty is empty" in empty[0]
    assert run.of("test_fine")["outcome"] == "passed"
    assert not (pytester.path / "ran").exists()


def test_report_that_cannot_be_written(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """An unwritable --crate-report ends the run with an error that names it; the outcomes are still shown."""
    pytester.makepyfile("def test_it(): pass\n")
    (pytester.path / "file").touch()
    run = run_inner("--crate-all", f"--crate-report={pytester.path}/file/report.json")
    assert run.ret != 0
    assert f"{pytester.path}/file/report.json" in run.text + run.result.stderr.str()
    assert "1 passed" in run.text
    assert "INTERNALERROR" not in run.text
