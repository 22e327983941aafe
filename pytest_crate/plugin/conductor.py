"""Leads each item that rides in a crate through pytest's hooks, and attaches what its crates used to its report."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NoReturn

import pluggy
import pytest

from pytest_crate.errors import CrateError
from pytest_crate.plugin import echo, imports, private, reach, sharing, specs
from pytest_crate.plugin.body import Body
from pytest_crate.plugin.crates import Crates, Uncrated
from pytest_crate.plugin.echo import Echo
from pytest_crate.plugin.failed import CrateFailed
from pytest_crate.plugin.interplay import HOME, Interplay
from pytest_crate.plugin.output import ChildOutput
from pytest_crate.plugin.rider import RIDER, Rider
from pytest_crate.plugin.sharing import Sharing
from pytest_crate.plugin.walk import OWNER, Phase, Walk
from pytest_crate.report.failure import failure_section
from pytest_crate.report.header import header_line
from pytest_crate.report.junit import junit_properties
from pytest_crate.report.limits import near_limits
from pytest_crate.report.record import TestRecord
from pytest_crate.result import CrateResult
from pytest_crate.sandbox.sandbox import Sandbox
from pytest_crate.sandbox.steps import Clock
from pytest_crate.sandbox.temporary import TemporaryEntries
from pytest_crate.spec import CrateSpec

CRATES = pytest.StashKey[Crates]()
"""On the config: what makes the crates of this process."""

DRIVEN = pytest.StashKey[list[tuple[CrateSpec, CrateResult, bytes]]]()
"""On an item: the crates that its fixtures drove, when they have ended: spec, result, tail of standard error."""

_WALK = pytest.StashKey[Walk]()
_REPORTED = pytest.StashKey[bool]()


CONDUCTOR = pytest.StashKey["Conductor"]()
"""On the config, where any item has a crate."""


class Conductor:
    """The outermost plugin around an item's protocol, in pytest and in the child."""

    def __init__(self, config: pytest.Config, crates: Crates) -> None:
        self.config = config
        self.crates = crates
        self._worker = getattr(config, "workerinput", {}).get("workerid")
        # pytest keeps every report: what is the same in many is kept once.
        self._facts: dict[str, Any] | None = None
        self._next: pytest.Item | None = None
        self._specs: dict[CrateSpec, dict[str, object]] = {}
        self._walk: Walk | None = None
        self._items: list[pytest.Item] = []
        self._waiting: Body | None = None  # a crate with a process that waits for another test
        self._last: pytest.Item | None = None
        self._shared = 0
        self._fixtures = 0
        self._in_fixture = False  # a wider one is being set up
        self._output: ChildOutput | None = None
        self._own_failure = False

    @classmethod
    def take_over(cls, session: pytest.Session, entries: TemporaryEntries) -> None:
        """Decide which items get a crate; if any does, join the run.

        :raises pytest.UsageError: a crate is described wrongly, or a module to be preloaded can't be imported.
        """
        config = session.config
        find_image = specs.ImageFinder(config)
        if not specs.assign(config, session.items, find_image) or config.getoption("collectonly"):
            return
        if any(map(specs.rides, session.items)):
            imports.preload(config.getini("crate_preload"))
        crates = Crates(config, entries, find_image)
        for item in session.items:
            if specs.SPEC in item.stash:
                crates.lend(item.stash[specs.SPEC])
        config.stash[CRATES] = crates
        config.stash[OWNER] = os.getpid()
        config.stash[HOME] = Interplay(config)
        mirror = Mirror()
        config.pluginmanager.register(mirror, "crate-mirror")
        private.call_just_before_runner(config, "pytest_runtest_makereport", mirror)
        # Registered last and tried first: the outermost of all.
        conductor = cls(config, crates)
        config.stash[CONDUCTOR] = conductor
        config.pluginmanager.register(conductor, "crate-conductor")
        shared = conductor.number(session.items)
        echo.install(config, conductor.echo, around_protocol=conductor.echo_around_protocol if shared else None)

    def number(self, items: Iterable[pytest.Item]) -> bool:
        """Number the items, so that a child finds the next one; return whether any may share a crate."""
        self._items = list(items)
        for number, item in enumerate(self._items):
            item.stash[sharing.NUMBER] = number
        return any(sharing.home_of(item) is not None for item in self._items)

    # -- the run ---------------------------------------------------------------------------------

    def pytest_report_collectionfinish(self) -> str | None:
        try:
            return self._header()
        except CrateError as error:
            return f"crate: {error}"  # each crate will meet it again

    def _header(self) -> str:
        enforcement = self.crates.enforcement
        return header_line(
            kernel_release=os.uname().release,
            cgroup_version=enforcement.cgroups.version or None,
            cgroup_parent=enforcement.cgroups.how,
            rootless=enforcement.rootless,
            user_namespace=enforcement.user_namespace,
            rootfs="overlay" if enforcement.overlay else "NO overlay (images copied, the host's root read-only)",
            not_enforced=sorted({"memory", "cpus", "pids"} - enforcement.cgroups.limits),
            unsupported=self.crates.policy,  # type: ignore[arg-type]
        )

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtestloop(self) -> Generator[None, object, object]:
        try:
            return (yield)
        finally:
            # Before those who measure a run as a whole look at it: -x leaves a crate behind that waits.
            self._retire()
            self.crates.give_back()
            self.crates.clean_cache()

    def pytest_unconfigure(self) -> None:
        if os.getpid() == self.config.stash[OWNER]:
            self.crates.close()

    # An exception passes through these wrappers around fixtures and phases: _forget_own_frames. (Around a wrapper of
    # the older kind, which it doesn't pass through, pluggy 1.6 has frames of its own, told from nobody else's.)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(self, request: pytest.FixtureRequest) -> Generator[None, object, object]:
        if request.scope == "function" or RIDER in self.config.stash:
            return (yield)
        self._fixtures += 1
        # One that asks for another with getfixturevalue() is in the midst of its own set-up: what it has made so far is
        # the run's, too.
        outer, self._in_fixture = self._in_fixture, True
        if outer:
            self.crates.fixture_ready()
        else:
            self.crates.watch_fixture()
        try:
            return (yield)
        finally:
            self._in_fixture = outer
            self.crates.fixture_ready()

    def pytest_fixture_post_finalizer(self, fixturedef: pytest.FixtureDef[object]) -> None:
        # A crate that was forked before has it still, and what it has patched.
        if fixturedef.scope != "function" and fixturedef.cached_result is not None:
            self._fixtures += 1

    def echo(self) -> echo.Echo:
        """What a call of a phase's hook in this process is beside one in a crate."""
        if self._walk is None:
            return "no"
        return "loud" if self._own_failure and self._walk.echo == "quiet" else self._walk.echo

    def echo_around_protocol(self) -> Echo:
        """The same of what is wrapped around the whole protocol of a test that shares its crate."""
        rider = self._rider()
        return "quiet" if rider is not None and rider.quiet else "no"

    # -- the protocol ----------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        self._next = nextitem
        if not specs.rides(item):
            return (yield)
        failure: BaseException | None = None
        try:
            return (yield)
        except BaseException as error:
            failure = error
            raise
        finally:
            walk = item.stash.get(_WALK, None)
            if walk is not None:
                if failure is not None:
                    if walk.rider is not None:
                        walk.rider.ends(failure)
                    walk.abandon()
                walk.disarm()
                del item.stash[_WALK]
                self._walk = None
                if walk.rider is None:
                    self.crates.clean_cache()
                    # One that still waits was not taken, for the protocol broke off: nobody may go on in it.
                    self._waiting, self._last = (walk.body, item) if walk.is_over else (self._waiting, None)
                elif not walk.rider.over:
                    walk.rider.ends()
                elif walk.begins_ride:
                    self._ride_on(walk.rider)
            elif RIDER in self.config.stash:  # the protocol broke off before the set-up
                self.config.stash[RIDER].ends(failure)

    def _ride_on(self, rider: Rider) -> NoReturn:
        """In a child, after its first test: walk the other tests of its crate through the protocol, as pytest would."""
        try:
            while (numbers := rider.await_test()) is not None:
                item, following = (None if number < 0 else self._items[number] for number in numbers)
                self.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        except BaseException as error:  # noqa: BLE001 - the child must not get back into pytest
            rider.ends(error)
        rider.ends()

    def _crate_to_share(self, item: pytest.Item) -> Body | Sharing | None:
        """In pytest: return the crate that an item goes on in, or what others may share its own by."""
        waiting, last = self._waiting, self._last
        home = sharing.home_of(item) if self.config.stash[HOME].shares(item) else None
        if (
            waiting is not None
            and last is not None
            and waiting.sharing is not None
            and waiting.sharing.home is home
            and sharing.follows(item, last)
            # What has been set up or torn down in pytest since the fork, the crate doesn't know.
            and waiting.sharing.fixtures == self._fixtures
            and not private.sets_up_collectors(item, last)
        ):
            self._waiting = None
            return waiting
        self._retire_or_fail()
        if home is None:
            return None
        self._shared += 1
        return Sharing(home=home, number=self._shared, fixtures=self._fixtures)

    def _retire(self) -> Sequence[str]:
        """In pytest: end the crate that waits for another test; return the limits that it has exceeded meanwhile."""
        waiting, self._waiting = self._waiting, None
        return [] if waiting is None else waiting.retire()

    def _retire_or_fail(self) -> None:
        """In pytest: end the crate that waits for this test.

        :raises CrateFailed: it has gone over a limit meanwhile.
        """
        exceeded = self._retire()
        if exceeded:
            raise CrateFailed(
                "what the tests before left running in the crate that this one would share has gone over a limit: "
                f"{', '.join(exceeded)}"
            )

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        if specs.rides(item):
            earlier = item.stash.get(_WALK, None)
            if earlier is not None:  # a plugin tries the item again: each try has a crate of its own
                if earlier.rider is not None:
                    earlier.rider.ends()
                earlier.disarm()
            in_step = private.writes_from_the_crate(self.config)
            walk = Walk(
                item,
                item.stash[specs.SPEC],
                self._create,
                self.prepare_next,
                self._crate_to_share,
                self._next,
                self._child_output(in_step),
                in_step,
                self,
            )
            item.stash[_WALK] = self._walk = walk
            rider = self._rider()
            if rider is None:
                walk.arm()
            else:
                walk.ride_on(rider)
        return (yield from self._phase(item, "setup"))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        return (yield from self._phase(item, "call"))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        walk = item.stash.get(_WALK, None)
        if walk is not None:
            walk.goes_on = sharing.follows(nextitem, item)
        try:
            result = yield from self._phase(item, "teardown")
        except BaseException:
            self._retire()
            raise
        # It waits still where this test never came to its own set-up: it is skipped by its marker, or a wider fixture
        # failed. What is set up in there need not be what the next one wants.
        self._retire_or_fail()
        return result

    def _phase(self, item: pytest.Item, phase: Phase) -> Generator[None, object, object]:
        walk = item.stash.get(_WALK, None)
        if walk is not None:
            walk.phase_starts(phase)
        try:
            return (yield)
        finally:
            if walk is not None:
                walk.phase_ends()

    def _create(self, item: pytest.Item, clock: Clock) -> Sandbox:
        try:
            return self.crates.create_or_refuse(item.stash[specs.SPEC], clock=clock)
        except CrateError as error:
            reason = f"crate: {error}"
        pytest.fail(reason, pytrace=False)

    def _child_output(self, in_step: bool) -> ChildOutput | None:
        if self._output is None and not (in_step and private.captures(self.config) in ("fd", "no")):
            self._output = ChildOutput(self.config)
        return self._output

    def prepare_next(self) -> None:
        """Have the crate begun that the next test will probably ask for, while this one runs."""
        item = self._next
        if item is None or specs.SPEC not in item.stash:
            return
        if specs.drives_one(item):
            # A program may end sooner than a crate is made. (The item after the next one is a guess with xdist.)
            spec = item.stash[specs.SPEC]
            number = sharing.number_of(item) + 1
            after = self._items[number : number + 1]
            more = after and specs.drives_one(after[0]) and after[0].stash.get(specs.SPEC, None) == spec
            self.crates.prepare(spec, programs=True, count=2 if more else 1)
        elif specs.rides(item) and not (self._walk is not None and sharing.follows(item, self._walk.item)):
            self.crates.prepare(item.stash[specs.SPEC])

    # -- reports ---------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        if call.excinfo is not None:
            _forget_own_frames(call.excinfo)
        walk = item.stash.get(_WALK, None)
        with self._as_in_the_crate(walk, call):
            report = yield
        if walk is not None:
            if walk.rider is not None:
                if report.failed and call.excinfo is not None:
                    setattr(report, reach.ATTRIBUTE, reach.found(call.excinfo.value, walk.spec))
                if walk.is_phase_report(report):
                    walk.rider.made(report, call)
                return report
            if walk.is_phase_report(report):
                report = _mirrored(walk, call, report)
                reach.tell(report, self.crates.hidden)
        if report.when == "teardown" and specs.SPEC in item.stash:
            self._attach(item, walk, report)
        return report

    @contextmanager
    def _as_in_the_crate(self, walk: Walk | None, call: pytest.CallInfo[None]) -> Iterator[None]:
        """In pytest: let other plugins see, while a report is made, how the phase ended in the crate."""
        own = call.excinfo
        if walk is None or walk.echo == "no" or own is not None or not walk.is_phase(call.when):
            self._own_failure = own is not None
            try:
                yield
            finally:
                self._own_failure = False
            return
        call.excinfo = walk.exception
        try:
            yield
        finally:
            call.excinfo = own  # so that nobody is called to interact with it once more

    def _attach(self, item: pytest.Item, walk: Walk | None, report: pytest.TestReport) -> None:
        """Attach to a teardown report what the item's crates used: xdist carries it to the controller."""
        spec = item.stash[specs.SPEC]
        driven = item.stash.get(DRIVEN, [])
        item.stash[DRIVEN] = []
        found = [(used, result) for used, result, _ in driven]
        if walk is not None and walk.result is not None:
            found.append((spec, walk.result))
        uncrated = None if walk is None else walk.uncrated
        if not found and uncrated is None:
            return
        for _, result in found:
            item.ihook.pytest_crate_usage(item=item, usage=result.usage)
        for used, result, stderr in driven:
            if result.exceeded:
                report.sections.append(failure_section(result, used, stderr=stderr))
        data: dict[str, Any] = {
            **self._common_facts(),
            "spec": self._spec_data(spec),
            "uncrated": uncrated,
            "crates": [
                {**result.to_json(), **({} if used == spec else {"spec": self._spec_data(used)})}
                for used, result in found
            ],
        }
        steps = {} if walk is None else walk.steps()
        if steps:
            data["steps"] = steps
        if walk is not None and walk.imports:
            data["imports"] = walk.imports
        report.crate = data  # type: ignore[attr-defined]
        if self.config.getoption("xmlpath", None):
            record = TestRecord.from_json({**data, "nodeid": report.nodeid, "outcome": "passed"})
            report.user_properties = [*report.user_properties, *junit_properties(record)]

    def _common_facts(self) -> dict[str, Any]:
        if self._facts is None:
            self._facts = {"worker": self._worker, "host": host_facts(self.crates), "header": self._header()}
        return self._facts

    def _spec_data(self, spec: CrateSpec) -> dict[str, object]:
        if spec not in self._specs:
            self._specs[spec] = spec.to_json()
        return self._specs[spec]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        rider = self._rider()
        if rider is not None:
            rider.logs(report)
        else:  # a subtest's, from a child
            reach.tell(report, self.crates.hidden)

    @pytest.hookimpl(tryfirst=True)
    def pytest_exception_interact(self) -> None:
        rider = self._rider()
        if rider is not None:
            rider.interacts()

    def pytest_enter_pdb(self) -> None:
        rider = self._rider()
        if rider is not None:
            rider.debugs(True)

    def pytest_leave_pdb(self) -> None:
        rider = self._rider()
        if rider is not None:
            rider.debugs(False)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logfinish(self) -> None:
        rider = self._rider()
        if rider is not None:
            rider.finishes()

    def _rider(self) -> Rider | None:
        return self.config.stash.get(RIDER, None)


