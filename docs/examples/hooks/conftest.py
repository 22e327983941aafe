from __future__ import annotations

import dataclasses

SPENT = []


def pytest_crate_spec(item, spec):
    """Give tests that are marked slow more time."""
    if item.get_closest_marker("slow") and spec.timeout_usec is not None:
        return dataclasses.replace(spec, timeout_usec=spec.timeout_usec * 10)
    return None


def pytest_crate_usage(item, usage):
    """Note what each crate took."""
    SPENT.append((item.nodeid, usage.cpu_usage_usec))
