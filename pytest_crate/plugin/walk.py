"""The mirrored walk: the child takes an item through pytest's protocol in its crate, pytest walks along and reports.

Theory of operation. At the item's own set-up step pytest sets up the wider fixtures itself, forks
into a fresh crate, and both go on through the same protocol. The *child* does everything for real
and sends each report, over a pipe, to the *mirror*: pytest itself, which waits in each phase for
the child's report and returns that one as its own. What the child can no longer say, because it was
killed, timed out or went over a limit, the mirror says in its place, always as a failure.

The child begins a phase when the mirror has heard of its report of the one before, and has seen that no limit
was exceeded until then. Where tests write to the terminal (``-s``, live logs), or wider fixtures have threads
that may answer it, it waits for more, until the mirror is in the phase, too, and captures what is said there.
A child whose output is captured waits also when it is about to write to the terminal nevertheless.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NoReturn, cast

import pytest

from pytest_crate.errors import SandboxError
from pytest_crate.plugin import collector, private, raised, threads, transfer, warned
from pytest_crate.plugin.body import Body, raise_interrupt
from pytest_crate.plugin.crates import Uncrated
from pytest_crate.plugin.echo import Echo
from pytest_crate.plugin.failed import CrateFailed, CrateForkWarning
from pytest_crate.plugin.interplay import HOME
from pytest_crate.plugin.output import ChildOutput, flush
from pytest_crate.plugin.report_pipe import LEAVE, NEXT_PHASE, PHASE_BEGINS
from pytest_crate.plugin.rider import RIDER, Rider, die
from pytest_crate.plugin.sharing import Sharing, number_of
from pytest_crate.result import CrateResult, Exit, Limit
from pytest_crate.sandbox import made, wire
from pytest_crate.sandbox.sandbox import HELD
from pytest_crate.sandbox.steps import OFF, Clock, Running
from pytest_crate.spec import CrateSpec

if TYPE_CHECKING:
    from pytest_crate.sandbox.sandbox import Sandbox

Phase = Literal["setup", "call", "teardown"]

_MAX_ERROR = 1 << 16  # of what a child says went wrong: pytest has several copies of a failure's text

_WAITED: Mapping[Phase, str] = {
    "setup": "wait for the set-up's report",
    "call": "wait for the call's report",
    "teardown": "wait for the teardown's report",
}


class Walk:
    """One try of one item in one crate, on both sides of the fork."""

    def __init__(
        self,
        item: pytest.Item,
        spec: CrateSpec,
        create: Callable[[pytest.Item, Clock], Sandbox],
        prepare_next: Callable[[], None],
        crate_to_share: Callable[[pytest.Item], Body | Sharing | None],
        following: pytest.Item | None,
        output: ChildOutput | None,
        in_step: bool,
        plugin: object,
    ) -> None:
        """
        :param crate_to_share: returns the crate that the item can go on in, or how tests after it may share its own.
        :param output: where the child's captured output goes; None if pytest and the child capture in one place.
        :param in_step: the child writes to the terminal as it runs.
        """
        self.item = item
        self.spec = spec
        self.plugin = plugin
        self.rider: Rider | None = None
        self.begins_ride = True
        self.uncrated: str | None = None
        self.exception: pytest.ExceptionInfo[BaseException] | None = None
        self._clock = Running() if item.config.getoption("crate_debug") else OFF
        self._create = create
        self._prepare_next = prepare_next
        self._crate_to_share = crate_to_share
        self._following = following
        self._output = output
        self._in_step = in_step
        self._waits = in_step
        self._held = False
        self._interplay = item.config.stash[HOME]
        self._phase: Phase = "setup"
        self._phase_over = False
        # the mirror's
        self._made: Body | None = None
        self._mirroring = False
        self._reports: dict[str, dict[str, Any]] = {}
        self._unpacked: pytest.TestReport | None = None
        self._keywords: Mapping[str, Any] = {}
        self._collapsed: set[str] = set()
        self._threads: tuple[threads.OtherThread, ...] = ()
        self._awaited: Phase = "setup"
        self._exceeded: list[Limit] | None = None
        self._own_output: dict[str, tuple[str, str]] = {}
        self._logged_before = ""
        self._follows = False
        self._result: CrateResult | None = None
        self.goes_on = False
        """In the mirror, from the teardown on: the next test shares the crate."""

    @property
    def in_child(self) -> bool:
        """Whether this is the child's side."""
        return self.rider is not None

    @property
    def result(self) -> CrateResult | None:
        """What became of the crate, when it has ended, or the test in it."""
        return self._result if self._made is None or self._made.alive else self._made.result

    @property
    def stacks(self) -> str:
        """The stacks of a child that was killed, or crashed."""
        return "" if self._made is None else self._made.stacks

    @property
    def left_behind(self) -> str:
        """In the mirror: the threads that a crate which hung may have missed, where none is known to hold a lock."""
        return "" if self._made is None else self._made.left_behind

    @property
    def _body(self) -> Body:
        # Not an assert: a suite's pytest_assertion_pass hook would see it.
        return cast("Body", self._made)

    def _end(self) -> None:
        """Remove the crate and keep what it used; idempotent."""
        if self._made is not None:
            self._made.end()

    # -- both sides ------------------------------------------------------------------------------

    def arm(self) -> None:
        """Have the item's set-up step done in a crate."""
        self.item.setup = self._set_up  # type: ignore[method-assign]

    def ride_on(self, rider: Rider) -> None:
        """In a child: have the item's set-up step done here, in the crate that other tests have been in before."""
        self.rider, self.begins_ride = rider, False
        rider.goes_on(self.item)

    def disarm(self) -> None:
        """Give the item its own methods back, and leave no crate behind."""
        for name in ("setup", "runtest"):
            self.item.__dict__.pop(name, None)
        if not self.in_child and not self.is_over:
            self._end()

    @property
    def body(self) -> Body | None:
        """In the mirror: the process in the item's crate."""
        return self._made

    @property
    def is_over(self) -> bool:
        """In the mirror: whether the test has ended, and its crate waits for another."""
        return self._result is not None and self._body.alive

    def phase_starts(self, phase: Phase) -> None:
        """Note that a phase's hook is called: in the child not before it is called in the mirror, too."""
        self._phase, self._phase_over = phase, False
        self.exception = None  # the one of the phase before
        if phase == "setup":
            return  # there is no child yet
        if self.rider is not None:
            self.rider.begins(phase)
        elif self._made is not None and self._made.alive and not self.is_over and self._waits:
            self._release()  # the phase before was never awaited
            self._held = True

    def phase_ends(self) -> None:
        """Note that a phase's hook has returned or raised: the next report made is the phase's."""
        self._phase_over = True

    def _set_up(self) -> None:
        del self.item.setup  # the class's own method again
        if self._clock is not OFF:
            self._clock = Running()
        try:
            private.set_up_wider_fixtures(self.item, self._interplay.wider_fixtures(self.item))
            self._clock.done("set up wider fixtures")
            here = self._go_on_or_enter()
        except BaseException as error:
            if not self._mirroring:
                private.forget_teardown(self.item)
            # Interrupted while the child is at work, it has the time to tear down: abandon().
            if not self.in_child and not (self._mirroring and isinstance(error, KeyboardInterrupt)):
                self._end()
            raise
        if here:
            self.item.setup()

    def _go_on_or_enter(self) -> bool:
        __tracebackhide__ = True
        # What a wider fixture's thread says in answer to a body is captured in the phase that pytest is in.
        self._waits = self._in_step or threading.active_count() > 1
        body = self._crate_to_share(self.item)
        if not isinstance(body, Body):
            self._check_threads()
            self._clock.done("look for threads")
            return self._enter_crate(body)
        self._made, self._follows = body, True
        self._mirror()
        # The child has begun one in its own protocol.
        private.dump_stacks_in_time(self.item.config, here=False)
        body.goes_on(self.item, number_of(self.item), number_of(self._following))
        self._clock.done("part from the child")
        self._prepare_next()
        self._clock.done("have the next one begun")
        self._await("setup")
        return False

    def _enter_crate(self, sharing: Sharing | None) -> bool:
        """Fork into a fresh crate; return whether the item's own set-up is to be done in the calling process."""
        __tracebackhide__ = True
        try:
            sandbox = self._create(self.item, self._clock)
        except Uncrated as refusal:
            self.uncrated = refusal.reason
            return True
        with contextlib.ExitStack() as ours:
            # The crate is the body's, as soon as there is one.
            unused = ours.enter_context(contextlib.ExitStack())
            unused.callback(sandbox.close)
            basetemp = private.basetemp(self.item.config)
            if basetemp is not None and self.spec.user is not None and os.geteuid() == 0:
                # tmp_path is made by the user that the body becomes; pytest's own directory is open to root alone.
                os.chmod(basetemp, 0o1777)
            try:
                here = os.getcwd()
            except FileNotFoundError:  # a test before this one removed it
                here = str(self.item.config.rootpath)
            # What is done here, if not in the child, whatever happens: in reverse order.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
            ours.callback(signal.pthread_sigmask, signal.SIG_SETMASK, mask)
            try:
                body = Body(self.item, self.spec, sandbox, self._output, self._interplay, self._threads, sharing)
            except OSError as error:
                raise CrateFailed(f"crate: open the pipes to the test's process: pipe2: {error}") from None
            unused.pop_all()
            self._made = body
            ours.callback(body.in_mirror)
            self._interplay.before_fork(self.item)
            flush(self.item.config)
            self._logged_before = private.logged(self.item.config)
            if self._output is not None:
                self._output.before_fork()
            # The child's from now on. In a child the watchdog of its parent could not even be cancelled: that waits for
            # its thread (faulthandler.c).
            private.dump_stacks_in_time(self.item.config, here=False)
            frozen = collector.before_fork()
            ours.callback(collector.after_fork, frozen)
            # Ctrl-C on a terminal is for both until the child has a session of its own: it must know that it is the
            # child. And a handler that raises, as an alarm's, must not before it is known which one that is: its crate
            # could not end while nobody waits for it (pid_namespaces(7)).
            signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
            self._clock.done("get ready to fork")
            childs = Running() if self._clock is not OFF else OFF
            try:
                pid = sandbox.fork(lambda error: die(body.sending, error), childs)
                if pid:
                    self._clock.done("fork")
                    self._become_mirror(pid)
            except SandboxError as error:
                raise CrateFailed(f"the crate could not be entered: {error}") from None
            if pid == 0:
                ours.pop_all()
        if pid == 0:
            collector.in_child(frozen)
            made.deafen()
            self.rider = rider = Rider(self.item, body, self._output, self._in_step, self._interplay, childs)
            self.item.config.stash[RIDER] = rider
            rider.enter(here, self.plugin)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            return True
        if self._output is not None:
            self._output.in_mirror()
        self._clock.done("part from the child")
        # While the child is at work, and pytest waits.
        self._prepare_next()
        self._clock.done("have the next one begun")
        self._await("setup")
        return False

    def _check_threads(self) -> None:
        self._threads = threads.others()
        policy = self.item.config.getini("crate_fork_check")
        if policy == "off" or not any(thread.place for thread in self._threads):
            return
        message = threads.left_behind(self._threads)
        if policy == "error":
            raise CrateFailed(f"{message} (crate_fork_check = error)")
        warnings.warn(CrateForkWarning(message), stacklevel=1)

    def abandon(self) -> None:
        """In the mirror: the protocol was broken off; give the child the time to tear down what it has set up."""
        if self._mirroring and self._body.alive:
            self._body.interrupt()
            with contextlib.suppress(CrateFailed):  # nobody asks any more
                self._body.take_rest()
            self._end()

    # -- the mirror ------------------------------------------------------------------------------

    def _become_mirror(self, pid: int) -> None:
        self._mirror()
        self._body.starts(pid)

    def _mirror(self) -> None:
        self._mirroring = True
        # The item's own teardown is the child's. It is on the stack already.
        private.forget_teardown(self.item, self._tear_down)
        self.item.runtest = self._run_test  # type: ignore[method-assign]

    def _run_test(self) -> None:
        __tracebackhide__ = True
        self._await("call")

    def _tear_down(self) -> None:
        __tracebackhide__ = True
        if not self._body.alive:
            return  # the crate is gone, and with it all that there was to tear down
        self._await("teardown")
        try:
            self._part()
        except CrateFailed:
            if self._body.interrupted:
                self._body.raise_interrupt()
            raise
        if self._body.stop is not None:
            try:
                self._stop(self._body.stop)
            except transfer.REFUSED as error:
                raise CrateFailed(transfer.refusal(error)) from None
        if self._body.unheard:
            self._body.raise_interrupt()

    def _part(self) -> None:
        """Let the child leave, as it does by itself after its last report, or wait for another test."""
        # Nothing else in the crate matters any more.
        try:
            self._body.take_rest(waits=self._body.sharing is not None, reported=True)
            if self._body.over:
                if self.goes_on and not self._body.exceeded_since():
                    self._clock.done("wait for the child's end")
                    self._result = self._body.test_ends()
                    self._clock.done("read its usage and have it removed")
                    return
                self._body.tell(LEAVE)
                self._body.take_rest(reported=True)
        except CrateFailed:
            self._collapsed.add("teardown")
            self._end()
            raise
        exit_ = self._body.wait_for_exit()
        self._clock.done("wait for the child's end")
        self._end()
        self._clock.done("read its usage and have it removed")
        # What a daemon has met since its test's last report, up to its own end, counts as well.
        if self._body.exceeded:
            self._collapsed.add("teardown")
            raise CrateFailed(self._body.limit_message(self._body.exceeded))
        if not self._body.leaves or exit_ not in (Exit(code=0), Exit()):  # unknown: a suite waited for it in our place
            self._collapsed.add("teardown")
            try:
                self._body.sandbox.verify_alive()
            except SandboxError as error:
                raise CrateFailed(f"crate: {error}") from None
            raise CrateFailed(f"the test's process did not leave by itself after its last report: {exit_}")

    def steps(self) -> dict[str, Mapping[str, int]]:
        """In the mirror, with ``--crate-debug``: what each step took, by process, in microseconds."""
        spent = self._clock.spent()
        if not spent or self._made is None:
            return {}
        made = {} if self._follows else self._made.sandbox.steps
        return {"pytest": spent, **made, "body": self._made.steps}

    @property
    def imports(self) -> Mapping[str, int]:
        """In the mirror: what the child has imported, and the microseconds that took."""
        return {} if self._made is None else self._made.imports

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
        if self.rider is not None:
            return "quiet" if self.rider.quiet else "no"
        if not self._mirroring:
            return "no"
        return "loud" if self._collapsed else "quiet"

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
        if phase != "setup":
            self._clock.done("hooks after the set-up" if phase == "call" else "hooks after the call")
        try:
            self._release()
            try:
                data = self._next_report(phase)
            except KeyboardInterrupt:
                # Raised in the child, which is gone; or the second one. Else by a handler of somebody else's.
                if not self._body.alive or self._body.interrupted:
                    raise
                self._body.interrupt()
                data = self._next_report(phase)
        except BaseException as error:
            self._collapsed.add(phase)
            self._end()
            if isinstance(error, CrateFailed) and self._body.interrupted:
                self._body.raise_interrupt()
            if isinstance(error, SandboxError):
                raise CrateFailed(f"crate: {error}") from None
            if threads.hold_locks(self._threads) and not isinstance(
                error, (CrateFailed, KeyboardInterrupt, pytest.exit.Exception)
            ):
                # Another plugin's own timeout, raised from a signal.
                error.add_note(threads.left_behind(self._threads))
            raise
        self._clock.done(_WAITED[phase])
        exceeded = self._exceeded or ()
        if exceeded:
            self._collapsed.add(phase)
            self.exception = None  # the child's, in place of which the limit is told
            report = transfer.unpack_report(self.item.config, data)
            text = "" if report.passed else f"\n\n{report.longreprtext}"
            sections = report.sections
            self._end()
            raise CrateFailed(self._body.limit_message(exceeded) + text, sections)
        self._reports[phase] = data
        if phase != "teardown" and not self._in_step:
            # What a wider fixture's thread prints here from now on is said in the child's next phase.
            self._own_output[phase] = private.take_captured(self.item.config)

    def _hears(self, frame: bytes) -> None:
        # The child waits: its report is taken apart while it is at work again.
        if frame.startswith(PHASE_BEGINS):
            self._look_at_limits()

    def _look_at_limits(self) -> None:
        """Look at the limits when the child has told of a phase; if it went over none, let it go on."""
        if self._exceeded is not None:
            return
        phase = self._awaited
        if phase == "call":
            self._body.sandbox.note_levels()
        self._exceeded = self._body.exceeded_since()
        if not self._exceeded and phase != "teardown" and not self._waits:
            self._body.tell(NEXT_PHASE)

    def _next_report(self, phase: Phase) -> dict[str, Any]:
        self._awaited, self._exceeded = phase, None
        while True:
            while not self._body.messages:
                self._body.messages.extend(self._body.read(self._hears))
            message = self._body.messages.popleft()
            try:
                logged, data = self._take(message, phase)
            except transfer.REFUSED as error:
                raise CrateFailed(transfer.refusal(error)) from None
            if logged is not None:
                with private.capture_suspended(self.item.config):
                    self.item.ihook.pytest_runtest_logreport(report=logged)
            if data is not None:
                self._look_at_limits()
                return data
            if self._body.left() == 0:  # a body that reports subtests, or says anything else, without end
                self._body.time_out()

    def _take(self, message: wire.Message, phase: Phase) -> tuple[pytest.TestReport | None, dict[str, Any] | None]:
        """Take a message of the child's: return a report to be logged, or a phase's report as it was sent.

        What it holds is the word of a process that may not be trusted: it is taken apart here, and nowhere later.
        """
        for warning in message.get("warnings", ()):
            warned.show_warning(warning, abroad=hasattr(self.item.config, "workerinput"))
            if self._body.left() == 0:  # a body that warns without end
                self._body.time_out()
        if "logged" in message:
            logged = self._own(transfer.unpack_report(self.item.config, message["logged"]))
            if logged.nodeid == self.item.nodeid and logged.when != "call":  # that of a subtest is one of its call
                raise ValueError(f"a report of the {logged.when}, beside its own")
            return logged, None
        if "entered" in message:
            self._body.entered = True
        self._body.attend_to(message)
        if "stop" in message:
            self._stop(message["stop"])
        if "sandbox_error" in message:
            error = SandboxError.from_json(message["sandbox_error"])
            raise CrateFailed(f"the crate could not be entered: {transfer.shortened(str(error), _MAX_ERROR)}")
        if "error" in message:
            told = transfer.shortened(str(message["error"]), _MAX_ERROR)
            raise CrateFailed(f"the test's protocol broke off in its crate: {told}")
        if "phase" not in message:
            return None, None
        if message["phase"] != phase:
            raise ValueError(f"a report of {message['phase']!r} in {phase}")
        report = self._own(transfer.unpack_report(self.item.config, message["report"]))
        if report.when != phase or report.outcome not in ("passed", "failed", "skipped"):
            raise ValueError(f"{report.outcome} in {report.when}")
        if private.is_of_subtest(report):  # pytest tells nothing of one that has passed
            raise ValueError(f"a subtest's report in place of the {phase}'s")
        self.item.user_properties[:] = transfer.unpack_properties(message["properties"])
        self._unpacked, self._body.reported = report, True
        private.set_failed_subtests(self.item, message["failed_subtests"])
        private.add_junit_records(self.item, message["junit"])
        private.give_values(self.item, transfer.unpack_values(message["values"]))
        thrown = message["exception"]
        self.exception = None if thrown is None else _excinfo(raised.unpack_exception(thrown))
        self._interplay.give_phase(self.item, message["kept"])
        transfer.unpack_stops(self.item.session, message["stops"])
        return None, cast("dict[str, Any]", message["report"])

    def _own(self, report: pytest.TestReport) -> pytest.TestReport:
        """Return a report of the child's; it may not be one in another test's name.

        A name that is nobody's is let through: there are plugins that give their reports other names.
        """
        if report.nodeid != self.item.nodeid and private.xml_text(report.nodeid) != report.nodeid:
            raise ValueError(f"a report of {report.nodeid!r}")
        if report.nodeid != self.item.nodeid and any(
            report.nodeid == other.nodeid for other in self.item.session.items
        ):
            raise ValueError(f"a report of {report.nodeid}")
        self._interplay.verify_report(self.item, report)
        return report

    def _release(self) -> None:
        """Let a child that is held begin the phase that pytest has begun."""
        if self._held and self._body.alive:
            self._held = False
            self._body.let_go_on(NEXT_PHASE)

    def _stop(self, stop: Mapping[str, Any]) -> NoReturn:
        interrupted = stop["kind"] == "interrupt"
        path, line = (str(stop["path"]), int(stop["line"])) if interrupted else ("", 0)
        reason, code = ("", None) if interrupted else (str(stop["reason"]), stop["returncode"])
        code = None if code is None else int(code)
        # The run ends, whatever there is to be said of this test; a forged word of it does not hold the run up.
        self._body.ends_soon()
        with contextlib.suppress(CrateFailed):
            self._body.take_rest()
        self._end()
        if interrupted:
            raise_interrupt(path if warned.is_source(path) else f"<{path}>", line)
        pytest.exit(reason, returncode=code)


OWNER = pytest.StashKey[int]()
"""The pid of the pytest process that owns the crates; a forked child finds another than its own."""


def _excinfo(error: BaseException) -> pytest.ExceptionInfo[BaseException]:
    # With a traceback, if only of this place: pytest's class is made of three parts.
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001 - whatever a test may raise
        return pytest.ExceptionInfo.from_exception(caught)