class Mirror:
    """The innermost plugin: gives the other plugins' report hooks, in pytest, the child's report to work on."""

    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> pytest.TestReport | None:
        walk = item.stash.get(_WALK, None)
        if walk is None or walk.in_child or call.excinfo is not walk.exception or not walk.is_phase(call.when):
            return None
        return walk.mirror_report(call.when)


def _forget_own_frames(info: pytest.ExceptionInfo[BaseException]) -> None:
    """Take the frames of wrapper and walk out of a traceback that passes through them, as if there were no crate."""
    entries: list[TracebackType] = []
    entry: TracebackType | None = info.tb
    while entry is not None:
        entries.append(entry)
        entry = entry.tb_next
    kept: TracebackType | None = None
    wrapper = False
    for entry in reversed(entries):
        frame = entry.tb_frame
        # A wrapper is entered from pluggy's loop, which is there once more for each.
        loop = wrapper and str(frame.f_globals.get("__name__")).partition(".")[0] == pluggy.__name__
        wrapper = frame.f_code.co_filename == __file__
        if kept is None or not (loop or frame.f_code.co_filename in _PASSED_THROUGH):
            kept = TracebackType(kept, frame, entry.tb_lasti, entry.tb_lineno)
    info.value.__traceback__ = kept
    info.traceback = type(info.traceback)(kept)  # type: ignore[arg-type]


