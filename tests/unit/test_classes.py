"""A class is found by its name where modules and classes hold it; nothing is run to find it."""

from __future__ import annotations

import sys
import tracemalloc
from types import ModuleType
from typing import NoReturn

import pytest

from pytest_crate.plugin import classes


class Outer:
    class Inner(UserWarning):
        pass


class Loads:
    """What has an attribute for every name, as ctypes.cdll."""

    def __getattr__(self, name: str) -> NoReturn:
        raise AssertionError(f"{name} was asked for")


class Meta(type):
    def __getattr__(cls, name: str) -> NoReturn:
        raise AssertionError(f"{name} was asked for")


class Lazy(ModuleType):
    def __getattribute__(self, name: str) -> NoReturn:
        raise AssertionError(f"{name} was asked for")


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> str:
    made = ModuleType("crate_made")
    made.loads = Loads()  # type: ignore[attr-defined]
    made.Asked = Meta("Asked", (Exception,), {})  # type: ignore[attr-defined]
    made.__getattr__ = Loads().__getattr__  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "crate_made", made)
    monkeypatch.setitem(sys.modules, "crate_lazy", Lazy("crate_lazy"))
    monkeypatch.setitem(sys.modules, "crate_none", None)
    monkeypatch.setitem(sys.modules, "crate_loads", Loads())
    return "crate_made"


def test_what_is_there() -> None:
    """At the top of a module, and in a class."""
    assert classes.find("builtins:OSError", BaseException) is OSError
    assert classes.find(classes.name_of(Outer.Inner), Warning) is Outer.Inner
    assert classes.find("builtins:OSError", Warning) is None
    assert classes.find("os:system", object) is None


@pytest.mark.parametrize(
    "name",
    [
        "crate_made:loads./no/such/library",
        "crate_made:loads.x.y",
        "crate_made:Asked.inner",
        "crate_made:missing",
        "crate_made:",
        "crate_lazy:x",
        "crate_none:x",
        "crate_loads:x",
        "no.such:x",
        "",
        "builtins:OSError.__init__.__globals__",
        "builtins:OSError.args",
    ],
)
def test_what_is_not(module: str, name: str) -> None:
    """Of any other name there is none, whatever the name would do."""
    assert classes.find(name, BaseException) is None


def test_of_a_module() -> None:
    """A class in another, and one that goes by another's name, is not what its module has by that name."""
    assert classes.is_of_a_module(UserWarning)
    assert not classes.is_of_a_module(Outer.Inner)
    assert not classes.is_of_a_module(type("system", (UserWarning,), {"__module__": "os"}))
    assert not classes.is_of_a_module(type("UserWarning", (UserWarning,), {"__module__": "builtins"}))


def test_a_name_without_end() -> None:
    """A name that takes many times its length apart is nobody's."""
    name = "builtins:" + "." * (7 << 20)
    tracemalloc.start()
    try:
        assert classes.find(name, object) is None
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
