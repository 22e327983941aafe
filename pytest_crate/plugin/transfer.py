"""Reports as builtins, so that they can cross from a crate to pytest."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from pytest_crate.plugin import private
from pytest_crate.sandbox import wire

MAX_TEXT_CHARACTERS = 4 << 20
"""A longer text, such as a 50 MB assertion message, is cut in the middle on its way out of a crate."""

REFUSED = (
    AttributeError, LookupError, TypeError, ValueError, OverflowError, RecursionError, AssertionError,
)  # fmt: skip
"""What is raised where a child's word is taken apart, here and elsewhere, and isn't what it should be."""

_DRAWN = "crate_drawn"
_MAX_NAME = 500  # a longer text is a message
_MAX_ITEMS = 1 << 18  # a longer list is cut where its message is too long
_MAX_DEPTH = wire.MAX_DEPTH // 2  # what is deeper is text
_MAX_BITS = 2048  # fewer digits than the least that Python may have been told to read (sys.int_info)
_LEAST_INT = -(1 << 31)
_MOST_SECONDS = 1 << 40  # since 1970; not-a-number is no less
_SENT_ON = ("logged", "report", "properties")


def is_scalar(value: object) -> bool:
    """Whether JSON holds the value as it is: a text, a number that is not too long, a bool, None."""
    if isinstance(value, int):
        return value.bit_length() <= _MAX_BITS
    return value is None or isinstance(value, (float, str))


def to_builtins(value: object, depth: int = _MAX_DEPTH) -> Any:
    """Return the value with everything that JSON can't hold replaced by its ``repr``.

    :param depth: how many levels of it may nest; a deeper one is replaced, too.
    """
    if isinstance(value, str):
        return shortened(value)
    if is_scalar(value):
        return value
    if isinstance(value, int):
        return _number_as_text(value)
    if depth and isinstance(value, Mapping):
        return {str(key): to_builtins(item, depth - 1) for key, item in value.items()}
    if depth and isinstance(value, (list, tuple, set, frozenset)):
        return [to_builtins(item, depth - 1) for item in value]
    return _described(value, repr)


def _number_as_text(number: int) -> str:
    try:
        return int.__repr__(number)
    except ValueError:  # more digits than Python may have been told to write
        return shortened(hex(number))


def to_text(value: object) -> str:
    """Return ``str`` of any value, as long as it may be, whatever its class does."""
    return _described(value, str)


def _described(value: object, describe: Callable[[object], str]) -> str:
    try:
        return shortened(describe(value))
    except BaseException as error:  # noqa: BLE001 - a user's __repr__ may do anything
        return f"<{type(value).__name__} object, whose {describe.__name__} raised {type(error).__name__}>"


def properties_to_builtins(properties: Iterable[tuple[str, object]]) -> list[tuple[str, Any]]:
    """Return ``user_properties`` with what JSON can't hold replaced by its ``str``, which is what JUnit XML shows."""
    return [
        (str(name), to_builtins(value) if isinstance(value, int) or _is_json(value) else _described(value, str))
        for name, value in properties
    ]