_PASSED_THROUGH = (
    __file__,
    echo.__file__,
    private.__file__,
    Walk.arm.__code__.co_filename,
    Rider.ends.__code__.co_filename,
)


def _mirrored(walk: Walk, call: pytest.CallInfo[None], own: pytest.TestReport) -> pytest.TestReport:
    """Return what counts as the report of a phase in pytest: the child's, wherever it has sent one."""
    report = own
    mirrored = walk.mirror_report(call.when)
    if mirrored is not None:
        sections = _with_output(mirrored.sections, walk.own_sections(str(call.when)))
        if call.excinfo is None:
            report = _renewed(own, mirrored)
        elif mirrored.failed:
            # The child's part failed; then a wider fixture's teardown failed in pytest, too.
            sections.append(("teardown inside the crate", mirrored.longreprtext))
        report.sections = sections
    failure = None if call.excinfo is None else _crate_failure(call.excinfo.value)
    if failure is not None:
        _speak_for_the_child(walk, failure, report)
        # (One of a group leaves others to be looked at.)
        if call.excinfo is not None and call.excinfo.value is failure and walk.item.config.getoption("usepdb", False):
            # The process that failed is gone: a debugger would show where pytest waited for it.
            call.excinfo = None
    if report.failed and walk.result is not None:
        result = walk.result
        if walk.collapsed_in(call.when) or near_limits(result, walk.spec):
            report.sections.append(failure_section(result, walk.spec, stacks=walk.stacks, left_behind=walk.left_behind))
    return report


