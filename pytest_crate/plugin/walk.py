"""The mirrored walk: the child takes an item through pytest's protocol in its crate, pytest walks along and reports.

Theory of operation. At the item's own set-up step pytest sets up the wider fixtures itself, forks
into a fresh crate, and both go on through the same protocol. The *child* does everything for real
and sends each report, over a pipe, to the *mirror*: pytest itself, which waits in each phase for
the child's report and returns that one as its own. What the child can no longer say, because it was
killed, timed out or went over a limit, the mirror says in its place, always as a failure.

The child begins a phase when the mirror has its report of the one before, and has seen that no limit
was exceeded until then. Where tests write to the terminal (``-s``, live logs), or wider fixtures have threads
that may answer it, it waits for more, until the mirror is in the phase, too, and captures what is said there.
A child whose output is captured waits also when it is about to write to the terminal nevertheless.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import select
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NoReturn, cast

import psutil
import pytest

from pytest_crate.errors import SandboxError
from pytest_crate.plugin import collector, keyboard, private, raised, threads, transfer
from pytest_crate.plugin.crates import Uncrated
from pytest_crate.plugin.echo import Echo
from pytest_crate.plugin.interplay import HOME
from pytest_crate.plugin.output import ChildOutput
from pytest_crate.plugin.report_pipe import (
    ATTENDED,
    EXIT_CLOSED,
    MAX_MESSAGE_BYTES,
    MAX_MESSAGES_BYTES,
    NEXT_PHASE,
    ReportPipe,
)
from pytest_crate.report.limits import failure_message
from pytest_crate.result import CrateResult, Exit, Limit
from pytest_crate.sandbox import child, wire
from pytest_crate.sandbox.environment import payload_environment
from pytest_crate.sandbox.sandbox import NOTHING_YET, Watched
from pytest_crate.spec import CrateSpec
from pytest_crate.usage import Usage

if TYPE_CHECKING:
    from pytest_crate.sandbox.sandbox import Sandbox

Phase = Literal["setup", "call", "teardown"]

BODY = "body"
"""The name, in reports, of the crate that a test's body rides in."""

# A real-time signal, so that it is in nobody's way, and so that two of it are two (signal(7)).
_STACKS_SIGNAL = signal.SIGRTMAX - 2
_STACKS_WAIT_SECONDS = 2.0
_STACKS_MAX_BYTES = 1 << 20
_WATCH_SECONDS = 0.5
# What an interrupted test has for its tear-down. A CI job that is cancelled has little more until it is killed.
_INTERRUPT_SECONDS = 5.0


