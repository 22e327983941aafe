"""Exceptions cross from a crate as builtins, and are of the class that they were, if it is known."""

from __future__ import annotations

import json
import subprocess
from typing import Any, Self

import pytest

from pytest_crate.plugin import raised


def _crossed(error: BaseException) -> BaseException:
    return raised.unpack_exception(json.loads(json.dumps(raised.pack_exception(error))))


class Asks(Exception):
    """Can't be made without what its caller knows."""

    def __new__(cls, number: int, *, why: str) -> Self:
        del number, why
        return super().__new__(cls)

    def __init__(self, number: int, *, why: str) -> None:
        super().__init__(object())
        self.text = f"{number}: {why}"

    def __str__(self) -> str:
        return self.text


@pytest.mark.parametrize(
    "error",
    [
        ValueError("text"),
        KeyError("key"),
        OSError(2, "No such file or directory"),
        FileNotFoundError(2, "No such file or directory", "/no/such"),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "why"),
        subprocess.CalledProcessError(3, ["false"]),
        Asks(1, why="because"),
        AssertionError(),
        pytest.fail.Exception("failed"),
        pytest.skip.Exception("skipped"),
        pytest.xfail.Exception("known"),
        ExceptionGroup("several", [ValueError("one"), ExceptionGroup("inner", [KeyError("two")])]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_class_and_text(error: BaseException) -> None:
    """Class, name and text are the same; arguments, if they are builtins."""
    crossed = _crossed(error)
    assert str(crossed) == str(error)
    assert (type(crossed).__name__, type(crossed).__module__) == (type(error).__name__, type(error).__module__)
    if not isinstance(error, Asks):
        assert isinstance(crossed, type(error))
    if isinstance(error, OSError):
        assert (crossed.args, getattr(crossed, "errno", None)) == ((2, "No such file or directory"), 2)
        assert getattr(crossed, "filename", None) == error.filename
    if isinstance(error, ExceptionGroup):
        assert isinstance(crossed, ExceptionGroup)
        assert [type(each) for each in crossed.exceptions] == [ValueError, ExceptionGroup]


def test_class_of_the_test_alone() -> None:
    """A class that is not known by its name is stood for by one of that name, below its nearest known base."""

    class Local(LookupError):
        pass

    crossed = _crossed(Local("here"))
    assert isinstance(crossed, LookupError)
    assert type(crossed).__qualname__ == Local.__qualname__
    assert not isinstance(crossed, Local)


def test_chains() -> None:
    """Cause, context and ``from None`` are kept."""
    error = ValueError("outer")
    error.__cause__ = KeyError("inner")
    assert isinstance(_crossed(error).__cause__, KeyError)
    error = ValueError("alone")
    error.__context__, error.__suppress_context__ = KeyError("hidden"), True
    crossed = _crossed(error)
    assert isinstance(crossed.__context__, KeyError)
    assert crossed.__suppress_context__


def test_without_end() -> None:
    """A chain that is long, or bites its tail, is cut."""
    first = error = ValueError("0")
    for number in range(1, 500):
        error.__context__ = ValueError(str(number))
        error = error.__context__
    error.__context__ = first
    crossed: BaseException | None = _crossed(first)
    count = 0
    while crossed is not None:
        crossed, count = crossed.__context__, count + 1
    assert count == 50


@pytest.mark.parametrize(
    "packed",
    [
        {},
        {"classes": [], "text": "", "arguments": None, "suppress": False},
        {"classes": ["os:system"], "text": "", "arguments": ["true"], "suppress": False},
        {"classes": ["builtins:int", "builtins:object"], "text": "", "arguments": ["1"], "suppress": False},
    ],
)
def test_forged(packed: dict[str, Any]) -> None:
    """What is no exception is none."""
    with pytest.raises((KeyError, ValueError, IndexError)):
        raised.unpack_exception(packed)


class Hostile(OSError):
    """Raises whatever of it is looked at."""

    @property
    def args(self) -> tuple[object, ...]:  # type: ignore[override]
        raise ZeroDivisionError

    @property
    def filename(self) -> str:
        raise ZeroDivisionError

    def __str__(self) -> str:
        raise ZeroDivisionError


def test_an_exception_that_can_not_be_looked_at() -> None:
    """It crosses by its class, with a text that says so."""
    crossed = _crossed(Hostile())
    assert type(crossed).__name__ == "Hostile"
    assert "Hostile" in str(crossed)


class Counted(Exception):
    """Counts how often it is made."""

    made = 0

    def __new__(cls, *args: object) -> Self:
        cls.made += 1
        return super().__new__(cls, *args)

    def __init__(self, *args: object) -> None:
        type(self).made += 1
        super().__init__(*args)


def test_nothing_of_a_class_is_run_to_make_it() -> None:
    """Its arguments are what a test has sent: neither its constructor gets them nor its __new__."""
    packed = raised.pack_exception(Counted("one", 2))
    made = Counted.made
    crossed = raised.unpack_exception(packed)
    assert Counted.made == made
    assert isinstance(crossed, Counted)
    assert crossed.args == ("one", 2)


class Exits(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt


def test_a_text_that_ends_everything() -> None:
    """An exception whose text can't be had, for whatever reason, is one like any other."""
    crossed = _crossed(Exits())
    assert str(crossed) == "<Exits object, whose str raised KeyboardInterrupt>"