def _renewed(own: pytest.TestReport, mirrored: pytest.TestReport) -> pytest.TestReport:
    """Return the report that the hooks had, as it came from the child: what they add to it, it has from there already.

    A plugin may know it again by its identity.
    """
    if type(own) is not type(mirrored):
        return mirrored
    own.__dict__ = mirrored.__dict__
    return own


def _with_output(sections: list[tuple[str, str]], added: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return sections with more output, each text in the section of its title, as if one process had written both."""
    merged = dict(added)
    joined = []
    for title, text in sections:
        more = merged.pop(title, "")
        # A section of the log has no line's end at its own.
        joined.append((title, text + ("\n" if more and title.startswith("Captured log ") else "") + more))
    if not merged:
        return joined
    # pytest's own order of sections; the sort leaves all others where they are.
    order = [
        f"Captured {key} {phase}" for phase in ("setup", "call", "teardown") for key in ("stdout", "stderr", "log")
    ]
    return sorted(
        joined + list(merged.items()), key=lambda section: order.index(section[0]) if section[0] in order else -1
    )


def _crate_failure(error: BaseException) -> CrateFailed | None:
    """Return the crate's failure that an error is, or has in it: pytest groups what several finalizers raise."""
    if isinstance(error, BaseExceptionGroup):
        return next((found for each in error.exceptions if (found := _crate_failure(each)) is not None), None)
    return error if isinstance(error, CrateFailed) else None


def _speak_for_the_child(walk: Walk, failure: CrateFailed, report: pytest.TestReport) -> None:
    report.sections[:0] = [section for section in failure.sections if section not in report.sections]
    # A crash is not the failure that an xfail without raises= foresaw, nor one that a hook may take for a success.
    if not (hasattr(report, "wasxfail") and _names(private.expected_failures(walk.item), failure)):
        vars(report).pop("wasxfail", None)
        report.outcome = "failed"


def _names(raises: Any, failure: CrateFailed) -> bool:
    """Tell whether an xfail's ``raises=`` names a crate's failure; there, None is any failure of the test's."""
    if raises is None:
        return False
    if isinstance(raises, (type, tuple)):
        return isinstance(failure, raises)
    return bool(raises.matches(failure))  # pytest.RaisesExc, RaisesGroup


def host_facts(crates: Crates) -> dict[str, object]:
    """Return what enforced the crates, for the JSON report."""
    enforcement = crates.enforcement
    return {
        "kernel": os.uname().release,
        "cgroup_version": enforcement.cgroups.version or None,
        "cgroup_parent": enforcement.cgroups.how,
        "rootless": enforcement.rootless,
        "user_namespace": enforcement.user_namespace,
        "overlay": enforcement.overlay,
        "limits": sorted(enforcement.cgroups.limits),
    }


__all__ = ["CRATES", "DRIVEN", "Conductor", "Mirror", "Uncrated"]
