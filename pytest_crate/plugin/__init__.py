"""The pytest plugin: options, marker, walk, fixtures; it loads the rest only when a test has a crate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_crate.plugin import options
from pytest_crate.plugin.fixtures import crate_sandbox, crate_sandbox_factory

if TYPE_CHECKING:
    from pytest_crate.plugin.failed import CrateFailed as CrateFailed
    from pytest_crate.plugin.failed import CrateForkWarning as CrateForkWarning
    from pytest_crate.sandbox.temporary import TemporaryEntries

__all__ = ["CrateFailed", "CrateForkWarning", "crate_sandbox", "crate_sandbox_factory"]

_ENTRIES: pytest.StashKey[TemporaryEntries] = pytest.StashKey()

_MARKER = (
    "crate(memory, swap, cpus, cpuset, pids, timeout, image, network, mounts, tmpfs, env, clean_env, hostname, user, "
    "workdir, cap_add, seccomp, scope): run the test in a crate: fresh namespaces, its own root filesystem, limits "
    "that the kernel enforces"
)


def __getattr__(name: str) -> object:
    if name in ("CrateFailed", "CrateForkWarning"):
        from pytest_crate.plugin import failed

        return getattr(failed, name)
    raise AttributeError(name)


def pytest_addoption(parser: pytest.Parser) -> None:
    options.add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    from pytest_crate.plugin import hookspecs

    pluginmanager.add_hookspecs(hookspecs)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    # As early as a plugin can: what conftest files put into /tmp is this run's.
    from pytest_crate.plugin.shared_cache import clean_at_start
    from pytest_crate.sandbox.temporary import TemporaryEntries

    early_config.stash[_ENTRIES] = entries = TemporaryEntries()
    early_config.add_cleanup(entries.close)
    clean_at_start(early_config)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", _MARKER)
    options.check(config)
    if not hasattr(config, "workerinput"):
        from pytest_crate.plugin.summary import Summary

        config.pluginmanager.register(Summary(config), "crate-summary")


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    if config.getoption("crate_doctor"):
        from pytest_crate.plugin.doctor import print_doctor

        return print_doctor(config)
    return None


def pytest_report_header(config: pytest.Config) -> str | None:
    if not config.getoption("crate_off"):
        return None
    from pytest_crate.report.header import header_line

    return header_line(kernel_release="", cgroup_version=None, off=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Once the items are settled: give each that wants one its crate, and load the walk if there is any."""
    config = session.config
    wanted = any(
        item.get_closest_marker("crate") is not None or "crate_sandbox" in names or "crate_sandbox_factory" in names
        for item in session.items
        for names in (getattr(item, "fixturenames", ()),)
    )
    entries = config.stash.get(_ENTRIES, None)
    if not (wanted or (config.getoption("crate_all") and session.items)):
        if entries is not None:
            entries.close()
        return
    from pytest_crate.plugin.conductor import Conductor

    if entries is None:  # no early start: the plugin was loaded with -p from a conftest file
        from pytest_crate.sandbox.temporary import TemporaryEntries

        entries = TemporaryEntries()
        config.add_cleanup(entries.close)
    try:
        Conductor.take_over(session, entries)
    except pytest.UsageError as error:
        # An xdist worker's way to tell its controller, which raises it again (Summary).
        if hasattr(config, "workeroutput"):
            config.workeroutput["crate_usage_error"] = [str(message) for message in error.args]
        raise
    summary = config.pluginmanager.getplugin("crate-summary")
    if summary is not None:  # not an xdist worker
        summary.watch()