def _is_json(value: object, depth: int = _MAX_DEPTH // 2) -> bool:
    """Whether the value is the same when it comes from JSON."""
    kind = type(value)
    if kind is list:
        return depth > 0 and all(_is_json(item, depth - 1) for item in cast("list[object]", value))
    if kind is dict:
        items = cast("dict[object, object]", value).items()
        return depth > 0 and all(type(key) is str and _is_json(item, depth - 1) for key, item in items)
    return kind in (type(None), bool, int, float, str) and is_scalar(value)


def unpack_properties(properties: Iterable[tuple[object, Any]]) -> list[tuple[str, Any]]:
    """Return ``user_properties`` with names that JUnit XML can hold: pytest sees only to their values."""
    return [(private.xml_text(name), value) for name, value in properties]


def refusal(error: BaseException) -> str:
    """Return what is said of a child's word that was refused; that may be quoted in the error, however long it is."""
    told = f"{type(error).__name__}({shortened(str(error), _MAX_NAME)!r})"
    return f"the test wrote to its report's descriptor what is no report: {told}"


def encodable(value: Any, *, numbers: bool = False) -> Any:
    """Return builtins whose texts can be encoded: a lone surrogate becomes its escape.

    :param numbers: one below those of 32 bits becomes a text.
    """
    if isinstance(value, dict):
        return {encodable(key): encodable(item, numbers=numbers) for key, item in value.items()}
    if isinstance(value, list):
        return [encodable(item, numbers=numbers) for item in value]
    if numbers and isinstance(value, int) and value < _LEAST_INT:
        return str(value)
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def carried(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message of which a report can go on to pytest-xdist's controller, by execnet.

    That takes no lone surrogate, and packs every number below 1 << 31 into 32 bits (gateway_base.py, _Serializer).
    """
    return {name: encodable(part, numbers=name in _SENT_ON) for name, part in message.items()}


def shortened(text: str, most: int = MAX_TEXT_CHARACTERS) -> str:
    """Return a text that is no longer than that: its middle is cut."""
    # Lone surrogates survive JSON's escapes; str subclasses don't matter here.
    if len(text) <= most:
        return str(text)
    half = most // 2
    cut = len(text) - 2 * half
    return f"{text[:half]}\n[... {cut} characters cut by pytest-crate ...]\n{text[-half:]}"


def fitted(message: Mapping[str, Any], max_bytes: int) -> dict[str, Any]:
    """Return a message of builtins that takes no more memory than that: long texts and lists lose their middle."""
    fitting = dict(message)
    texts, items = MAX_TEXT_CHARACTERS, _MAX_ITEMS
    while wire.cost_bytes(wire.encode(fitting)) > max_bytes and texts > _MAX_NAME:
        texts, items = texts // 2, items // 2
        fitting = _cut(fitting, texts, items)
    return fitting


def _cut(value: Any, texts: int, items: int) -> Any:
    if isinstance(value, str):
        return shortened(value, texts)
    if isinstance(value, dict):
        return {key: _cut(item, texts, items) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        if len(value) > items:
            half, cut = items // 2, len(value) - items // 2 * 2
            # The lines of a traceback; what isn't a text, such as a warning, can't say that others are missing.
            lines = [f"[... {cut} lines cut by pytest-crate ...]"] if isinstance(value[0], str) else []
            value = [*value[:half], *lines, *value[len(value) - half :]]
        return [_cut(item, texts, items) for item in value]
    return value


def pack_report(config: pytest.Config, report: pytest.TestReport) -> dict[str, Any]:
    """Return a report as builtins, through pytest's own hook, so that a plugin's kind of report keeps its kind."""
    data = config.hook.pytest_report_to_serializable(config=config, report=report)
    data["user_properties"] = properties_to_builtins(report.user_properties)
    failure = report.longrepr
    if hasattr(failure, "toterminal") and isinstance(data["longrepr"], str):
        data[_DRAWN] = [private.drawn(failure, colours=colours) for colours in (False, True)]
    packed: dict[str, Any] = to_builtins(data)
    return packed


def unpack_report(config: pytest.Config, data: Mapping[str, Any]) -> pytest.TestReport:
    """Rebuild a report that :func:`pack_report` wrote.

    :raises AttributeError, KeyError, TypeError, ValueError, AssertionError: it is not such a one.
    """
    # from_serializable takes what it is given apart: it gets a copy.
    copied = _copy({name: value for name, value in data.items() if name not in private.GIVEN_IN_PYTEST})
    drawn = copied.pop(_DRAWN, None)
    report: pytest.TestReport = config.hook.pytest_report_from_serializable(config=config, data=copied)
    private.show_subtest_parameters(report, data)
    # JSON has no tuples; pytest and junitxml take these apart as such.
    if isinstance(report.longrepr, list):
        path, line, reason = report.longrepr
        report.longrepr = (path, line, reason)
    if report.failed and report.longrepr is None:
        report.longrepr = ""  # a hook made a failure of what had passed: junitxml insists on a text
    private.leave_long_source_plain(report.longrepr)
    if drawn is not None and isinstance(report.longrepr, str):
        plain, coloured = drawn
        if not (isinstance(plain, str) and isinstance(coloured, str)):
            raise ValueError("a failure that is drawn in no text")
        report.longrepr = _Drawn(plain, coloured)  # type: ignore[assignment]
    report.location = tuple(report.location)  # type: ignore[assignment]
    report.user_properties = unpack_properties(report.user_properties)
    report.sections = [(str(name), str(text)) for name, text in report.sections]
    _verify(report)
    return report


class _Drawn:
    """A failure that is no traceback, such as a doctest's or a missing fixture's, as it looks on the terminal."""

    def __init__(self, plain: str, coloured: str) -> None:
        self._plain, self._coloured = plain, coloured

    def __str__(self) -> str:
        return self._plain.strip()

    def toterminal(self, writer: Any) -> None:
        """Draw it, as pytest has its own representations draw themselves."""
        writer.write(self._coloured if writer.hasmarkup else self._plain)


def _verify(report: pytest.TestReport) -> None:
    """Refuse what pytest's own reporters would stumble over: with a traceback of theirs the whole run would end.

    :raises ValueError: it is not a report as pytest makes them.
    """
    path, line, domain = report.location
    reason = report.longrepr
    ours: Any = report
    numbers = [getattr(ours, name, 0) for name in ("duration", "start", "stop")]
    if not (
        isinstance(report, pytest.TestReport)
        and all(isinstance(text, str) for text in (report.nodeid, report.when, path, domain))
        and (report.when in ("setup", "call", "teardown") and report.outcome in ("passed", "failed", "skipped"))
        and (line is None or isinstance(line, int))
        and isinstance(report.keywords, dict)
        and all(isinstance(number, (int, float)) and abs(number) < _MOST_SECONDS for number in numbers)
        and isinstance(getattr(ours, "wasxfail", ""), str)
        and (reason is None or isinstance(reason, (str, tuple)) or hasattr(reason, "toterminal"))
        # An attribute that hides a method, so that it can't be called any more.
        and not any(callable(getattr(type(report), name, None)) for name in vars(report))
    ):
        raise ValueError("a report with parts that none has")
    if isinstance(reason, tuple):
        place, number, text = reason
        if not (isinstance(place, str) and isinstance(number, int) and isinstance(text, str)):
            raise ValueError(f"a reason to skip that is none: {reason!r}")
    elif report.skipped and not hasattr(report, "wasxfail"):
        raise ValueError(f"no reason to skip: {reason!r}")
    elif reason is not None:
        crash = getattr(reason, "reprcrash", None)
        if crash is not None and not (
            isinstance(crash.path, str) and isinstance(crash.lineno, int) and isinstance(crash.message, str)
        ):
            raise ValueError("a crash that is at no place")
        try:
            _ = report.longreprtext
        except Exception as error:
            raise ValueError(f"a failure that can't be shown: {error!r}") from error


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {sys.intern(key): _copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    # pytest keeps every report: the names in the three of a test, and in all of a file, are kept once.
    return sys.intern(value) if isinstance(value, str) and len(value) < _MAX_NAME else value


_STOPS = ("shouldstop", "shouldfail")


def pack_stops(session: pytest.Session) -> dict[str, str | bool]:
    """Return what a session has been told of its end: why, by the attribute, or True without a reason."""
    found = {name: getattr(session, name) for name in _STOPS}
    return {name: why if isinstance(why, bool) else to_text(why) for name, why in found.items() if why}


def unpack_stops(session: pytest.Session, packed: Mapping[str, Any]) -> None:
    """Tell a session the same.

    :raises ValueError: it is not what :func:`pack_stops` makes.
    """
    for name, why in packed.items():
        if name not in _STOPS or not (why is True or isinstance(why, str)):
            raise ValueError(f"{name!r}: {why!r}")
        if not getattr(session, name):
            setattr(session, name, why)


def pack_values(values: Mapping[str, object]) -> dict[str, Any]:
    """Return those values of fixtures that are plain enough to be had outside: numbers, short texts, paths."""
    packed: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Path):
            packed[name] = {"path": str(value)}
        elif type(value) is str:
            if len(value) < _MAX_NAME:
                packed[name] = {"value": value}
        elif type(value) in (type(None), bool, int, float) and is_scalar(value):
            packed[name] = {"value": value}
    return packed


def unpack_values(packed: Mapping[str, Any]) -> dict[str, object]:
    """Return the values that :func:`pack_values` packed."""
    return {name: Path(data["path"]) if "path" in data else data["value"] for name, data in packed.items()}
