"""The hooks that pytest-crate offers to conftest files and other plugins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_crate.spec import CrateSpec
    from pytest_crate.usage import Usage


@pytest.hookspec(firstresult=True)
def pytest_crate_spec(item: pytest.Item, spec: CrateSpec) -> CrateSpec | None:
    """Adjust the spec of a test's crate, once, after collection.

    :returns: another spec, or None to leave it as it is. The first answer that isn't None counts.
    """


@pytest.hookspec
def pytest_crate_usage(item: pytest.Item, usage: Usage) -> None:
    """Observe what one of a test's crates used; called in the process that runs the test, once per crate."""


@pytest.hookspec(firstresult=True)
def pytest_crate_image_source(reference: str) -> str | None:
    """Say where an image is.

    :returns: the path of a directory or an archive, or None if this plugin doesn't know the reference.
    """
