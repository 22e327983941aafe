"""The command line and ini options, and the layers of a spec that they make."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_crate.spec import Layer

POLICIES = ("fail", "skip", "run")
FORK_CHECKS = ("off", "warn", "error")
ID_MAPS = ("single", "range")

# Marker key → what the option's value is called in --help. Every one has an ini twin.
_DEFAULTS = {
    "memory": ("SIZE", "memory limit of each crate, such as 256m"),
    "cpus": ("N", "CPU limit of each crate, such as 0.5"),
    "pids": ("N", "most tasks at once in each crate"),
    "timeout": ("SECONDS", "wall time of each crate, after which it is killed"),
    "image": ("IMAGE", "root filesystem of each crate: a name or a path"),
    "network": ("none|host", "network of each crate"),
    "scope": ("function|class|module", "which tests share a crate: function is a crate each"),
}
CEILINGS = ("memory", "cpus", "pids", "timeout", "tmpfs")


def add_options(parser: pytest.Parser) -> None:
    """Add every option of the plugin."""
    group = parser.getgroup("crate", "crates: isolation and resource limits")
    group.addoption("--crate-all", action="store_true", help="run every test in a crate, marked or not")
    group.addoption("--crate-off", action="store_true", help="run no test body in a crate: NOTHING is enforced")
    for key, (metavar, text) in _DEFAULTS.items():
        group.addoption(f"--crate-{key}", metavar=metavar, help=f"{text} (ini: crate_{key})")
        parser.addini(f"crate_{key}", f"default: {text}")
    group.addoption(
        "--crate-mount",
        action="append",
        default=[],
        metavar="SRC[:DST][:ro|rw]",
        help="host path made visible in each crate; repeatable (ini: crate_mount)",
    )
    parser.addini("crate_mount", "host paths made visible in each crate: src[:dst][:ro|rw], one per line", "linelist")
    for key in CEILINGS:
        parser.addini(f"crate_{key}_ceiling", f"the most that a crate may ask for as {key}")
    parser.addini(
        "crate_preload", "modules to import once, before the first crate of a test's body: one per line", "linelist"
    )
    parser.addini("crate_unsupported", f"a crate that the host can't enforce: {', '.join(POLICIES)}", default="fail")
    parser.addini("crate_fork_check", f"threads alive where a crate is forked: {', '.join(FORK_CHECKS)}", default="off")
    parser.addini("crate_cgroup_parent", "cgroup below which crates' cgroups are made")
    parser.addini(
        "crate_id_map",
        "ids in an ordinary user's crates of images: single (their root is you, and there is nobody else) or range "
        "(those of /etc/subuid and /etc/subgid as well, by newuidmap)",
        default="single",
    )
    parser.addini("crate_image_store", "directory of extracted images (default: $XDG_CACHE_HOME/pytest-crate)")
    group.addoption(
        "--crate-require", action="store_true", help="crate_unsupported = skip or run counts as fail; for CI"
    )
    group.addoption(
        "--crate-top",
        type=_rows,
        default=10,
        metavar="N",
        help="rows of the summary: limits exceeded, then biggest first (0: all; default: 10)",
    )
    group.addoption("--crate-report", metavar="FILE", help="write what every crate used to FILE, as JSON")
    group.addoption("--crate-debug", action="store_true", help="show for each crate what it is made of")
    group.addoption("--crate-doctor", action="store_true", help="show what this host offers to crates, and exit")


def _rows(text: str) -> int:
    rows = int(text)
    if rows < 0:
        raise ValueError(text)
    return rows


_rows.__name__ = "number of rows (0 or more)"  # argparse puts the name into its message


def check(config: pytest.Config) -> None:
    """Check what can be told before anything is collected.

    :raises pytest.UsageError: options that exclude each other, or a value that does not parse.
    """
    if config.getoption("crate_off") and (config.getoption("crate_all") or config.getoption("crate_require")):
        raise pytest.UsageError(
            "--crate-off runs every test unsandboxed: it can't go with --crate-all or --crate-require"
        )
    fork_check = config.getini("crate_fork_check")
    if fork_check not in FORK_CHECKS:
        raise pytest.UsageError(f"ini crate_fork_check={fork_check!r}: expected one of {', '.join(FORK_CHECKS)}")
    id_map = config.getini("crate_id_map")
    if id_map not in ID_MAPS:
        raise pytest.UsageError(f"ini crate_id_map={id_map!r}: expected one of {', '.join(ID_MAPS)}")
    path = config.getoption("crate_report")
    if path is not None and (not path or os.path.isdir(path)):
        raise pytest.UsageError(f"--crate-report={path}: expected the name of a file to write")
    values = [config.getoption(f"crate_{key}") or config.getini(f"crate_{key}") for key in (*_DEFAULTS, "mount")]
    if any(values) or ceilings(config):
        from pytest_crate.errors import SpecError
        from pytest_crate.spec import build_spec

        try:
            build_spec(default_layers(config), ceilings(config))
        except SpecError as error:
            raise pytest.UsageError(str(error)) from None


def default_layers(config: pytest.Config) -> Iterator[Layer]:
    """Yield the layers of the ini file, then of the command line: one for each option set."""
    from pytest_crate.spec import Layer

    root = str(config.rootpath)
    here = str(config.invocation_params.dir)
    for key in _DEFAULTS:
        if value := config.getini(f"crate_{key}"):
            yield Layer(origin=f"ini crate_{key}", values={key: value}, directory=root)
    if mounts := config.getini("crate_mount"):
        yield Layer(origin="ini crate_mount", values={"mounts": mounts}, directory=root)
    for key in _DEFAULTS:
        if (value := config.getoption(f"crate_{key}")) is not None:
            yield Layer(origin=f"--crate-{key}", values={key: value}, directory=here)
    if mounts := config.getoption("crate_mount"):
        yield Layer(origin="--crate-mount", values={"mounts": mounts}, directory=here)


def ceilings(config: pytest.Config) -> dict[str, object]:
    """Return the ceilings that are set, by marker key."""
    return {key: value for key in CEILINGS if (value := config.getini(f"crate_{key}_ceiling"))}


def unsupported_policy(config: pytest.Config) -> str:
    """Return what a crated test does where the host can't enforce its spec.

    :raises pytest.UsageError: the ini file says something else than one of :data:`POLICIES`.
    """
    policy = str(config.getini("crate_unsupported"))
    if policy not in POLICIES:
        raise pytest.UsageError(f"ini crate_unsupported={policy!r}: expected one of {', '.join(POLICIES)}")
    return "fail" if config.getoption("crate_require") else policy
