"""What other threads of pytest were at when a crate was forked: it has none of them, and what they held stays held."""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType

# Their own locks, such as the one that a waiting thread waits on, are no one else's business.
_MECHANISM = frozenset({"threading", "queue", "concurrent.futures.thread", "socketserver", "selectors"})
_LOCKED = ("<locked ", "<Condition(<locked ")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OtherThread:
    """A thread that a fork leaves behind.

    :ivar name: its name; of a thread that isn't Python's, the kernel's name for it.
    :ivar place: the line of its own code that it was at; empty for one that isn't Python's.
    :ivar locks: names of locks that were locked then and that its code uses.
    """

    name: str
    place: str = ""
    locks: tuple[str, ...] = ()

    def __str__(self) -> str:
        facts = [self.place, f"locked: {', '.join(self.locks)}" if self.locks else ""]
        words = "; ".join(fact for fact in facts if fact)
        return f"{self.name!r} ({words})" if words else f"{self.name!r} (not a thread of Python's)"


def others() -> tuple[OtherThread, ...]:
    """Return the threads of this process but the calling one; cheap where there are none."""
    tasks = os.listdir("/proc/self/task")
    if len(tasks) == 1:
        return ()
    frames = sys._current_frames()
    del frames[threading.get_ident()]
    known = {thread.ident: thread for thread in threading.enumerate()}
    found = []
    foreign = set(map(int, tasks)) - {threading.get_native_id()}
    unknown = 0
    for ident, frame in frames.items():
        thread = known.get(ident)
        # One that was started below threading, by _thread.
        unknown += thread is None
        name = f"thread {ident}" if thread is None else thread.name
        found.append(OtherThread(name=name, place=_place(frame), locks=tuple(dict.fromkeys(_locks(frame)))))
        foreign.discard(0 if thread is None else thread.native_id or 0)
    # Which of the kernel's tasks is such a one can't be told.
    return (*found, *(OtherThread(name=name) for name in list(_names(foreign))[unknown:]))


def left_behind(threads: tuple[OtherThread, ...]) -> str:
    """Return a sentence on the threads that a crate which hangs may be waiting for."""
    plural = len(threads) > 1
    return (
        f"{len(threads)} other thread{'s were' if plural else ' was'} alive in pytest when the crate was forked: "
        f"{', '.join(map(str, threads))}. The crate has none of {'them' if plural else 'it'}, and what "
        f"{'they' if plural else 'it'} had locked stays locked in it."
    )


def hold_locks(threads: Iterable[OtherThread]) -> bool:
    """Return whether one of the threads is known to hold a lock."""
    return any(thread.locks for thread in threads)


def _names(tasks: set[int]) -> Iterator[str]:
    for task in sorted(tasks):
        try:
            yield Path(f"/proc/self/task/{task}/comm").read_text(errors="replace").rstrip("\n")
        except (FileNotFoundError, ProcessLookupError):  # ended meanwhile
            continue


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield a thread's frames, the innermost first, without those of the machinery around its own code."""
    while frame is not None:
        if frame.f_globals.get("__name__") not in _MECHANISM:
            yield frame
        frame = frame.f_back


def _place(innermost: FrameType) -> str:
    frame = next(_stack(innermost), innermost)
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno} in {frame.f_code.co_name}"


def _locks(innermost: FrameType) -> Iterator[str]:
    for frame in _stack(innermost):
        code, names = frame.f_code, frame.f_locals
        for name in (*code.co_varnames, *code.co_freevars, *code.co_names):
            if _is_locked(names.get(name, frame.f_globals.get(name))):
                yield name
        # What methods use of their own object.
        first = code.co_varnames[0] if code.co_argcount else ""
        attributes = getattr(names.get(first), "__dict__", {})
        for name in code.co_names:
            if _is_locked(attributes.get(name)):
                yield f"{first}.{name}"


def _is_locked(value: object) -> bool:
    # Only the repr of a re-entrant lock tells whether it is locked (Python < 3.14).
    return type(value).__module__ in ("_thread", "threading") and repr(value).startswith(_LOCKED)
