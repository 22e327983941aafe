"""An init that takes a second before it asks for a signal at its launcher's end: imported by a launcher."""

from __future__ import annotations

import os
import time
from pathlib import Path

from pytest_crate.kernel import calls, libc


def install(begun: str, way: str) -> None:
    """Make this launcher's inits slow.

    :param begun: a file that is made when one waits.
    :param way: ``born``, or ``forked`` as where there is no compiler.
    """
    named = libc.name_process
    assert way == "forked" or calls.works()

    def wait_first(name: str, *, call: libc.Caller = libc.syscall) -> None:
        named(name, call=call)
        if name != "crate-init":
            return
        path, flags = os.fsencode(begun), os.O_WRONLY | os.O_CREAT
        if way == "forked":
            Path(begun).touch()
            time.sleep(1)
        else:
            call("tell the test", "close", call("tell the test", "openat", libc.AT_FDCWD, path, flags, 0o600))
            call("wait", "ppoll", None, 0, libc.Words((1, 0)), None, 0)

    libc.name_process = wait_first
    if way == "forked":
        calls.works = lambda: False
