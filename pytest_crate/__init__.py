"""Hermetic pytest tests with kernel-enforced resource limits."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_crate.errors import CrateError as CrateError
    from pytest_crate.errors import HostError as HostError
    from pytest_crate.errors import ImageError as ImageError
    from pytest_crate.errors import SandboxError as SandboxError
    from pytest_crate.errors import SpecError as SpecError
    from pytest_crate.result import CrateResult as CrateResult
    from pytest_crate.result import Exit as Exit
    from pytest_crate.sandbox.crate_sandbox import CrateSandbox as CrateSandbox
    from pytest_crate.sandbox.program import CompletedRun as CompletedRun
    from pytest_crate.sandbox.program import CratePopen as CratePopen
    from pytest_crate.sandbox.program import OutputTooLong as OutputTooLong
    from pytest_crate.sandbox.program import ProgramFailed as ProgramFailed
    from pytest_crate.spec import CrateSpec as CrateSpec
    from pytest_crate.spec import Mount as Mount
    from pytest_crate.usage import Usage as Usage

__version__ = "0.1.0"

# Imported at first use (PEP 562): pytest loads this package in every run, whether a test has a crate or not.
_HOMES = {
    "CompletedRun": "sandbox.program",
    "CrateError": "errors",
    "CratePopen": "sandbox.program",
    "CrateResult": "result",
    "CrateSandbox": "sandbox.crate_sandbox",
    "CrateSpec": "spec",
    "Exit": "result",
    "HostError": "errors",
    "ImageError": "errors",
    "Mount": "spec",
    "OutputTooLong": "sandbox.program",
    "ProgramFailed": "sandbox.program",
    "SandboxError": "errors",
    "SpecError": "errors",
    "Usage": "usage",
}

__all__ = [*_HOMES]  # noqa: PLE0604 - strings, all of them


def __getattr__(name: str) -> object:
    if name in _HOMES:
        value: object = getattr(import_module(f"pytest_crate.{_HOMES[name]}"), name)
        return value
    raise AttributeError(f"module 'pytest_crate' has no attribute {name!r}")
