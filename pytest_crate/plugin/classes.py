"""Classes by the names that a crate tells: found among those that this process has, without running anything."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, TypeVar

Class = TypeVar("Class")

_MOST_CHARACTERS = 1000  # of a name: a longer one takes many times its length apart, and is nobody's
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE (Include/object.h): made by a class statement, or as if by one


def name_of(kind: type) -> str:
    """Return the name that :func:`find` finds a class by."""
    return f"{kind.__module__}:{kind.__qualname__}"


def find(name: str, base: type[Class]) -> type[Class] | None:
    """Return the class of a name, if it is loaded here and below a base; None if not.

    The name may be any text. So it is looked for in what modules and classes hold, and not by getattr(), by which an
    attribute of ctypes.cdll is a library to be loaded.
    """
    if len(name) > _MOST_CHARACTERS:
        return None
    module, _, path = name.partition(":")
    holder: Any = sys.modules.get(module)
    if not issubclass(type(holder), ModuleType):
        return None
    held = ModuleType.__getattribute__(holder, "__dict__")  # without waking a module that is loaded when it is used
    for part in path.split("."):
        holder = held.get(part)
        if not issubclass(type(holder), type):
            return None
        held = type.__getattribute__(holder, "__dict__")
    return holder if issubclass(holder, base) else None


def is_of_a_module(kind: type) -> bool:
    """Tell whether a class is the one that its module has by its name, so that others find it there, too."""
    return "." not in kind.__qualname__ and kind.__qualname__ == kind.__name__ and find(name_of(kind), kind) is kind


def made_of(kind: type) -> Any:
    """Return the class whose instances those of a class are made of in memory: one of the interpreter's own."""
    while kind.__flags__ & _HEAP_TYPE and kind.__base__ is not None:
        kind = kind.__base__
    return kind
