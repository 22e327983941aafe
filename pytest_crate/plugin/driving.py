"""Makes the crates that a test drives by hand, and keeps what became of them for its report."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import pytest

from pytest_crate.errors import CrateError, SandboxError
from pytest_crate.plugin import specs
from pytest_crate.plugin.conductor import CONDUCTOR, CRATES, DRIVEN
from pytest_crate.plugin.crates import Uncrated
from pytest_crate.plugin.rider import RIDER
from pytest_crate.sandbox.crate_sandbox import CrateSandbox


class Driver:
    """The crates of one fixture of one test."""

    def __init__(self, item: pytest.Item, *, name: str = "crate_sandbox_factory") -> None:
        self._item = item
        self._name = name
        self._stack = ExitStack()
        self._count = 0
        self._ended = False
        if CRATES not in item.config.stash or specs.SPEC not in item.stash:
            pytest.fail(
                f"{name}: request it in the test's arguments or through a fixture there, not with getfixturevalue: "
                "whether a test rides in its crate or drives it is decided at collection",
                pytrace=False,
            )
        if RIDER in item.config.stash:
            pytest.fail(f"{name}: this test runs inside its crate already", pytrace=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        self._stack.close()
        if self._name != specs.ONE_CRATE:
            self._item.config.stash[CONDUCTOR].prepare_next()

    def make(self, *values: object, **keys: Any) -> CrateSandbox:
        """Make a crate of the test's spec, changed by marker keys.

        :raises TypeError: something is given without a key.
        :raises SandboxError: the test has ended.
        :raises SpecError: a key is unknown or a value does not parse.
        :raises ImageError: its image can't be used.
        """
        if values:
            raise TypeError(f'{self._name} takes the marker\'s keys, such as memory="64m", not {values[0]!r}')
        if self._ended:
            raise SandboxError("make a crate", detail=f"the test that {self._name} belongs to has ended")
        crates = self._item.config.stash[CRATES]
        spec = self._item.stash[specs.SPEC]
        if keys:
            spec = specs.changed(self._item, keys, origin=self._name)
            specs.check(spec, crates.find_image)
            crates.lend(spec)
        reason = ""
        sandbox = None
        try:
            sandbox = crates.create_or_refuse(spec, timed=True)
        except Uncrated as refusal:
            # There is no program to run "unsandboxed": a test that drives a crate needs one.
            reason = refusal.reason
        except CrateError as error:
            reason = f"crate: {error}"
        if sandbox is None:
            pytest.fail(reason, pytrace=False)
        self._count += 1
        name = self._name if self._name == specs.ONE_CRATE else f"crate_sandbox[{self._count}]"
        made = CrateSandbox(sandbox, spec, name=name)
        self._stack.callback(self._close, made)
        if self._name == specs.ONE_CRATE:
            # Not where others may follow, of other specs: for the first of them it would be given up.
            self._item.config.stash[CONDUCTOR].prepare_next()
        return made

    def _close(self, made: CrateSandbox) -> None:
        lost = ""
        try:
            result = made.close()
        except SandboxError as error:
            # What it ran was killed with the launcher, or can't be: a test that doesn't look is not to pass.
            lost, result = f"crate: {error}", made.close()
        self._item.stash.setdefault(DRIVEN, []).append((made.spec, result, made.stderr_tail))
        if lost:
            pytest.fail(lost, pytrace=False)
