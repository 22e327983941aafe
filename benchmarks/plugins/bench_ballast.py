"""Makes pytest as big as a test suite can be: memory of its own, in small pages."""

from __future__ import annotations

import mmap
import os
import resource

import pytest

_BALLAST = pytest.StashKey[mmap.mmap]()


def pytest_configure(config: pytest.Config) -> None:
    wanted = int(os.environ["BENCH_RSS_MB"]) << 20
    missing = wanted - _resident_bytes()
    if missing <= 0:
        return
    # Private, as a program's heap is, and no huge pages: a heap of small objects has few, and a fork copies the
    # entry of each page (mmap(2), madvise(2)).
    ballast = mmap.mmap(-1, missing, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    ballast.madvise(mmap.MADV_NOHUGEPAGE)
    for offset in range(0, missing, resource.getpagesize()):
        ballast[offset] = 1
    config.stash[_BALLAST] = ballast


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
