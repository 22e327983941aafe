"""Exceptions as builtins: what a test raised in its crate, rebuilt in pytest for plugins that look at it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest

from pytest_crate.plugin import classes, transfer

_MAX_EXCEPTIONS = 50  # in a chain, or a group, or all of them together; the rest is cut

# pytest's outcomes say that they are builtins, for their names to be short.
_OUTCOMES: Mapping[str, type[BaseException]] = {
    "builtins:Failed": pytest.fail.Exception,
    "builtins:Skipped": pytest.skip.Exception,
    "builtins:XFailed": pytest.xfail.Exception,
}


def pack_exception(error: BaseException) -> dict[str, Any]:
    """Return an exception, with its causes and what it groups, as builtins."""
    return _pack(error, [_MAX_EXCEPTIONS])


def _pack(error: BaseException, left: list[int]) -> dict[str, Any]:
    left[0] -= 1
    arguments: tuple[Any, ...] = (object(),)
    with contextlib.suppress(Exception):  # a class of the user's may do anything when it is looked at
        arguments = tuple(error.args)
        if isinstance(error, OSError) and error.filename is not None:
            arguments = (error.errno, error.strerror, error.filename)  # its args are the first two
    packed: dict[str, Any] = {
        "classes": [classes.name_of(kind) for kind in type(error).__mro__],
        "text": transfer.to_text(error),
        "arguments": list(arguments) if all(map(transfer.is_scalar, arguments)) else None,
        "suppress": error.__suppress_context__,
    }
    if isinstance(error, BaseExceptionGroup):
        packed["message"] = error.message
        packed["group"] = [_pack(each, left) for each in error.exceptions[: max(left[0], 1)]]
    if error.__cause__ is not None and left[0] > 0:
        packed["cause"] = _pack(error.__cause__, left)
    elif error.__context__ is not None and left[0] > 0:
        packed["context"] = _pack(error.__context__, left)
    return packed


def unpack_exception(packed: Mapping[str, Any]) -> BaseException:
    """Rebuild an exception that :func:`pack_exception` packed: of its class, if that is known here.

    A class that only the test knows is stood for by one of the same name, below the nearest class that is known.

    :raises ValueError, TypeError, KeyError: it is not such a one.
    """
    return _unpack(packed, [_MAX_EXCEPTIONS])


def _unpack(packed: Mapping[str, Any], left: list[int]) -> BaseException:
    left[0] -= 1
    if left[0] < -_MAX_EXCEPTIONS:
        raise ValueError("there are too many exceptions")
    group = [_unpack(each, left) for each in packed["group"]] if "group" in packed else None
    error = _rebuilt(packed, group)
    if "cause" in packed:
        error.__cause__ = _unpack(packed["cause"], left)
        error.__context__ = error.__cause__
    elif "context" in packed:
        error.__context__ = _unpack(packed["context"], left)
    error.__suppress_context__ = packed["suppress"] is True
    return error


def _rebuilt(packed: Mapping[str, Any], group: list[BaseException] | None) -> BaseException:
    arguments = None if packed["arguments"] is None else tuple(packed["arguments"])
    grouped = (str(packed["message"]), group) if group else None
    return rebuilt([str(name) for name in packed["classes"]], str(packed["text"]), arguments, grouped)


def rebuilt(
    names: Sequence[str],
    text: str,
    arguments: tuple[Any, ...] | None = None,
    grouped: tuple[str, list[BaseException]] | None = None,
) -> BaseException:
    """Return an exception of a class, or of one that stands for it, with that text.

    :param names: :func:`classes.name_of` of the class, and of those above it.
    :param arguments: its own; the text if they aren't known.
    :param grouped: those of a group.
    :raises ValueError: none of them is known.
    """
    for name in names:
        kind = _OUTCOMES.get(name) or classes.find(name, BaseException)
        if kind is None:
            continue
        given: tuple[Any, ...] = (text,) if arguments is None else arguments
        if grouped is not None and issubclass(kind, BaseExceptionGroup):
            given = grouped
        # A class of the user's may ask for what only its constructor's caller knows: then the next one stands for it.
        with contextlib.suppress(Exception):
            error = _made(kind, given, text)
            if name != names[0] or not _says(error, text):
                error = _made(_stand_in(kind, names[0], text), given, text)
            return error
    raise ValueError(f"{names[:1]} is no exception")


def _says(error: BaseException, text: str) -> bool:
    try:
        return transfer.shortened(str(error)) == text
    except BaseException:  # noqa: BLE001 - a class of the user's may raise anything, and would for who asks later
        return False


def _made(kind: type[BaseException], arguments: tuple[Any, ...], text: str) -> BaseException:
    # Neither its constructor nor what it has for a __new__, which may do anything.
    error: BaseException = classes.made_of(kind).__new__(kind, *arguments)
    error.args = arguments[:2] if isinstance(error, OSError) and len(arguments) == 3 else arguments
    if isinstance(error, tuple(_OUTCOMES.values())):
        cast("Any", error).msg, cast("Any", error).pytrace = text, True
    return error


def _stand_in(kind: type[BaseException], name: str, text: str) -> type[BaseException]:
    module, _, path = name.partition(":")
    members = {"__module__": module, "__qualname__": path, "__str__": lambda _: text}
    return type(path.rpartition(".")[2], (kind,), members)
