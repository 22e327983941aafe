"""Errors say what happened, where, and what mends it."""

from __future__ import annotations

import errno

import pytest

from pytest_crate.errors import CrateError, HostError, ImageError, SandboxError, SpecError, one_of


def test_a_refused_system_call_is_named() -> None:
    """Step, call, path and errno are in the message."""
    error = SandboxError("mount /proc", syscall="mount", path="proc -> /proc", errno=errno.EPERM)
    assert str(error) == "mount /proc: mount(proc -> /proc): Operation not permitted (errno 1)"


def test_a_step_without_a_call_has_its_detail() -> None:
    """Where no system call failed, the detail stands for it."""
    assert str(SandboxError("build the crate", detail="init ended")) == "build the crate: init ended"


def test_a_sandbox_error_crosses_processes() -> None:
    """It is the same error after a round trip as builtins."""
    error = SandboxError("join", syscall="write", path="/x", errno=errno.EBUSY, detail="value '0'")
    again = SandboxError.from_json(error.to_json())
    assert (str(again), again.errno, again.path) == (str(error), errno.EBUSY, "/x")


def test_a_hint_is_on_a_line_of_its_own() -> None:
    """The command that mends it can be copied."""
    assert str(HostError("no cgroup", hint="sudo true")) == "no cgroup\nTo mend it: sudo true"
    assert str(HostError("no cgroup")) == "no cgroup"


@pytest.mark.parametrize(
    "error",
    [
        HostError("x"),
        ImageError("r", "x"),
        SandboxError("x"),
        SpecError(origin="o", key="k", value=1, expected="e"),
    ],
)
def test_all_are_crate_errors(error: Exception) -> None:
    """One except clause catches all that we raise on purpose."""
    assert isinstance(error, CrateError)


@pytest.mark.parametrize(
    ("choices", "text"), [(["a"], "'a'"), (["a", "b"], "'a' or 'b'"), (["a", "b", "c"], "'a', 'b' or 'c'"), ([], "")]
)
def test_choices_in_words(choices: list[str], text: str) -> None:
    """Choices are quoted and joined as in a sentence."""
    assert one_of(choices) == text
