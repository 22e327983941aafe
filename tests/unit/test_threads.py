"""What is told of the threads that a fork leaves behind."""

from __future__ import annotations

import _thread
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pytest_crate.plugin import threads
from pytest_crate.plugin.threads import OtherThread

SHARED = threading.RLock()
CONDITION = threading.Condition()


@contextmanager
def running(start: bool) -> Iterator[threading.Event]:
    """Run a thread that holds SHARED until the block ends, started by threading or below it."""
    held, done, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        with SHARED, CONDITION:
            held.set()
            done.wait()
        ended.set()

    if start:
        threading.Thread(target=work, name="worker", daemon=True).start()
    else:
        _thread.start_new_thread(work, ())
    held.wait()
    try:
        yield done
    finally:
        done.set()
        ended.wait()


def told(before: tuple[OtherThread, ...]) -> OtherThread:
    (found,) = set(threads.others()) - set(before)
    return found


def test_a_thread_that_holds_a_lock() -> None:
    """Its name, the line of its own code rather than the one in threading, and the lock by the name its code uses."""
    before = threads.others()
    with running(start=True):
        found = told(before)
    assert (found.name, found.locks) == ("worker", ("SHARED", "CONDITION"))
    assert found.place.startswith("test_threads.py:")
    assert found.place.endswith(" in work")


def test_a_thread_below_threading() -> None:
    """One started by _thread is Python's, too."""
    before = threads.others()
    with running(start=False):
        found = told(before)
    assert (found.name.partition(" ")[0], found.locks) == ("thread", ("SHARED", "CONDITION"))


def test_words() -> None:
    """One thread and several, with and without a place, each in a sentence."""
    python = OtherThread(name="a", place="x.py:1 in f", locks=("L", "self.m"))
    assert threads.left_behind((python,)) == (
        "1 other thread was alive in pytest when the crate was forked: 'a' (x.py:1 in f; locked: L, self.m). "
        "The crate has none of it, and what it had locked stays locked in it."
    )
    assert threads.left_behind((python, OtherThread(name="blas"))).startswith(
        "2 other threads were alive in pytest when the crate was forked: 'a' (x.py:1 in f; locked: L, self.m), "
        "'blas' (not a thread of Python's). The crate has none of them"
    )
