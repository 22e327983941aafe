"""The child's side of the walk: it enters the crate, walks on through pytest's protocol, and sends its reports home."""

from __future__ import annotations

import contextlib
import faulthandler
import os
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from pytest_crate.errors import SandboxError
from pytest_crate.plugin import private, raised, transfer, warned
from pytest_crate.plugin.body import STACKS_SIGNAL, Body
from pytest_crate.plugin.imports import ImportTimes
from pytest_crate.plugin.output import ChildOutput, flush
from pytest_crate.plugin.report_pipe import ATTENDED, NEXT_PHASE, ReportPipe
from pytest_crate.sandbox import child, wire
from pytest_crate.sandbox.environment import payload_environment
from pytest_crate.sandbox.steps import Clock

if TYPE_CHECKING:
    from pytest_crate.plugin.interplay import Interplay


_SENT = {
    "setup": "send the set-up's report",
    "call": "send the call's report",
    "teardown": "send the teardown's report",
}


class Rider:
    """In a forked child: what rides in the crate, and its way to speak to the mirror."""

    def __init__(
        self,
        item: pytest.Item,
        body: Body,
        output: ChildOutput | None,
        in_step: bool,
        interplay: Interplay,
        clock: Clock,
    ) -> None:
        """
        :param output: where its captured output goes; None if pytest and it capture in one place.
        :param in_step: it writes to the terminal as it runs.
        """
        self.item = item
        self._clock = clock
        self.phase = "setup"
        self._body = body
        self._output = output
        self._in_step = in_step
        self._interplay = interplay
        self._pipe: ReportPipe
        self._imports = ImportTimes()
        self._warnings = warned.WarningCollector()
        self._phase_report: pytest.TestReport | None = None
        self._failed = self._gone_through = False
        self._shows_fixtures = False
        self._turn: str | None = None
        self._wrote = False
        self._quiet = False
        self._over = False
        self._captured = ("", "")

    @property
    def quiet(self) -> bool:
        """Whether hooks that are called now have done their work in pytest's process already."""
        return self._quiet

    @property
    def over(self) -> bool:
        """Whether the test has ended, and the crate may go on with another."""
        return self._over

    def enter(self, where: str, plugin: object) -> None:
        """Enter the crate, and give up what isn't the child's.

        :param where: the working directory, where the spec has none.
        :param plugin: the one that alone sees the reports that are logged in here.
        """
        config, body, spec = self.item.config, self._body, self._body.spec
        try:
            body.in_child()
            # Out of pytest's session and process group: a signal to "my own group" is no respecter of
            # PID namespaces (kill(2)), and the terminal is pytest's.
            os.setsid()
            self._pipe = ReportPipe(body.sending, body.awaited)
            if self._output is not None:
                self._output.in_child()
            child.use_own_null(number for number in range(3) if child.is_null(number))
            self._clock.done("take its own session and output")
            environ = payload_environment(spec, dict(os.environ))
            for name in set(os.environ) - set(environ):
                del os.environ[name]
            os.environ.update(environ)
            who = child.who_is(spec.user)
            child.enter_directory(spec.workdir or where)
            self._clock.done("set the environment and the directory")
            child.confine(body.sandbox.entry, who, self._clock)
            body.sandbox.disown()
            if faulthandler.is_enabled():
                faulthandler.enable(file=body.stacks_sending)
            faulthandler.register(STACKS_SIGNAL, file=body.stacks_sending, all_threads=True, chain=False)
            wire.write_frame(body.sending, {"entered": True})
            self._clock.done("close what is the engine's")
        except SandboxError as error:
            die(body.sending, error)
        if config.pluginmanager.hasplugin("warnings"):
            self._warnings.start()
        private.dump_stacks_in_time(config, here=True)
        private.drop_wider_finalizers(self.item)
        private.take_junit_records(self.item)  # pytest's own, recorded before the fork
        private.keep_only(config, "pytest_runtest_logreport", plugin)
        private.keep_only(config, "pytest_runtest_logfinish", plugin)
        # The beginning of a later test is for the mirror to tell; live logs begin anew for each.
        private.keep_only(config, "pytest_runtest_logstart", plugin, config.pluginmanager.getplugin("logging-plugin"))
        if not self._in_step:
            private.call_before_terminal(config, self._writes)
        self._interplay.child_starts(self.item)
        self._imports.start()
        self._clock.done("change pytest's state")

    def await_test(self) -> tuple[int, int] | None:
        """Wait for the number of the next test in this crate, and of the one after it; None if none follows."""
        told = self._pipe.await_test()
        if told is None:
            return None
        self._captured = told.captured
        self._clock.done("wait for pytest")
        return told.number, told.following

    def goes_on(self, item: pytest.Item) -> None:
        """Go on with another test, whose hooks before its own set-up have been called in pytest, too."""
        self.item, self.phase = item, "setup"
        self._phase_report, self._turn = None, None
        self._over = self._failed = self._gone_through = False
        item.setup = self._set_up  # type: ignore[method-assign]

    def _set_up(self) -> None:
        del self.item.setup  # the class's own method again
        config = self.item.config
        if self._output is not None:
            # What hooks have printed since the last test's end, they have printed in pytest, too.
            private.take_captured(config)
            private.write_captured(config, *self._captured)
        private.take_junit_records(self.item)
        if config.pluginmanager.hasplugin("warnings"):
            self._warnings.start()
        self._quiet = False
        self._pipe.hear_again()
        self.item.setup()

    def begins(self, phase: str) -> None:
        """Begin the next phase: not before its hook is called in the mirror, too."""
        self.phase = phase
        private.show_fixtures(self.item.config, shown=self._shows_fixtures)
        if phase == "teardown":
            private.own_wider_finalizers(self.item)
        self._pipe.await_mirror(NEXT_PHASE)
        self._clock.done("wait for pytest")

    def made(self, report: pytest.TestReport, call: pytest.CallInfo[None]) -> None:
        """Send a phase's own report, which was just made."""
        self._clock.done("set-up" if self.phase == "setup" else self.phase)
        self._phase_report = report
        self._failed = self._failed or report.failed
        self._flush()
        self._pipe.send(
            {
                "phase": self.phase,
                "report": transfer.pack_report(self.item.config, report),
                "warnings": self._warnings.take(),
                "properties": transfer.properties_to_builtins(self.item.user_properties),
                "failed_subtests": private.failed_subtests(self.item),
                "junit": private.take_junit_records(self.item),
                "values": transfer.pack_values(getattr(self.item, "funcargs", None) or {}),
                "exception": None if call.excinfo is None else raised.pack_exception(call.excinfo.value),
                "kept": self._interplay.take_phase(self.item),
                "stops": transfer.pack_stops(self.item.session),
            }
        )
        if self.phase == "setup":
            # Between set-up and call, --setup-show names the item and its fixtures: once, and in the mirror.
            self._shows_fixtures = private.show_fixtures(self.item.config, shown=False)
        self._clock.done(_SENT[self.phase])

    def logs(self, report: pytest.TestReport) -> None:
        """Count a report as pytest's session does, and send one that isn't a phase's, such as a subtest's."""
        # For a fixture that looks whether its test has failed, and subtests, which end with the run (--maxfail).
        self.item.session.pytest_runtest_logreport(report)
        if self._gone_through:
            return
        if self.phase == "teardown" and self._phase_report is not None and report.when == "setup":
            # The protocol is over, and another plugin goes through its reports: so does the mirror. It may try a test
            # that has failed again, in a crate of its own.
            if self._body.sharing is None or self._failed:
                self.ends()
            self._gone_through = True
            return
        if report is not self._phase_report:
            self._flush()
            self._pipe.send({"logged": transfer.pack_report(self.item.config, report)})

    def interacts(self) -> None:
        """Let the mirror log a failure before someone looks into it, maybe with a debugger."""
        self._pipe.send({"interacts": True})
        self._pipe.await_mirror(ATTENDED)

    def _writes(self) -> None:
        """Let the mirror print what comes before, for the child is about to write to the terminal."""
        self._wrote = True
        if self._turn != self.phase:
            self._turn = self.phase
            self.interacts()

    def debugs(self, entered: bool) -> None:
        """Have the mirror stop the clock, and lend the terminal, while someone has a debugger."""
        self._pipe.send({"debugger": entered})
        self._pipe.await_mirror(ATTENDED)

    def finishes(self) -> None:
        """At the end of the test: leave, or wait for another where the crate is shared."""
        if self._body.sharing is None:
            self.ends()
        if not self._over:
            deaf = self._pipe.grow_deaf()
            self._flush()
            brought = self._interplay.take(self.item, leaves=False)
            self._clock.done("finish")
            self._pipe.send({"over": True, "deaf": deaf, "brought": brought, **self._measured()})
            self._over = self._quiet = True

    def _flush(self) -> None:
        """Before the mirror goes on and prints: let what was written to its terminal, or pipe, be there.

        A child whose output is captured has written nothing there but what it had its turn for.
        """
        if self._in_step or self._wrote:
            self._wrote = False
            flush(self.item.config)

    def _measured(self) -> dict[str, dict[str, int]]:
        measured = {"steps": self._clock.spent(), "imports": self._imports.take()}
        return {name: figures for name, figures in measured.items() if figures}

    def ends(self, error: BaseException | None = None) -> NoReturn:
        """Leave, with the reason if the protocol was broken off."""
        try:
            if isinstance(error, (KeyboardInterrupt, pytest.exit.Exception)):
                # Out of the protocol before its teardown: what pytest does at the session's end.
                with contextlib.suppress(BaseException):
                    private.tear_down_all(self.item)
            try:
                deaf = self._pipe.grow_deaf()
            except KeyboardInterrupt as interrupt:
                deaf, error = 0, error or interrupt
            if isinstance(error, (KeyboardInterrupt, pytest.exit.Exception)):
                self._pipe.send({"stop": _stop_message(error), "warnings": self._warnings.take()})
            elif error is not None:
                self._pipe.send({"error": f"{type(error).__name__}: {error}"})
            flush(self.item.config)
            brought = self._interplay.take(self.item, leaves=True)
            self._clock.done("finish")
            self._pipe.send({"leaves": True, "deaf": deaf, "brought": brought, **self._measured()})
            self._pipe.leave(0)
        finally:
            self._pipe.leave(70)  # EX_SOFTWARE; not back into pytest, whatever happens


RIDER = pytest.StashKey[Rider]()
"""On the config, in a child: what it is."""


def _stop_message(error: BaseException) -> dict[str, Any]:
    if isinstance(error, pytest.exit.Exception):
        return {"kind": "exit", "reason": str(error.msg), "returncode": error.returncode}
    # As pytest names the place where it was interrupted: of the innermost frame that is not hidden.
    crash = pytest.ExceptionInfo.from_exception(error).getrepr(style="short").reprcrash
    path, line = ("", 0) if crash is None else (crash.path, crash.lineno)
    return {"kind": "interrupt", "path": path, "line": line}


def die(sending: int, error: SandboxError) -> NoReturn:
    """In a child that could not enter its crate: say why and end; nothing of the user's has run."""
    try:
        wire.write_frame(sending, {"sandbox_error": error.to_json()})
    finally:
        os._exit(1)
