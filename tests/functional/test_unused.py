"""A run that has no crates does not pay for them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.inner import RunInner


def test_nothing_is_made(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Without a marker there is no launcher, no cgroup and no namespace, and nothing of the engine is imported."""
    pytester.makepyfile(
        """
        import glob, os, subprocess, sys
        NAMESPACES = {name: os.readlink(f"/proc/self/ns/{name}") for name in os.listdir("/proc/self/ns")}
        def test_it():
            children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
            assert children == []
            assert not [p for p in glob.glob("/sys/fs/cgroup/**/pytest-crate*", recursive=True)
                        if f"-{os.getpid()}-" in p]
            assert NAMESPACES == {name: os.readlink(f"/proc/self/ns/{name}") for name in NAMESPACES}
            loaded = {name for name in sys.modules if name.startswith("pytest_crate.")}
            rooms = ("kernel", "images", "cli", "report", "plugin.walk", "plugin.conductor", "sandbox.sandbox")
            assert not [name for name in loaded if name.removeprefix("pytest_crate.").startswith(rooms)], loaded
        """
    )
    assert run_inner().outcomes() == {"passed": 1}


def test_imports(pytester: pytest.Pytester) -> None:
    """Loading the plugin imports neither ctypes nor psutil, nor the kernel and engine rooms."""
    pytester.makepyfile("def test_it(): pass\n")
    command = [sys.executable, "-X", "importtime", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    loaded = [
        {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        for done in (
            subprocess.run([*command, *extra], capture_output=True, text=True, check=True, cwd=pytester.path)
            for extra in ((), ("-p", "no:pytest_crate"))
        )
    ]
    added = loaded[0] - loaded[1]
    assert "pytest_crate.plugin.options" in added
    assert not [name for name in added if name.split(".")[0] in ("ctypes", "psutil", "filelock", "socket", "tarfile")]
    assert not [name for name in added if name.startswith(("pytest_crate.kernel", "pytest_crate.images"))]


def test_no_hook_of_a_test_is_ours(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Without crates none of our functions is called for a test, by whichever hook."""
    pytester.makeconftest(
        """
        def pytest_collection_finish(session):
            manager = session.config.pluginmanager
            ours = {
                hook.name
                for plugin in manager.get_plugins()
                if (getattr(plugin, "__name__", None) or type(plugin).__module__).startswith("pytest_crate.")
                for hook in manager.get_hookcallers(plugin) or ()
            }
            assert "pytest_terminal_summary" in ours and "pytest_configure" in ours
            of_a_test = ("pytest_runtest_", "pytest_fixture_", "pytest_pyfunc", "pytest_report_teststatus")
            assert not [name for name in ours if name.startswith(of_a_test)]
        """
    )
    pytester.makepyfile("def test_it(): pass\n")
    assert run_inner().outcomes() == {"passed": 1}
