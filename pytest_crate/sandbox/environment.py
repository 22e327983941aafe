"""The environment variables that a payload gets."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_crate.spec import CrateSpec

_MINIMAL = ("HOME", "LANG", "LANGUAGE", "LOGNAME", "PATH", "PWD", "SHELL", "TERM", "TZ", "USER", "VIRTUAL_ENV")
_MINIMAL_PREFIXES = ("LC_", "PYTEST_", "PYTHON")
_IMAGE = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
# What tells a program about the terminal and the time, which are the same inside.
_IMAGE_KEEPS = ("TERM", "COLORTERM", "NO_COLOR", "TZ")


def payload_environment(spec: CrateSpec, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the given environment, or with ``clean_env`` the minimal part of it, changed by the spec's variables."""
    kept = dict(environ)
    if spec.clean_env:
        kept = {
            name: value for name, value in environ.items() if name in _MINIMAL or name.startswith(_MINIMAL_PREFIXES)
        }
    return _changed(kept, spec)


def program_environment(spec: CrateSpec, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a program: on the host's root as a body's; on an image, the image's own affair.

    The host's PATH or HOME mean nothing on another root filesystem: as in Docker, a program gets the usual PATH,
    and HOME and USER from the image's user database.
    """
    if spec.image is None:
        return payload_environment(spec, environ)
    return _changed(_IMAGE | {name: environ[name] for name in _IMAGE_KEEPS if name in environ}, spec)


def _changed(environ: dict[str, str], spec: CrateSpec) -> dict[str, str]:
    for name, value in spec.env:
        if value is None:
            environ.pop(name, None)
        else:
            environ[name] = value
    return environ
