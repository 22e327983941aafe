from __future__ import annotations

import json
import sys

import pytest


@pytest.mark.crate(memory="128m", pids=32, timeout=10)
def test_a_stream_is_never_held_in_memory():
    records = (json.loads(f'{{"id": {number}}}') for number in range(100_000))
    assert sum(record["id"] for record in records) == 4_999_950_000


def test_converter(crate_sandbox):
    crate_sandbox.write_text("/tmp/in.json", '{"answer": 42}')
    done = crate_sandbox.run([sys.executable, "-m", "json.tool", "/tmp/in.json"])
    assert done.returncode == 0
    assert '"answer": 42' in done.stdout