class CrateFailed(private.Failed):
    """A test's crate went over a limit, or its process ended without a report.

    ``xfail`` counts it as an expected failure only if it is named: ``raises=pytest_crate.plugin.CrateFailed``.

    :ivar sections: the captured output that the child did send.
    """

    # As pytest's own outcomes: the short summary then shows the class's name alone.
    __module__ = "builtins"

    def __init__(self, message: str, sections: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(message, pytrace=False)
        self.sections = list(sections)


class CrateForkWarning(pytest.PytestWarning):
    """Threads were alive in pytest when it forked into a crate (ini ``crate_fork_check``)."""

    __module__ = "pytest_crate.plugin"


class Walk:
    """One try of one item in one crate, on both sides of the fork."""

    CHILD = pytest.StashKey["Walk"]()
    """On the config, in a child: the walk that it is on."""

    def __init__(
        self,
        item: pytest.Item,
        spec: CrateSpec,
        create: Callable[[pytest.Item], Sandbox],
        prepare_next: Callable[[], None],
        output: ChildOutput | None,
        in_step: bool,
        plugin: object,
    ) -> None:
        """
        :param output: where the child's captured output goes; None if pytest and the child capture in one place.
        :param in_step: the child writes to the terminal as it runs.
        """
        self.item = item
        self.spec = spec
        self.plugin = plugin
        self.in_child = False
        self.result: CrateResult | None = None
        self.uncrated: str | None = None
        self.exception: pytest.ExceptionInfo[BaseException] | None = None
        self.stacks = ""
        self._create = create
        self._prepare_next = prepare_next
        self._output = output
        self._in_step = in_step
        self._waits = in_step
        self._held = False
        self._interplay = item.config.stash[HOME]
        self._phase: Phase = "setup"
        self._phase_over = False
        # the mirror's
        self._sandbox: Sandbox | None = None
        self._mirroring = False
        self._body = 0
        self._pidfd = -1
        self._channel = -1
        self._step = -1
        self._awaited = -1
        self._stacks_fd = -1
        self._stacks = bytearray()
        self._frames = wire.FrameReader(max_frame_bytes=MAX_MESSAGE_BYTES, max_total_bytes=MAX_MESSAGES_BYTES)
        self._messages: deque[wire.Message] = deque()
        self._reports: dict[str, dict[str, Any]] = {}
        self._unpacked: pytest.TestReport | None = None
        self._keywords: Mapping[str, Any] = {}
        self._collapsed: set[str] = set()
        self._threads: tuple[threads.OtherThread, ...] = ()
        self._frozen = False
        self._seen = NOTHING_YET
        self._exceeded: list[Limit] = []
        self._forks_refused = False
        self._interrupted = False
        self._deadline: float | None = None
        self._paused: float | None = None
        self._lent: keyboard.Lent | None = None
        self._entered = False
        self._reported = False
        self._leaves = False
        self._own_output: dict[str, tuple[str, str]] = {}
        self._logged_before = ""
        self._exit = Exit()
        # the child's
        self._report_pipe: ReportPipe | None = None
        self._warnings = transfer.WarningCollector()
        self._phase_report: pytest.TestReport | None = None
        self._shows_fixtures = False
        self._turn: Phase | None = None

    # -- both sides ------------------------------------------------------------------------------

    def arm(self) -> None:
        """Have the item's set-up step done in a crate."""
        self.item.setup = self._set_up  # type: ignore[method-assign]

    def disarm(self) -> None:
        """Give the item its own methods back, and leave no crate behind."""
        for name in ("setup", "runtest"):
            self.item.__dict__.pop(name, None)
        if not self.in_child:
            self.end()

    def phase_starts(self, phase: Phase) -> None:
        """Note that a phase's hook is called: in the child not before it is called in the mirror, too."""
        self._phase, self._phase_over = phase, False
        if phase == "setup":
            return  # there is no child yet
        if self.in_child:
            private.show_fixtures(self.item.config, shown=self._shows_fixtures)
            if phase == "teardown":
                private.own_wider_finalizers(self.item)
            self._pipe.await_mirror(NEXT_PHASE)
        elif self._step >= 0 and self._waits:
            self._release()  # the phase before was never awaited
            self._held = True

    def phase_ends(self) -> None:
        """Note that a phase's hook has returned or raised: the next report made is the phase's."""
        self._phase_over = True

    def _set_up(self) -> None:
        del self.item.setup  # the class's own method again
        try:
            private.set_up_wider_fixtures(self.item, self._interplay.wider_fixtures(self.item))
            self._check_threads()
            here = self._enter_crate()
        except BaseException:
            if not self._mirroring:
                private.forget_teardown(self.item)
            raise
        if here:
            self.item.setup()

    def _enter_crate(self) -> bool:
        """Fork into a fresh crate; return whether the item's own set-up is to be done in the calling process."""
        __tracebackhide__ = True
        try:
            sandbox = self._create(self.item)
        except Uncrated as refusal:
            self.uncrated = refusal.reason
            return True
        self._sandbox = sandbox
        basetemp = private.basetemp(self.item.config)
        if basetemp is not None and self.spec.user is not None and os.geteuid() == 0:
            # tmp_path is made by the user that the body becomes; pytest's own directory is open to root alone.
            os.chmod(basetemp, 0o1777)
        try:
            here = os.getcwd()
        except FileNotFoundError:  # a test before this one removed it
            here = str(self.item.config.rootpath)
        self._channel, sending = os.pipe2(os.O_CLOEXEC)
        # The mirror keeps both ends, so that writing is no error when the child has gone.
        self._awaited, self._step = os.pipe2(os.O_CLOEXEC)
        self._stacks_fd, stacks = os.pipe2(os.O_CLOEXEC)
        self._interplay.before_fork(self.item)
        _flush(self.item.config)
        self._logged_before = private.logged(self.item.config)
        if self._output is not None:
            self._output.before_fork()
        # The child's from now on. In a child the watchdog of its parent could not even be cancelled: that waits for
        # its thread (faulthandler.c).
        private.dump_stacks_in_time(self.item.config, here=False)
        self._frozen = collector.before_fork()
        # Ctrl-C on a terminal is for both until the child has a session of its own: it must know that it is the child.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._body = sandbox.fork(lambda error: _die(sending, error))
        except SandboxError as error:
            self._after_fork(mask, sending, stacks)
            raise CrateFailed(f"the crate could not be entered: {error}") from None
        if self._body == 0:
            collector.in_child(self._frozen)
            self._become_child(sandbox, sending, stacks, here)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            return True
        self._become_mirror()
        self._after_fork(mask, sending, stacks)
        if self._output is not None:
            self._output.in_mirror()
        # While the child is at work, and pytest waits.
        self._prepare_next()
        self._await("setup")
        return False

    def _check_threads(self) -> None:
        self._threads = threads.others()
        # What a wider fixture's thread says in answer to a body is captured in the phase that pytest is in.
        self._waits = self._waits or threading.active_count() > 1
        policy = self.item.config.getini("crate_fork_check")
        if policy == "off" or not any(thread.place for thread in self._threads):
            return
        message = threads.left_behind(self._threads)
        if policy == "error":
            raise CrateFailed(f"{message} (crate_fork_check = error)")
        warnings.warn(CrateForkWarning(message), stacklevel=1)

    def _after_fork(self, mask: Iterable[int], *childs: int) -> None:
        collector.after_fork(self._frozen)
        for descriptor in childs:
            os.close(descriptor)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def abandon(self) -> None:
        """In the mirror: the protocol was broken off; give the child the time to tear down what it has set up."""
        if self._sandbox is not None and self._mirroring:
            self._interrupt()
            with contextlib.suppress(CrateFailed):  # nobody asks any more
                self._take_rest()

    # -- the child -------------------------------------------------------------------------------

    def _become_child(self, sandbox: Sandbox, sending: int, stacks: int, here: str) -> None:
        self.in_child = True
        self.item.config.stash[self.CHILD] = self
        try:
            os.close(self._channel)
            os.close(self._stacks_fd)
            os.close(self._step)
            self._channel = sending
            # Out of pytest's session and process group: a signal to "my own group" is no respecter of
            # PID namespaces (kill(2)), and the terminal is pytest's.
            os.setsid()
            self._report_pipe = ReportPipe(sending, self._awaited)
            if self._output is not None:
                self._output.in_child()
            environ = payload_environment(self.spec, dict(os.environ))
            for name in set(os.environ) - set(environ):
                del os.environ[name]
            os.environ.update(environ)
            who = child.who_is(self.spec.user)
            where = self.spec.workdir or here
            try:
                os.chdir(where)
            except OSError as error:
                raise SandboxError(
                    "enter the working directory", syscall="chdir", path=where, errno=error.errno
                ) from error
            child.confine(sandbox.entry, who)
            sandbox.disown()
            if faulthandler.is_enabled():
                faulthandler.enable(file=stacks)
            faulthandler.register(_STACKS_SIGNAL, file=stacks, all_threads=True, chain=False)
            wire.write_frame(sending, {"entered": True})
        except SandboxError as error:
            _die(sending, error)
        if self.item.config.pluginmanager.hasplugin("warnings"):
            self._warnings.start()
        private.dump_stacks_in_time(self.item.config, here=True)
        private.drop_wider_finalizers(self.item)
        private.take_junit_records(self.item)  # pytest's own, recorded before the fork
        private.keep_only(self.item.config, "pytest_runtest_logreport", self.plugin)
        private.keep_only(self.item.config, "pytest_runtest_logfinish", self.plugin)
        if not self._in_step:
            private.call_before_terminal(self.item.config, self._child_writes)
        self._interplay.child_starts(self.item)

    @property
    def _pipe(self) -> ReportPipe:
        # Not an assert: a suite's pytest_assertion_pass hook would see it.
        return cast("ReportPipe", self._report_pipe)

    def _send(self, message: dict[str, Any]) -> None:
        self._pipe.send(message)

    def child_made(self, report: pytest.TestReport, call: pytest.CallInfo[None]) -> None:
        """In the child: take a report that was just made; a phase's own is sent, others are logged later."""
        if not self.is_phase_report(report):
            return
        self._phase_report = report
        # Before the mirror goes on and prints: both write to one terminal, or to one pipe.
        _flush(self.item.config)
        self._send(
            {
                "phase": self._phase,
                "report": transfer.pack_report(self.item.config, report),
                "warnings": self._warnings.take(),
                "properties": transfer.properties_to_builtins(self.item.user_properties),
                "failed_subtests": private.failed_subtests(self.item),
                "junit": private.take_junit_records(self.item),
                "values": transfer.pack_values(getattr(self.item, "funcargs", None) or {}),
                "exception": None if call.excinfo is None else raised.pack_exception(call.excinfo.value),
                "kept": self._interplay.take_phase(self.item),
            }
        )
        if self._phase == "setup":
            # Between set-up and call, --setup-show names the item and its fixtures: once, and in the mirror.
            self._shows_fixtures = private.show_fixtures(self.item.config, shown=False)

    def child_logs(self, report: pytest.TestReport) -> None:
        """In the child: send a report that isn't a phase's, such as a subtest's."""
        if self._phase == "teardown" and self._phase_report is not None and report.when == "setup":
            # The protocol is over, and another plugin goes through its reports: so does the mirror.
            self.child_ends()
        if report is not self._phase_report:
            self._send({"logged": transfer.pack_report(self.item.config, report)})

    def child_interacts(self) -> None:
        """In the child: let the mirror log a failure before someone looks into it, maybe with a debugger."""
        self._send({"interacts": True})
        self._pipe.await_mirror(ATTENDED)

    def _child_writes(self) -> None:
        """In the child: let the mirror print what comes before, for the child is about to write to the terminal."""
        if self._turn != self._phase:
            self._turn = self._phase
            self.child_interacts()

    def child_debugs(self, entered: bool) -> None:
        """In the child: have the mirror stop the clock, and lend the terminal, while someone has a debugger."""
        self._send({"debugger": entered})
        self._pipe.await_mirror(ATTENDED)

    def child_ends(self, error: BaseException | None = None) -> NoReturn:
        """In the child: leave, with the reason if the protocol was broken off."""
        try:
            if isinstance(error, (KeyboardInterrupt, pytest.exit.Exception)):
                # Out of the protocol before its teardown: what pytest does at the session's end.
                with contextlib.suppress(BaseException):
                    private.tear_down_all(self.item)
                self._send({"stop": _stop_message(error), "warnings": self._warnings.take()})
            elif error is not None:
                self._send({"error": f"{type(error).__name__}: {error}"})
            _flush(self.item.config)
            self._send({"leaves": True, "brought": self._interplay.take(self.item)})
            self._pipe.leave(0)
        finally:
            self._pipe.leave(70)  # EX_SOFTWARE; not back into pytest, whatever happens

    # -- the mirror ------------------------------------------------------------------------------

    def _become_mirror(self) -> None:
        self._mirroring = True
        self._pidfd = os.pidfd_open(self._body)
        if self.spec.timeout_usec is not None:
            self._deadline = time.monotonic() + self.spec.timeout_usec / 1e6
        # The item's own teardown is the child's. It is on the stack already.
        private.forget_teardown(self.item, self._tear_down)
        self.item.runtest = self._run_test  # type: ignore[method-assign]
        self._interplay.mirror_starts(self.item)
        if self._interplay.brings_much(self.item):
            self._frames = wire.FrameReader()

    def _run_test(self) -> None:
        __tracebackhide__ = True
        self._await("call")

    def _tear_down(self) -> None:
        __tracebackhide__ = True
        if self._sandbox is None:
            return  # the crate is gone, and with it all that there was to tear down
        self._await("teardown")
        # The child leaves by itself after its last report; then nothing else in the crate matters.
        try:
            self._take_rest()
        except CrateFailed:
            self._collapsed.add("teardown")
            self.end()
            raise
        exit_ = self._wait_for_exit()
        self.end()
        # What a daemon has met since its test's last report, up to its own end, counts as well.
        if self._exceeded:
            self._collapsed.add("teardown")
            raise CrateFailed(self._limit_message(self._exceeded))
        if not self._leaves or exit_ not in (Exit(code=0), Exit()):  # unknown: a suite waited for it in our place
            self._collapsed.add("teardown")
            raise CrateFailed(
                f"the test's process ended with {exit_} after its last report, instead of leaving by itself"
            )

    def mirror_report(self, when: str) -> pytest.TestReport | None:
        """In the mirror: the child's report of a phase, a new copy at each call; None if it sent none."""
        data = self._reports.get(when)
        if data is None or not self._mirroring:
            return None
        report, self._unpacked = self._unpacked, None
        if report is None or report.when != when:
            report = transfer.unpack_report(self.item.config, data)
        # pytest keeps every report: where the keywords are the same in all three, they are kept once.
        if report.keywords == self._keywords:
            report.keywords = self._keywords
        self._keywords = report.keywords
        return report

    @property
    def echo(self) -> Echo:
        """What a hook of a phase, called in this process, is beside that in the crate."""
        if not self._mirroring or self.in_child:
            return "no"
        return "loud" if self._collapsed else "quiet"

    @property
    def left_behind(self) -> str:
        """In the mirror: the threads that a crate which hung may have missed, where none is known to hold a lock."""
        hung = "timeout" in self._exceeded and not _hold_locks(self._threads)
        return ", ".join(map(str, self._threads)) if hung else ""

    def is_phase(self, when: str) -> bool:
        """Whether the report to be made is a phase's own, not one made in the midst of it (a subtest's)."""
        return self._phase_over and when == self._phase

    def is_phase_report(self, report: pytest.TestReport) -> bool:
        """Whether a report just made is a phase's own; at the first call in a phase."""
        if not self.is_phase(str(report.when)):
            return False
        self._phase_over = False
        return True

    def own_sections(self, when: str) -> list[tuple[str, str]]:
        """In the mirror: the output that pytest itself has captured, of wider fixtures and of their threads.

        :param when: the phase up to which.
        """
        found: dict[tuple[str, str], str] = {}
        for phase, texts in self._own_output.items():
            found.update({(phase, key): text for key, text in zip(("stdout", "stderr"), texts, strict=True) if text})
        passed = self._reports.get("setup", {}).get("outcome") == "passed"
        following = {"setup": "call" if passed else "teardown", "call": "teardown"}
        for phase, key, text in private.captured_in(self.item):
            if key == "log":
                # What was logged before the fork went to the child's memory, too.
                before = self._logged_before.strip() if phase == "setup" else ""
                found[phase, key] = text.removeprefix(before).lstrip("\n")
            else:
                said_in = following[phase] if phase in self._own_output else phase
                found[said_in, key] = text + found.get((said_in, key), "")
        phases = {"setup": ("setup",), "call": ("setup", "call")}.get(when, ("setup", "call", "teardown"))
        return [(f"Captured {key} {phase}", text) for (phase, key), text in found.items() if text and phase in phases]

    def collapsed_in(self, when: str) -> bool:
        """Whether the mirror had to speak for the child in a phase."""
        return when in self._collapsed

    def _await(self, phase: Phase) -> None:
        """Wait for the child's report of a phase; pass on what comes before it."""
        try:
            self._release()
            try:
                data = self._next_report(phase)
            except KeyboardInterrupt:
                if self._sandbox is None:  # raised in the child, which is gone
                    raise
                self._interrupt()
                data = self._next_report(phase)
        except BaseException as error:
            self._collapsed.add(phase)
            self.end()
            if isinstance(error, SandboxError):
                raise CrateFailed(f"crate: {error}") from None
            if _hold_locks(self._threads) and not isinstance(
                error, (CrateFailed, KeyboardInterrupt, pytest.exit.Exception)
            ):
                # Another plugin's own timeout, raised from a signal.
                error.add_note(threads.left_behind(self._threads))
            raise
        if phase == "call":
            self._crate.note_levels()
        exceeded = self._exceeded_since()
        if exceeded:
            self._collapsed.add(phase)
            report = transfer.unpack_report(self.item.config, data)
            text = "" if report.passed else f"\n\n{report.longreprtext}"
            sections = report.sections
            self.end()
            raise CrateFailed(self._limit_message(exceeded) + text, sections)
        self._reports[phase] = data
        if phase != "teardown" and not self._in_step:
            # What a wider fixture's thread prints here from now on is said in the child's next phase.
            self._own_output[phase] = private.take_captured(self.item.config)
            if not self._waits:
                os.write(self._step, NEXT_PHASE)

    def _next_report(self, phase: Phase) -> dict[str, Any]:
        while True:
            while not self._messages:
                self._messages.extend(self._read())
            message = self._messages.popleft()
            try:
                logged, data = self._take(message, phase)
            except (AttributeError, LookupError, TypeError, ValueError, OverflowError, AssertionError) as error:
                raise CrateFailed(f"the test wrote to its report's descriptor what is no report: {error!r}") from None
            if logged is not None:
                with private.capture_suspended(self.item.config):
                    self.item.ihook.pytest_runtest_logreport(report=logged)
                if self._left() == 0:  # a body that reports subtests without end
                    self._time_out()
            if data is not None:
                return data

    def _take(self, message: wire.Message, phase: Phase) -> tuple[pytest.TestReport | None, dict[str, Any] | None]:
        """Take a message of the child's: return a report to be logged, or a phase's report as it was sent.

        What it holds is the word of a process that may not be trusted: it is taken apart here, and nowhere later.
        """
        for warning in message.get("warnings", ()):
            transfer.show_warning(warning)
        if "logged" in message:
            return self._own(transfer.unpack_report(self.item.config, message["logged"])), None
        if "entered" in message:
            self._entered = True
        self._attend_to(message)
        if "stop" in message:
            self._stop(message["stop"])
        if "sandbox_error" in message:
            error = SandboxError.from_json(message["sandbox_error"])
            raise CrateFailed(f"the crate could not be entered: {error}")
        if "error" in message:
            raise CrateFailed(f"the test's protocol broke off in its crate: {message['error']}")
        if message.get("phase") != phase:
            return None, None
        report = self._own(transfer.unpack_report(self.item.config, message["report"]))
        if report.when != phase or report.outcome not in ("passed", "failed", "skipped"):
            raise ValueError(f"{report.outcome} in {report.when}")
        self.item.user_properties[:] = [(name, value) for name, value in message["properties"]]
        self._unpacked, self._reported = report, True
        private.set_failed_subtests(self.item, message["failed_subtests"])
        private.add_junit_records(self.item, message["junit"])
        private.give_values(self.item, transfer.unpack_values(message["values"]))
        thrown = message["exception"]
        self.exception = None if thrown is None else _excinfo(raised.unpack_exception(thrown))
        self._interplay.give_phase(self.item, message["kept"])
        return None, cast("dict[str, Any]", message["report"])

    def _own(self, report: pytest.TestReport) -> pytest.TestReport:
        """Return a report of the child's; it may not be one in another test's name.

        A name that is nobody's is let through: there are plugins that give their reports other names.
        """
        if report.nodeid != self.item.nodeid and any(
            report.nodeid == other.nodeid for other in self.item.session.items
        ):
            raise ValueError(f"a report of {report.nodeid}")
        return report

    def _attend_to(self, message: wire.Message) -> None:
        """Do what the child waits for, or what can't wait."""
        if "debugger" in message:
            self._stop_clock(message["debugger"] is True)
            self._take_terminal_back()
            if message["debugger"] is True:
                self._lent = keyboard.Lent(self._pidfd)
        if "debugger" in message or "interacts" in message:
            self._let_child_go_on(ATTENDED)

    def _release(self) -> None:
        """Let a child that is held begin the phase that pytest has begun."""
        if self._held and self._step >= 0:
            self._held = False
            self._let_child_go_on(NEXT_PHASE)

    def _let_child_go_on(self, word: bytes) -> None:
        # What has been printed here comes first: it may still be in a buffer.
        _flush(self.item.config)
        os.write(self._step, word)

    def _take_terminal_back(self) -> None:
        lent, self._lent = self._lent, None
        if lent is not None:
            lent.take_back()

    def _stop(self, stop: dict[str, Any]) -> NoReturn:
        interrupted = stop["kind"] == "interrupt"
        path, line = (str(stop["path"]), int(stop["line"])) if interrupted else ("", 0)
        reason, code = ("", None) if interrupted else (str(stop["reason"]), stop["returncode"])
        code = None if code is None else int(code)
        # The run ends, whatever there is to be said of this test; a forged word of it does not hold the run up.
        self._deadline = time.monotonic() + _INTERRUPT_SECONDS
        with contextlib.suppress(CrateFailed):
            self._take_rest()
        self.end()
        if interrupted:
            _raise_interrupt(path, line)
        pytest.exit(reason, returncode=code)

    def _interrupt(self) -> None:
        """Pass Ctrl-C on to the child, which is in a session of its own: its fixtures are torn down, as in a plain run.

        A second one, or the end of the child's patience, ends the crate at once.
        """
        self._interrupted = True
        end = time.monotonic() + _INTERRUPT_SECONDS
        self._deadline = end if self._deadline is None else min(end, self._deadline)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGINT)

    def _read(self) -> list[wire.Message]:
        """Wait for messages.

        :raises CrateFailed: the child ended, or its time is over, and no message is left.
        """
        poll = select.poll()
        for descriptor in (self._channel, self._stacks_fd, self._pidfd):
            if descriptor >= 0:
                poll.register(descriptor, select.POLLIN)
        while True:
            left = self._left()
            ready = {
                descriptor
                for descriptor, _ in poll.poll(1e3 * (_WATCH_SECONDS if left is None else min(left, _WATCH_SECONDS)))
            }
            if not ready:
                if self._left() == 0:
                    self._time_out()
                self._stop_fork_bomb()
            if self._stacks_fd in ready and not self._read_stacks():
                poll.unregister(self._stacks_fd)
                _close(self._stacks_fd)
                self._stacks_fd = -1
            if self._channel in ready:
                data = os.read(self._channel, 1 << 20)
                if data:
                    try:
                        return self._frames.feed(data)
                    except wire.WireError as error:
                        raise CrateFailed(f"the test wrote to its report's descriptor: {error}") from None
                poll.unregister(self._channel)
                _close(self._channel)
                self._channel = -1
            if self._pidfd in ready and self._channel < 0:
                self._ended_early()
            # A grandchild may hold the channel open for ever; what the child wrote is in it already.
            if self._pidfd in ready and not _readable(self._channel, 0):
                self._ended_early()

    def _take_rest(self) -> None:
        """Take what the child sends after its last report, until it leaves or its time is over.

        :raises CrateFailed: it is not what the child sends.
        """
        for message in self._messages:
            self._attend_to(message)
        while self._channel >= 0:
            poll = select.poll()
            poll.register(self._channel, select.POLLIN)
            poll.register(self._pidfd, select.POLLIN)
            left = self._left()
            ready = {descriptor for descriptor, _ in poll.poll(None if left is None else min(1e9, left * 1e3))}
            # poll(2) looks at one after the other: between the two the child may have written its last word, and ended.
            written = self._channel in ready or _readable(self._channel, 0)
            data = os.read(self._channel, 1 << 20) if written else b""
            if not data:
                break
            try:
                received = self._frames.feed(data)
            except wire.WireError as error:
                raise CrateFailed(f"the test wrote to its report's descriptor: {error}") from None
            for message in received:
                self._attend_to(message)
            # Nothing else matters now, and a body that floods the pipe must not fill pytest's memory.
            self._messages.extend(message for message in received if "brought" in message or "leaves" in message)
        for message in self._messages:
            self._leaves = self._leaves or "leaves" in message
            if "brought" in message:
                try:
                    self._interplay.give(self.item, message["brought"])
                except (AttributeError, ValueError) as error:
                    raise CrateFailed(str(error)) from None
        self._messages.clear()

    def _read_stacks(self) -> bool:
        data = os.read(self._stacks_fd, 1 << 16)
        if len(self._stacks) < _STACKS_MAX_BYTES:
            self._stacks += data
        return bool(data)

    def _ended_early(self) -> NoReturn:
        exit_ = self._wait_for_exit()
        self.stacks = self._stacks_left()
        self._crate.verify_alive()
        exceeded = self._exceeded_since()
        self.end()
        if exceeded:
            message = self._limit_message(exceeded)
            if exit_.signal:
                message += f"\nThe test's process was {exit_}."
        elif exit_.code == EXIT_CLOSED:
            message = (
                "the test closed the descriptor that its report travels on (with os.closerange, perhaps), "
                f"so its outcome is not known; its process ended with {exit_}"
            )
        elif exit_.signal is not None:
            message = f"the test's process was {exit_} before it could report"
        else:
            message = f"the test's process ended with {exit_} before it could report"
        raise CrateFailed(message)

    def _stop_fork_bomb(self) -> None:
        """Kill a body that goes on although forks were refused: one that swallows the errors does so for ever.

        It fails in any case; it gets the time between two looks to fail by itself, and say where.
        """
        if "pids" not in self._crate.watch().limits_since(self._seen):
            return
        if not self._forks_refused:
            self._forks_refused = True
            return
        exceeded = self._exceeded_since()
        self._kill()
        raise CrateFailed(self._limit_message(exceeded))

    @property
    def _crate(self) -> Sandbox:
        # Not an assert: a suite's pytest_assertion_pass hook would see it.
        return cast("Sandbox", self._sandbox)

    def _kill(self) -> None:
        """Kill the crate, having asked its process where it is."""
        self.stacks = self._ask_for_stacks()
        self._crate.kill()
        self._wait_for_exit()
        self.end()

    def _time_out(self) -> NoReturn:
        if self._interrupted:
            self._kill()
            path, line, _ = self.item.reportinfo()
            _raise_interrupt(os.fspath(path), (line or 0) + 1)
        self._exceeded.append("timeout")
        self._kill()
        message = self._limit_message(["timeout"])
        if not self.stacks:
            message += (
                "\nIts process did not say where it was: it blocks signals, or is stopped."
                if self._entered
                else "\nIts process was still on its way into the crate."
            )
        if _hold_locks(self._threads):
            message += f"\n{threads.left_behind(self._threads)}"
        raise CrateFailed(message)

    def _ask_for_stacks(self) -> str:
        """Have the child write the stacks of its threads, and return them.

        It is asked twice, and one signal is handled after the other: a second copy begins when the first is whole.
        """
        if not self._entered:
            return ""  # the signal would kill a process that has no handler for it yet
        with contextlib.suppress(psutil.NoSuchProcess):  # a test suite may reap any child, in pytest's own process
            if psutil.Process(self._body).status() == psutil.STATUS_STOPPED:
                return ""  # it would handle nothing before it is killed
        before = len(self._stacks)
        for _ in range(2):
            signal.pidfd_send_signal(self._pidfd, _STACKS_SIGNAL)
        end = time.monotonic() + _STACKS_WAIT_SECONDS
        while self._stacks_fd >= 0 and (left := end - time.monotonic()) > 0:
            if not _readable(self._stacks_fd, left) or not self._read_stacks():
                break
            text = bytes(self._stacks[before:]).decode(errors="replace")
            # Which thread is the "current" one may differ between the two copies; the threads don't.
            threads = list(re.finditer(r"^(?:Current t|T)hread (0x[0-9a-f]+)", text, re.MULTILINE))
            again = [thread for thread in threads[1:] if thread[1] == threads[0][1]]
            if again:
                return text[: again[0].start()].rstrip()
        return bytes(self._stacks[before:]).decode(errors="replace").rstrip()

    def _stacks_left(self) -> str:
        """Return what the child's fault handler wrote before it ended."""
        while self._stacks_fd >= 0 and _readable(self._stacks_fd, 0):
            if not self._read_stacks():
                break
        return bytes(self._stacks).decode(errors="replace").rstrip()

    def _wait_for_exit(self) -> Exit:
        """Wait for the child's end; the timeout holds here, too."""
        if self.result is not None:
            return self.result.exit
        if self._body:
            while not _readable(self._pidfd, self._left()):
                self._exceeded.append("timeout")
                self._deadline = None
                self._crate.kill()
            try:
                _, status = os.waitpid(self._body, 0)
                self._exit = Exit.from_wait_status(status)
            except ChildProcessError:  # a test suite that waits for any child, in pytest's own process
                self._exit = Exit()
            self._body = 0
        return self._exit

    def _stop_clock(self, stop: bool) -> None:
        if stop and self._deadline is not None:
            self._paused, self._deadline = self._left(), None
        elif not stop and self._paused is not None:
            self._deadline, self._paused = time.monotonic() + self._paused, None

    def _left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def _exceeded_since(self) -> list[Limit]:
        """Return the limits that the crate has gone over since the last call."""
        watched = self._crate.watch()
        found = list(watched.limits_since(self._seen))
        self._seen = watched
        self._exceeded += [limit for limit in found if limit not in self._exceeded]
        return found

    def _limit_message(self, exceeded: list[Limit]) -> str:
        usage = self.result.usage if self.result is not None else Usage()
        return "\n".join(failure_message(limit, self.spec, usage) for limit in exceeded)

    def end(self) -> None:
        """Remove the crate and keep what it used; idempotent."""
        sandbox, self._sandbox = self._sandbox, None
        if sandbox is None:
            return
        try:
            if self._body:
                sandbox.kill()
                self._deadline = None
                self._wait_for_exit()
            usage = sandbox.close()
            last = Watched(oom_kills=usage.memory_oom_kills, pids_max=usage.pids_max_events, timed_out=False)
            self._exceeded += [limit for limit in last.limits_since(self._seen) if limit not in self._exceeded]
            order: tuple[Limit, ...] = ("memory", "pids", "timeout")
            self.result = CrateResult(
                name=BODY,
                usage=usage,
                exceeded=tuple(limit for limit in order if limit in self._exceeded),
                exit=self._exit,
            )
        finally:
            self._take_terminal_back()
            if self._output is not None:
                self._output.take_back(reported=self._reported)
            for descriptor in (self._channel, self._step, self._awaited, self._stacks_fd, self._pidfd):
                _close(descriptor)
            self._channel = self._step = self._awaited = self._stacks_fd = self._pidfd = -1
        if self._mirroring:
            self._interplay.mirror_ends(self.item)


