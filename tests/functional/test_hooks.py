"""The plugin's own hooks: a spec adjusted, a usage observed, an image found."""

from __future__ import annotations

import pytest

from tests.inner import RunInner


def test_hooks(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """pytest_crate_spec changes a spec, pytest_crate_usage sees each crate once, in pytest's own process."""
    pytester.makeconftest(
        """
        import dataclasses, os
        def pytest_crate_spec(item, spec):
            if "adjusted" in item.name: return dataclasses.replace(spec, hostname="adjusted")
        def pytest_crate_usage(item, usage):
            with open("usage", "a") as file: file.write(f"{item.name} {usage.wall_usec > 0} {os.getpid()}\\n")
        def pytest_crate_image_source(reference):
            if reference == "mine:1": return os.path.join(os.path.dirname(__file__), "rootfs")
        """
    )
    (pytester.path / "rootfs" / "etc").mkdir(parents=True)
    (pytester.path / "rootfs" / "etc" / "os-release").write_text("ID=mine\n")
    pytester.makepyfile(
        """
        import os, pytest
        @pytest.mark.crate
        def test_plain(): assert os.uname().nodename == "crate"
        @pytest.mark.crate
        def test_adjusted(): assert os.uname().nodename == "adjusted"
        def test_adjusted_driven(crate_sandbox_factory):
            assert crate_sandbox_factory(memory="64m").run(["uname", "-n"]).stdout == "adjusted\\n"
            crate_sandbox_factory()
        @pytest.mark.crate(image="mine:1")
        def test_image(): assert open("/etc/os-release").read() == "ID=mine\\n"
        def test_uncrated(): pass
        """
    )
    run = run_inner("-o", "crate_image_store=store")
    assert run.outcomes() == {"passed": 5}
    lines = (pytester.path / "usage").read_text().splitlines()
    assert [line.rpartition(" ")[0] for line in lines] == [
        "test_plain True",
        "test_adjusted True",
        "test_adjusted_driven True",
        "test_adjusted_driven True",
        "test_image True",
    ]
    assert {line.rpartition(" ")[2] for line in lines} == {str(run.reports[0]["pid"])}


def test_hook_that_raises(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A pytest_crate_spec that raises a SpecError is told like any bad marker."""
    pytester.makeconftest(
        """
        from pytest_crate.errors import SpecError
        def pytest_crate_spec(item, spec):
            raise SpecError(origin="conftest", key="memory", value=1, expected="less")
        """
    )
    pytester.makepyfile("import pytest\n@pytest.mark.crate\ndef test_it(): pass\n")
    run = run_inner()
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    assert "test_hook_that_raises.py::test_it: conftest: memory=1: expected less" in run.result.stderr.str()
