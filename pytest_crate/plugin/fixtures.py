"""The fixtures that drive crates from a test on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_crate.sandbox.crate_sandbox import CrateSandbox


@pytest.fixture
def crate_sandbox_factory(request: pytest.FixtureRequest) -> Iterator[Callable[..., CrateSandbox]]:
    """Make crates to run programs in: ``crate_sandbox_factory(memory="64m")``, with the marker's keys.

    Keys are taken on top of the test's marker. Every crate ends with the test.
    """
    from pytest_crate.plugin.driving import Driver

    with Driver(request.node) as driver:
        yield driver.make


@pytest.fixture
def crate_sandbox(request: pytest.FixtureRequest) -> Iterator[CrateSandbox]:
    """A crate to run programs in, as the test's ``crate`` marker describes it."""
    from pytest_crate.plugin.driving import Driver

    with Driver(request.node, name="crate_sandbox") as driver:
        yield driver.make()