OWNER = pytest.StashKey[int]()
"""The pid of the pytest process that owns the crates; a forked child finds another than its own."""


def _excinfo(error: BaseException) -> pytest.ExceptionInfo[BaseException]:
    # With a traceback, if only of this place: pytest's class is made of three parts.
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001 - whatever a test may raise
        return pytest.ExceptionInfo.from_exception(caught)


def _hold_locks(others: Iterable[threads.OtherThread]) -> bool:
    return any(thread.locks for thread in others)


def _stop_message(error: BaseException) -> dict[str, Any]:
    if isinstance(error, pytest.exit.Exception):
        return {"kind": "exit", "reason": str(error.msg), "returncode": error.returncode}
    # As pytest names the place where it was interrupted: of the innermost frame that is not hidden.
    crash = pytest.ExceptionInfo.from_exception(error).getrepr(style="short").reprcrash
    path, line = ("", 0) if crash is None else (crash.path, crash.lineno)
    return {"kind": "interrupt", "path": path, "line": line}


def _raise_interrupt(path: str, line: int) -> NoReturn:
    """Raise KeyboardInterrupt as if at a line of a file: pytest names the place of the innermost frame."""
    exec(compile("raise KeyboardInterrupt", path, "exec").replace(co_firstlineno=max(1, line)), {})
    raise AssertionError


def _die(sending: int, error: SandboxError) -> NoReturn:
    """In a child that could not enter its crate: say why and end; nothing of the user's has run."""
    try:
        wire.write_frame(sending, {"sandbox_error": error.to_json()})
    finally:
        os._exit(1)


def _flush(config: pytest.Config) -> None:
    """Write out what is buffered, so that it is not written twice after a fork, nor lost at an exit.

    With the capture suspended: what was printed before a test, the terminal's own lines among it, is not the test's.
    """
    with private.capture_suspended(config):
        for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            # A test may have closed or replaced any of them.
            with contextlib.suppress(OSError, ValueError, AttributeError):
                if stream is not None:
                    stream.flush()
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.flush()


def _readable(descriptor: int, seconds: float | None) -> bool:
    # Not select(2): a test suite may have more descriptors open than it can name.
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    # poll(2) takes an int of milliseconds; who waits longer asks again.
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        left = None if end is None else min(1e9, max(0.0, end - time.monotonic()) * 1e3)
        if poll.poll(left):
            return True
        if end is not None and time.monotonic() >= end:
            return False


def _close(descriptor: int) -> None:
    if descriptor >= 0:
        os.close(descriptor)
