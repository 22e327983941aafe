"""The exceptions a user of pytest-crate can meet."""

from __future__ import annotations

import os
from collections.abc import Iterable


class CrateError(Exception):
    """Base of every error that pytest-crate raises on purpose.

    Hitting a limit is a result of a crate, not an error: see
    :attr:`pytest_crate.result.CrateResult.exceeded`.
    """


class SpecError(CrateError):
    """A crate was described wrongly: an unknown key, or a value that does not parse.

    :ivar origin: where the value was written, such as ``"@pytest.mark.crate"`` or ``"ini crate_memory"``.
    :ivar key: the key at fault, such as ``"memory"``.
    :ivar value: the value as it was given.
    :ivar expected: what would have been accepted, in words.
    """

    def __init__(self, *, origin: str, key: str, value: object, expected: str) -> None:
        self.origin = origin
        self.key = key
        self.value = value
        self.expected = expected
        super().__init__(f"{origin}: {key}={value!r}: expected {expected}")


class HostError(CrateError):
    """The host cannot give what a crate needs.

    :ivar feature: the doctor's row at fault, such as ``"memory limit"``.
    :ivar hint: a command, or a setting, that mends it; empty if there is none.
    """

    def __init__(self, message: str, *, feature: str = "", hint: str = "") -> None:
        self.message = message
        self.feature = feature
        self.hint = hint
        super().__init__(f"{message}\nTo mend it: {hint}" if hint else message)

    def to_json(self) -> dict[str, str]:
        """Return the error as builtins, to cross a process boundary: the arguments that make it again."""
        return {"message": self.message, "feature": self.feature, "hint": self.hint}


class ImageError(CrateError):
    """An image is missing, unreadable, corrupt or hostile.

    :ivar reference: the image as the user named it.
    """

    def __init__(self, reference: str, message: str) -> None:
        self.reference = reference
        self.message = message
        super().__init__(f"image {reference!r}: {message}")


class SandboxError(CrateError):
    """The kernel refused a step of building, entering or removing a crate.

    :ivar step: what was being done, in words.
    :ivar syscall: the system call or file operation that failed.
    :ivar path: the file or object it was applied to; empty if none.
    :ivar errno: the kernel's error number, or None if there was no system call.
    """

    def __init__(
        self, step: str, *, syscall: str = "", path: str = "", errno: int | None = None, detail: str = ""
    ) -> None:
        self.step = step
        self.syscall = syscall
        self.path = path
        self.errno = errno
        self.detail = detail
        call = f"{syscall}({path})" if syscall else path
        reason = f"{os.strerror(errno)} (errno {errno})" if errno is not None else detail
        if errno is not None and detail:
            reason = f"{reason}; {detail}"
        super().__init__(": ".join(part for part in (step, call, reason) if part))

    def to_json(self) -> dict[str, str | int | None]:
        """Return the error as builtins, to cross a process boundary."""
        return {
            "step": self.step,
            "syscall": self.syscall,
            "path": self.path,
            "errno": self.errno,
            "detail": self.detail,
        }

    @classmethod
    def from_json(cls, data: dict[str, str | int | None]) -> SandboxError:
        """Rebuild an error that :meth:`to_json` wrote."""
        errno = data["errno"]
        assert errno is None or isinstance(errno, int)
        return cls(
            str(data["step"]),
            syscall=str(data["syscall"]),
            path=str(data["path"]),
            errno=errno,
            detail=str(data["detail"]),
        )


def one_of(choices: Iterable[str]) -> str:
    """Return choices in words: ``'none' or 'host'``."""
    quoted = [repr(choice) for choice in choices]
    if len(quoted) < 2:
        return "".join(quoted)
    return f"{', '.join(quoted[:-1])} or {quoted[-1]}"
