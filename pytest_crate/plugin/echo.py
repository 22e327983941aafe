"""Other plugins' hooks of a phase go along in pytest, quietly: they have done their work in the crate."""

from __future__ import annotations

import functools
import io
import logging
import sys
import warnings
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any, Literal

import pluggy
import pytest

from pytest_crate.plugin import private

Echo = Literal["no", "loud", "quiet"]
"""What a hook's call in this process is: the only one; one beside a crate that is lost; an echo of one in a crate.

A hook that goes along keeps in memory what it wants (which test of a class has failed). What it says, what it makes of
the phase, and what it stores in pytest's cache, has been said, made and stored in the crate. There it also had the
fixtures' values, which are missing here: what it raises for want of them counts for nothing.
"""

_HOOKS = ("pytest_runtest_setup", "pytest_runtest_call", "pytest_runtest_teardown", "pytest_runtest_makereport")
_PROTOCOL = "pytest_runtest_protocol"
_OWN = ("_pytest.", "pytest_crate.")


def install(
    config: pytest.Config, echo: Callable[[], Echo], *, around_protocol: Callable[[], Echo] | None = None
) -> None:
    """Have every hook of a phase that isn't pytest's or ours ask, whenever it is called, what its call is.

    :param around_protocol: the same for what is wrapped around a whole protocol: it runs on both sides where tests
        share a crate.
    """
    for name in _HOOKS:
        _install(config, name, echo)
    if around_protocol is not None:
        _install(config, _PROTOCOL, around_protocol)


def _install(config: pytest.Config, name: str, echo: Callable[[], Echo]) -> None:
    quietly = functools.partial(_Quietly, config, echo)
    for implementation in private.hook_implementations(config, name):
        function: Any = implementation.function
        if str(getattr(function, "__module__", "")).startswith(_OWN):
            continue
        if implementation.hookwrapper:
            replacement = _old_wrapper(function, quietly, echo)
        elif implementation.wrapper:
            replacement = _wrapper(function, quietly, echo)
        elif name == _PROTOCOL:
            continue  # it is the protocol
        else:
            replacement = _plain(function, quietly, echo)
        private.replace_function(implementation, replacement)


class _Quietly:
    """A context for one call of a hook; entered a dozen times per test."""

    def __init__(self, config: pytest.Config, echo: Callable[[], Echo]) -> None:
        self._config = config
        self._mode = echo()

    def __enter__(self) -> None:
        if self._mode != "quiet":
            return
        nowhere = io.StringIO()
        self._streams, self._breakpointhook = (sys.stdout, sys.stderr), sys.breakpointhook
        self._terminal = private.write_terminal_to(self._config, nowhere)
        self._warnings = warnings.catch_warnings(action="ignore")
        self._warnings.__enter__()
        self._logging = logging.root.manager.disable
        logging.disable()
        # config.cache has what the hook kept in the crate: that is the host's directory, too.
        cache = getattr(self._config, "cache", None)
        self._cache = {} if cache is None else vars(cache)
        self._set = self._cache.get("set")
        self._cache["set"] = _keep_nothing
        # Who debugs a hook does so in the crate.
        sys.stdout, sys.stderr, sys.breakpointhook = nowhere, nowhere, _no_breakpoint

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if self._mode == "quiet":
            (sys.stdout, sys.stderr), sys.breakpointhook = self._streams, self._breakpointhook
            if self._set is None:
                self._cache.pop("set", None)
            else:
                self._cache["set"] = self._set
            logging.disable(self._logging)
            self._warnings.__exit__(kind, error, trace)
            private.write_terminal_to(self._config, self._terminal)
        return self._mode != "no" and isinstance(error, (Exception, private.OutcomeException))


def _keep_nothing(*_: object, **__: object) -> None:
    """Leave what the cache keeps as it is."""


def _no_breakpoint(*_: object, **__: object) -> None:
    """Don't stop here."""


Quietly = Callable[[], _Quietly]
Hook = Callable[..., Any]


def _plain(function: Hook, quietly: Quietly, echo: Callable[[], Echo]) -> Hook:
    @functools.wraps(function)
    def call(*args: object, **options: object) -> object:
        __tracebackhide__ = True
        result = None
        with quietly():
            result = function(*args, **options)
        return None if echo() == "quiet" else result

    return call


def _wrapper(function: Hook, quietly: Quietly, echo: Callable[[], Echo]) -> Hook:
    @functools.wraps(function)
    def call(*args: object, **options: object) -> Generator[None, Any, object]:
        __tracebackhide__ = True
        generator = function(*args, **options)
        if echo() == "no":
            try:
                next(generator)
            except StopIteration:
                return None  # it never yields: pluggy says so
        else:
            with quietly():
                next(generator)
        resume: Callable[[], object]
        try:
            result = yield
            resume = functools.partial(generator.send, result)
        except BaseException as error:
            if echo() != "no":
                with quietly():
                    generator.throw(error)
                raise
            resume = functools.partial(generator.throw, error)
        mode = echo()
        if mode == "no":
            try:
                resume()
            except StopIteration as end:
                return end.value
            yield  # a second time: pluggy says so
        with quietly():
            try:
                resume()
            except StopIteration as end:
                return end.value if mode == "loud" else result
        return result

    return call


def _old_wrapper(function: Hook, quietly: Quietly, echo: Callable[[], Echo]) -> Hook:
    @functools.wraps(function)
    def call(*args: object, **options: object) -> Generator[None, Any, None]:
        __tracebackhide__ = True
        generator = function(*args, **options)
        if echo() == "no":
            try:
                next(generator)
            except StopIteration:
                return  # it never yields: pluggy says so
        else:
            with quietly():
                next(generator)
        outcome = yield
        if echo() == "no":
            try:
                generator.send(outcome)
            except StopIteration:
                return
            yield  # a second time: pluggy says so
        # It works on a copy: no failure of the crate's can be taken back.
        seen = pluggy.Result.from_call(outcome.get_result)
        with quietly():
            generator.send(seen)
        if echo() == "loud" and outcome.exception is None and seen.exception is None:
            outcome.force_result(seen.get_result())

    return call
