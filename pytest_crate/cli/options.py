"""The options that describe a crate, and the spec that they make."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterator, Mapping

from pytest_crate.errors import CrateError, ImageError, SpecError, one_of
from pytest_crate.images import ImageStore, default_store_root, read_image_names, resolve_reference, store_at
from pytest_crate.kernel import capabilities
from pytest_crate.spec import CrateSpec, Layer, build_spec

HOST = "host"
"""The reference that means the host's own root."""

# Marker key → options, what their value is called, and what they do.
_VALUES: Mapping[str, tuple[tuple[str, ...], str, str]] = {
    "memory": (("--memory", "-m"), "SIZE", "memory limit, such as 64m or 1.5g"),
    "swap": (("--swap",), "SIZE", "swap allowed on top of it (default: 0)"),
    "cpus": (("--cpus",), "N", "CPU limit, such as 0.5"),
    "cpuset": (("--cpuset",), "LIST", "the CPUs it may use, such as 0-1"),
    "pids": (("--pids",), "N", "most processes and threads at once (default: 512)"),
    "timeout": (("--timeout",), "SECONDS", "wall time, after which everything in the crate is killed"),
    "network": (("--network",), "none|host", "own stack with only a loopback device, or the host's (default: none)"),
    "tmpfs": (("--tmpfs",), "SIZE", "size of the private copy-on-write layer (default: half of the memory)"),
    "hostname": (("--hostname",), "NAME", "its host name (default: crate)"),
    "user": (("--user", "-u"), "USER[:GROUP]", "names or numbers of its own user database"),
    "workdir": (("--workdir", "-w"), "DIR", "working directory (default: /, or on the host's root the current one)"),
}
_LISTS: Mapping[str, tuple[tuple[str, ...], str, str]] = {
    "mounts": (("--mount",), "SRC[:DST][:ro|rw]", "make a host path visible; repeatable"),
    "env": (("--env", "-e"), "NAME[=VALUE]", "set a variable, or hand on ours; repeatable"),
    "cap_add": (("--cap-add",), "NAME", "let its root keep a capability, such as net_admin; repeatable"),
}

# Where a marker's value is a list or a dict, and an option's is not.
_EXPECTED: Mapping[str, str] = {
    "mounts": "SRC[:DST][:ro|rw]; DST an absolute path, not / or /dev, nor in /proc or /sys",
    "env": "NAME=VALUE, or NAME to hand on ours",
    "cap_add": "the name of a capability, such as net_admin",
}


def add_crate_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each key of a marker, and those of the engine and the store."""
    group = parser.add_argument_group("the crate")
    for key, (flags, metavar, text) in _VALUES.items():
        group.add_argument(*flags, dest=key, metavar=metavar, help=text)
    for key, (flags, metavar, text) in _LISTS.items():
        group.add_argument(*flags, dest=key, metavar=metavar, help=text, action="append", default=[])
    group.add_argument(
        "--clean-env", action="store_true", help="hand on a minimal environment only (on an image it always is)"
    )
    group.add_argument("--no-seccomp", action="store_true", help="filter no system calls")
    group.add_argument("--cgroup-parent", metavar="CGROUP", help="make its cgroup below this one")
    add_store_option(parser)


def add_store_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where extracted images are."""
    parser.add_argument(
        "--store", metavar="DIR", help="directory of extracted images (default: $XDG_CACHE_HOME/pytest-crate)"
    )
    parser.add_argument(
        "--id-map",
        choices=("single", "range"),
        default="single",
        help="an image's ids where you are not root: its root is you, and there is nobody else (the default); or those "
        "of /etc/subuid and /etc/subgid as well, by newuidmap",
    )


def spec_of(arguments: argparse.Namespace, image: str | None) -> CrateSpec:
    """Return the spec that a command line describes; relative host paths are relative to the current directory.

    :param image: the image's reference; None for the host's root.
    :raises CrateError: a value does not parse; it names the option, in the words of a command line.
    """
    try:
        return build_spec([*_layers(arguments, os.getcwd()), Layer(origin="IMAGE", values={"image": image})])
    except SpecError as error:
        expected = _EXPECTED.get(error.key, error.expected)
        raise CrateError(f"{error.origin} {shlex.quote(_given(error.value))}: expected {expected}") from None


def _given(value: object) -> str:
    """Return an option's value as it stood on the command line."""
    if isinstance(value, Mapping):
        ((name, text),) = value.items()
        return str(name) if text is None else f"{name}={text}"
    return str(value[-1]) if isinstance(value, list) else str(value)


def _layers(arguments: argparse.Namespace, directory: str) -> Iterator[Layer]:
    for key, (flags, _, _) in _VALUES.items():
        if (value := getattr(arguments, key)) is not None:
            yield Layer(origin=flags[0], values={key: value}, directory=directory)
    for mount in arguments.mounts:
        yield Layer(origin="--mount", values={"mounts": [mount]}, directory=directory)
    for variable in arguments.env:
        yield Layer(origin="--env", values={"env": dict([_variable(variable)])})
    for count in range(len(arguments.cap_add)):
        # Each replaces the one before, so that the last of a list is the one at fault.
        yield Layer(origin="--cap-add", values={"cap_add": arguments.cap_add[: count + 1]})
    if arguments.clean_env:
        yield Layer(origin="--clean-env", values={"clean_env": True})
    if arguments.no_seccomp:
        yield Layer(origin="--no-seccomp", values={"seccomp": False})


def _variable(text: str) -> tuple[str, str | None]:
    """Split ``NAME=VALUE``; a bare ``NAME`` hands on our own value, or its lack, as in Docker."""
    name, equals, value = text.partition("=")
    return name, value if equals else os.environ.get(name)


def find_image(reference: str, directory: str) -> tuple[str, str]:
    """Return an image's reference and path; on a command line a file's bare name will do for its path.

    Names are those of a pyproject.toml in the directory, and go before files.

    :raises ImageError: there is no such image.
    :raises CrateError: pyproject.toml can't be read.
    """
    if not reference:
        raise ImageError(reference, "an image has a name or a path")
    names = _image_names(os.path.join(directory, "pyproject.toml"))
    if reference not in names:
        path = os.path.join(directory, os.path.expanduser(reference))
        if not os.path.exists(path):
            known = f"names are {one_of(sorted(names))}" if names else "it names no images"
            raise ImageError(reference, f"there is no {path}, and no such name in ./pyproject.toml ({known})")
        reference = path
    return reference, resolve_reference(reference, names=names, directory=directory)


def _image_names(pyproject: str) -> dict[str, str]:
    try:
        return read_image_names(pyproject)
    except SpecError as error:
        if isinstance(error.__cause__, OSError):
            raise CrateError(f"cannot read {pyproject}: {error.__cause__.strerror}") from None
        if error.__cause__ is not None:
            raise CrateError(f"{pyproject}: {error.__cause__}") from None
        raise


def open_store(arguments: argparse.Namespace) -> ImageStore:
    """Return the store of images that a command line means.

    :raises ImageError: there is no home directory to keep one in.
    :raises HostError: the range of ids that is asked for is not to be had.
    """
    root = os.path.expanduser(arguments.store) if arguments.store else default_store_root(os.environ)
    ranged = arguments.id_map == "range" and not capabilities.can_mount()
    return store_at(os.path.abspath(root), ranged=ranged)
