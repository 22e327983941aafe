"""What an image's reference means: a name from pyproject.toml, or a path."""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Mapping

from pytest_crate.errors import ImageError, SpecError, one_of

TABLE = "tool.pytest-crate.images"
"""The table of pyproject.toml that maps images' names to paths."""

_PATH_STARTS = (".", "/", "~")


def read_image_names(pyproject: str) -> dict[str, str]:
    """Return the images that a project names, with absolute paths; none if it has no such file or table.

    :param pyproject: path of the project's pyproject.toml, which the paths in it are relative to.
    :raises SpecError: the file can't be read or parsed, or the table is not one of names and paths.
    """
    try:
        with open(pyproject, "rb") as file:
            data: object = tomllib.load(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:  # ValueError: both what is no TOML and what is no UTF-8
        raise SpecError(origin=pyproject, key=TABLE, value=str(error), expected="a readable TOML file") from error
    for key in TABLE.split("."):
        if not isinstance(data, dict):
            raise SpecError(origin=pyproject, key=TABLE, value=data, expected="a table of names and paths")
        data = data.get(key, {})
    if not isinstance(data, dict):
        raise SpecError(origin=pyproject, key=TABLE, value=data, expected="a table of names and paths")
    directory = os.path.dirname(os.path.abspath(pyproject))
    names: dict[str, str] = {}
    for name, path in data.items():
        if not name or name.startswith(_PATH_STARTS):
            raise SpecError(
                origin=pyproject,
                key=TABLE,
                value=name,
                expected=f"a name that does not start with {one_of(_PATH_STARTS)}",
            )
        if not isinstance(path, str) or not path or "\0" in path:
            raise SpecError(origin=pyproject, key=f"{TABLE}.{name}", value=path, expected="a path")
        names[name] = _absolute(path, directory)
    return names


def resolve_reference(reference: str, *, names: Mapping[str, str], directory: str) -> str:
    """Return the absolute path of the archive or directory that a reference means.

    It is there and may be read; whether it holds a root filesystem is not looked at. Cheap enough for collection.

    :param names: images by name, from :func:`read_image_names`.
    :param directory: what a relative path is relative to.
    :raises ImageError: nothing has this name, or it can't be read; it says how to name an image.
    """
    if reference in names:
        path = names[reference]
    elif reference.startswith(_PATH_STARTS):
        path = _absolute(reference, directory)
    else:
        raise ImageError(reference, _unknown(reference, names, directory))
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        where = "" if path == reference else f"{path}: "
        advice = "; expected the path of a directory or a tar archive" if isinstance(error, FileNotFoundError) else ""
        raise ImageError(reference, f"{where}{getattr(error, 'strerror', error)}{advice}") from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ImageError(reference, f"{path} is neither a file nor a directory")
    if not os.access(path, os.R_OK | os.X_OK if stat.S_ISDIR(mode) else os.R_OK):
        raise ImageError(reference, f"{path}: Permission denied")
    return path


def _unknown(reference: str, names: Mapping[str, str], directory: str) -> str:
    known = f"known names are {one_of(sorted(names))}" if names else "no names are known"
    advice = f'add it to [{TABLE}] in pyproject.toml, as {reference} = "path/to/rootfs.tar.gz"'
    if os.path.exists(os.path.join(directory, reference)):
        advice = f'if you mean the path, write "./{reference}"'
    return f"no image has this name; {known}; {advice}"


def _absolute(path: str, directory: str) -> str:
    return os.path.normpath(os.path.join(directory, os.path.expanduser(path)))
