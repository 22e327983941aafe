"""Hermetic pytest tests with kernel-enforced resource limits."""

from __future__ import annotations

from pytest_crate.errors import CrateError, HostError, ImageError, SandboxError, SpecError
from pytest_crate.result import CrateResult, Exit
from pytest_crate.spec import CrateSpec, Mount
from pytest_crate.usage import Usage

__version__ = "0.1.0"

__all__ = [
    "CrateError",
    "CrateResult",
    "CrateSpec",
    "Exit",
    "HostError",
    "ImageError",
    "Mount",
    "SandboxError",
    "SpecError",
    "Usage",
]
