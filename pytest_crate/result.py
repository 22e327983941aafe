"""How a crate, or a program in it, ended: exit, usage and the limits it met."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Mapping
from typing import Literal, cast

from pytest_crate.usage import Usage

Limit = Literal["memory", "pids", "timeout"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How the first process of a crate ended. At most one field is set; none while it is not known.

    :ivar code: its exit status, 0 to 255.
    :ivar signal: the number of the signal that ended it.
    """

    code: int | None = None
    signal: int | None = None

    @classmethod
    def from_wait_status(cls, status: int) -> Exit:
        """Decode the status word of waitpid(2)."""
        if os.WIFSIGNALED(status):
            return cls(signal=os.WTERMSIG(status))
        return cls(code=os.WEXITSTATUS(status))

    @property
    def returncode(self) -> int | None:
        """The exit status as :class:`subprocess.Popen` gives it: negative for a signal."""
        return -self.signal if self.signal is not None else self.code

    @property
    def signal_name(self) -> str | None:
        """The signal's name, such as ``"SIGKILL"``, or None if no signal ended it."""
        if self.signal is None:
            return None
        try:
            return signal.Signals(self.signal).name
        except ValueError:
            return f"signal {self.signal}"

    def __str__(self) -> str:
        if self.signal is not None:
            return f"killed by {self.signal_name}"
        return "-" if self.code is None else f"exit status {self.code}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """A crate that several tests ride in, one after the other (``scope``), as it was when one of them had ended.

    :ivar name: the id of the class or module whose tests share it.
    :ivar number: which of this process's shared crates it is; a test that lost its crate is followed by another one.
    :ivar tests: how many tests have been in it so far.
    :ivar usage: what the crate as a whole has used so far.
    """

    name: str
    number: int
    tests: int
    usage: Usage

    def to_json(self) -> dict[str, object]:
        """Return it as builtins."""
        return {"name": self.name, "number": self.number, "tests": self.tests, "usage": self.usage.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> Shared:
        """Rebuild what :meth:`to_json` wrote."""
        return cls(
            name=str(data["name"]),
            number=cast("int", data["number"]),
            tests=cast("int", data["tests"]),
            usage=Usage.from_json(cast("Mapping[str, object]", data["usage"])),
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CrateResult:
    """What became of one crate.

    :ivar name: which of a test's crates it is: ``"body"``, ``"crate_sandbox"``, ``"crate_sandbox[2]"`` …
    :ivar usage: what it used.
    :ivar exceeded: the limits it exceeded, in the order ``memory``, ``pids``, ``timeout``.
    :ivar exit: how its first process ended; not known while it goes on with another test.
    :ivar shared: the crate as a whole, if the test shares it; ``usage`` is then what was used during the test.
    """

    name: str
    usage: Usage
    exceeded: tuple[Limit, ...] = ()
    exit: Exit = Exit()
    shared: Shared | None = None

    def to_json(self) -> dict[str, object]:
        """Return the result as builtins, as the JSON report publishes it."""
        return {
            "name": self.name,
            "usage": self.usage.to_json(),
            "exceeded": list(self.exceeded),
            "exit": {"code": self.exit.code, "signal": self.exit.signal},
            **({} if self.shared is None else {"shared": self.shared.to_json()}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> CrateResult:
        """Rebuild a result that :meth:`to_json` wrote."""
        exit_ = cast("Mapping[str, int | None]", data["exit"])
        return cls(
            name=str(data["name"]),
            usage=Usage.from_json(cast("Mapping[str, object]", data["usage"])),
            exceeded=tuple(cast("list[Limit]", data["exceeded"])),
            exit=Exit(code=exit_["code"], signal=exit_["signal"]),
            shared=Shared.from_json(cast("Mapping[str, object]", data["shared"])) if "shared" in data else None,
        )
