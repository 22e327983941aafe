"""The least that a plugin can do to run each test in a process of its own: what a crate's price is held against."""

from __future__ import annotations

import gc
import json
import os
from typing import NoReturn

import pytest
from _pytest.runner import runtestprotocol


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reading, writing = os.pipe()
    # Without it the first collection in the child copies every page that holds an object.
    gc.freeze()
    pid = os.fork()
    if pid == 0:
        _be_child(item, writing)
    gc.unfreeze()
    os.close(writing)
    with open(reading, "rb") as stream:
        data = stream.read()
    status = os.waitpid(pid, 0)[1]
    if status or not data:
        raise RuntimeError(f"{item.nodeid}: its process ended with {status}")
    for entry in json.loads(data):
        report = item.config.hook.pytest_report_from_serializable(config=item.config, data=entry)
        if isinstance(report.longrepr, list):  # a skip's reason is a tuple, which JSON doesn't know
            report.longrepr = tuple(report.longrepr)
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _be_child(item: pytest.Item, writing: int) -> NoReturn:
    status = 1
    try:
        reports = runtestprotocol(item, log=False)
        data = [item.config.hook.pytest_report_to_serializable(config=item.config, report=each) for each in reports]
        with open(writing, "wb") as stream:
            stream.write(json.dumps(data, default=str).encode())
        status = 0
    finally:
        os._exit(status)
