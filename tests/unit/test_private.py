"""The private names of pytest and pluggy that the plugin lives on: a change of one fails here, by its name."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import io
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pluggy
import pytest

import pytest_crate
from pytest_crate.plugin import private

# ruff: noqa: SLF001 - these are the names that this file is about.

PACKAGE = Path(pytest_crate.__file__).parent
ADAPTER = PACKAGE / "plugin" / "private.py"


@dataclasses.dataclass
class Live:
    """What a running pytest has, for the checks to look at: its objects and this very test's."""

    pytester: pytest.Pytester
    item: Any

    @property
    def config(self) -> Any:
        return self.item.config

    @functools.cached_property
    def report(self) -> Any:
        return pytest.TestReport("a.py::test", ("a.py", 1, "test"), {}, "passed", None, "call")

    @property
    def setup_state(self) -> Any:
        return self.item.session._setupstate

    @functools.cached_property
    def other(self) -> Any:
        """The config of another pytest, with a terminal and a cache of its own."""
        return self.pytester.parseconfigure()

    @property
    def capture(self) -> Any:
        return self.other.pluginmanager.getplugin("capturemanager")

    @property
    def terminal(self) -> Any:
        return self.other.pluginmanager.get_plugin("terminalreporter")

    @functools.cached_property
    def xml(self) -> Any:
        """The JUnit XML plugin of a pytest that writes such a file."""
        configured = self.pytester.parseconfigure("--junitxml=report.xml")
        return configured.stash[_named("_pytest.junitxml", "xml_key")]

    @functools.cached_property
    def subtest(self) -> tuple[Any, dict[str, Any], dict[Any, int], Any]:
        """A failed subtest's report, the same as builtins, pytest's counts of such, and the key of its test there."""
        self.pytester.makepyfile("def test_it(subtests):\n    with subtests.test(number=1): assert 0")
        recorder = _SubtestRecorder()
        self.pytester.inline_run("-pno:terminal", plugins=[recorder])
        (report,) = recorder.reports
        return report, recorder.data, recorder.counts, recorder.key


class _SubtestRecorder:
    def __init__(self) -> None:
        self.reports: list[Any] = []
        self.counts: dict[Any, int] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if type(report) is not pytest.TestReport:
            self.reports.append(report)

    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        # Now: the end of the run may clear them.
        self.data = item.config.hook.pytest_report_to_serializable(config=item.config, report=self.reports[0])
        self.counts = dict(item.config.stash[_named("_pytest.subtests", "failed_subtests_key")])
        self.key = private._key(item)


def _named(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


@pytest.fixture
def live(request: pytest.FixtureRequest, pytester: pytest.Pytester, tmp_path_factory: object) -> Live:
    return Live(pytester, request.node)


# -- the names ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Name:
    """A private name.

    :ivar title: as one would search for it in pytest's source.
    :ivar shape: what the adapter takes it for.
    :ivar used_by: the adapter's function.
    :ivar holder: what the name is an attribute of.
    :ivar check: returns whether it has the shape; it may as well raise.
    :ivar since: the first pytest that has it.
    """

    title: str
    shape: str
    used_by: str
    holder: Callable[[Live], Any]
    check: Callable[[Live], bool]
    since: tuple[int, ...] = (8, 4)

    @property
    def attribute(self) -> str:
        return self.title.rpartition(".")[2]


def _failed(live: Live) -> bool:
    failed = _named("_pytest.outcomes", "Failed")
    return failed is pytest.fail.Exception and failed("reason", pytrace=False).msg == "reason"


def _request(live: Live) -> bool:
    return live.item._request.getfixturevalue("tmp_path_factory") is live.config._tmp_path_factory


def _definitions(live: Live) -> bool:
    definitions = live.item._fixtureinfo.name2fixturedefs
    return [definitions[name][-1].scope for name in ("tmp_path_factory", "pytester")] == ["session", "function"]


def _fixture_names(live: Live) -> bool:
    names = live.item.fixturenames
    # By scope; all that is needed, not the test's own arguments alone.
    return names.index("tmp_path_factory") < names.index("live") and "pytester" in names


def _stack(live: Live) -> bool:
    item, stack = live.item, live.setup_state.stack

    def finalizer() -> None: ...

    item.addfinalizer(finalizer)
    finalizers, _ = stack[item]
    first, *_, last = finalizers
    del finalizers[-1]
    live_list = finalizer not in stack[item][0]
    return list(stack) == item.listchain() and first == item.teardown and last is finalizer and live_list


def _teardown_exact(live: Live) -> bool:
    called: list[str] = []
    state = type(live.setup_state)()
    state.stack[live.item.parent] = ([lambda: called.append("wider")], None)
    state.stack[live.item] = ([lambda: called.append("first"), lambda: called.append("last")], None)
    state.teardown_exact(None)
    return called == ["last", "first", "wider"] and not state.stack


def _remove_plugin(live: Live) -> bool:
    hook = live.config.pluginmanager.hook.pytest_runtest_logreport
    assert isinstance(hook, pluggy.HookCaller)
    plugins = [_SubtestRecorder(), _SubtestRecorder()]
    manager = pytest.PytestPluginManager()
    for plugin in plugins:
        manager.register(plugin)
    caller = manager.hook.pytest_runtest_logreport
    before = [implementation.plugin for implementation in caller.get_hookimpls()]
    caller._remove_plugin(plugins[0])
    after = [implementation.plugin for implementation in caller.get_hookimpls()]
    return before == plugins and after == plugins[1:]


def _capture(live: Live) -> bool:
    manager = live.config.pluginmanager.getplugin("capturemanager")
    with manager.global_and_fixture_disabled() as entered:
        return entered is None and isinstance(manager.global_and_fixture_disabled(), AbstractContextManager)


def _capture_method(live: Live) -> bool:
    return bool(live.capture._method == "fd")


def _global_capturing(live: Live) -> bool:
    streams = live.capture._global_capturing.out, live.capture._global_capturing.err
    files = [stream.tmpfile.fileno() for stream in streams]
    written = [os.write(file, text) for file, text in zip(files, (b"out", b"err"), strict=True)]
    taken = live.capture.read_global_capture()
    return [stream.targetfd for stream in streams] == [1, 2] and (*written, *taken) == (3, 3, "out", "err")


def _old_stream(live: Live) -> bool:
    streams = live.capture._global_capturing.out.syscapture
    live.capture.resume_global_capture()
    before, streams._old = streams._old, io.StringIO()
    try:
        live.capture.suspend_global_capture(in_=False)
        return sys.stdout is streams._old and callable(before.write)
    finally:
        sys.stdout = streams._old = before


def _suspend_global_capture(live: Live) -> bool:
    return list(inspect.signature(live.capture.suspend_global_capture).parameters) == ["in_"]


def _report_stream(live: Live) -> bool:
    plugin = live.other.pluginmanager.getplugin("logging-plugin")
    return isinstance(plugin.report_handler.stream, io.StringIO)


def _log_cli_enabled(live: Live) -> bool:
    plugin = live.other.pluginmanager.getplugin("logging-plugin")
    live.other.option.log_cli_level = "INFO"
    with_level = plugin._log_cli_enabled()
    live.other.option.log_cli_level = None
    return (with_level, plugin._log_cli_enabled()) == (True, False)


def _report_sections(live: Live) -> bool:
    live.item.add_report_section("call", "stdout", "text")
    return live.item._report_sections.pop() == ("call", "stdout", "text")  # type: ignore[no-any-return]


def _report_id(live: Live) -> bool:
    return str(live.report._id) == "a.py::test"


def _setupshow(live: Live) -> bool:
    told = live.pytester.parseconfig("--setup-show").option.setupshow
    return told is True and isinstance(live.config.option.setupshow, bool)


def _xml_key(live: Live) -> bool:
    key = _named("_pytest.junitxml", "xml_key")
    without = live.pytester.parseconfigure()
    return isinstance(key, pytest.StashKey) and key not in without.stash and hasattr(live.xml, "node_reporter")


def _xfailed_key(live: Live) -> bool:
    key = _named("_pytest.skipping", "xfailed_key")
    applies = _named("_pytest.skipping", "Xfail")("reason", True, True, ValueError)
    none = isinstance(key, pytest.StashKey) and live.item.stash.get(key, None) is None  # no xfail applies here
    return none and applies.raises is ValueError


def _bin_xml_escape(_: Live) -> bool:
    escape = _named("_pytest.junitxml", "bin_xml_escape")
    return [escape(text) for text in ("a<", "\x1f", "\udc80", 1)] == ["a<", "#x1F", "#xDC80", "1"]


def _showwarnmsg(_: Live) -> bool:
    with warnings.catch_warnings(record=True) as caught:
        message = warnings.WarningMessage(UserWarning("text"), UserWarning, "file", 3, line="line")
        warnings._showwarnmsg(message)  # type: ignore[attr-defined]
    return caught == [message]


def _global_properties(live: Live) -> bool:
    live.xml.add_global_property("name", 1)
    taken, live.xml.global_properties[:] = list(live.xml.global_properties), []
    return taken == [("name", "1")] and live.xml.global_properties == []


def _node_reporter(live: Live) -> bool:
    key = private._key(live.item)
    live.xml.node_reporter(key).add_attribute("name", 1)
    return dict(live.xml.node_reporter(key).attrs) == {"name": "1"}


def _failed_subtests(live: Live) -> bool:
    outer = live.config.stash[_named("_pytest.subtests", "failed_subtests_key")]
    _, _, counts, key = live.subtest
    return isinstance(outer, dict) and counts == {key: 1}


def _subtest_context(live: Live) -> bool:
    report, data, _, _ = live.subtest
    kwargs = report.context.kwargs
    # pytest 9.0 keeps the values, newer versions their reprs.
    return isinstance(kwargs, dict) and kwargs == data["_subtest.context"]["kwargs"] and str(kwargs["number"]) == "1"


def _outcomes(live: Live) -> bool:
    base = _named("_pytest.outcomes", "OutcomeException")
    kinds = (pytest.fail.Exception, pytest.skip.Exception, pytest.xfail.Exception)
    return all(issubclass(kind, base) for kind in kinds) and not issubclass(base, Exception)


def _entries(_: Live) -> bool:
    code = importlib.import_module("_pytest._code.code")
    kind = _named("_pytest._code.code", "ReprEntry")
    entries = [kind([source, "E   said"], None, None, None, "long") for source in ("    y", "    x" * 1000, "    z")]
    failure = types.SimpleNamespace(reprtraceback=code.ReprTraceback(entries, "and more", "long"))
    before = private.drawn(failure.reprtraceback, colours=False)
    private.leave_long_source_plain(failure)
    (plain,) = failure.reprtraceback.reprentries
    native = _named("_pytest._code.code", "ReprEntryNative")
    return isinstance(plain, native) and private.drawn(failure.reprtraceback, colours=True) == before


def _writer(live: Live) -> bool:
    file = io.StringIO()
    writer = _named("_pytest._io", "TerminalWriter")(file)
    writer.hasmarkup = True
    writer.line("line", red=True)
    return "line" in file.getvalue() and "\x1b[31m" in file.getvalue()


def _chain(live: Live) -> bool:
    return [request.fixturename for request in live.item._request._iter_chain()] in ([], [None])


def _known_definitions(live: Live) -> bool:
    known = live.item._request._fixture_defs
    return known["tmp_path_factory"] is live.item._fixtureinfo.name2fixturedefs["tmp_path_factory"][-1]


def _asking(live: Live) -> bool:
    definition = live.item._fixtureinfo.name2fixturedefs["pytester"][-1]
    request = _named("_pytest.fixtures", "SubRequest")
    asking = request(live.item._request, definition._scope, None, 0, definition, _ispytest=True)
    chain = [above.fixturename for above in asking._iter_chain()]
    return (asking.fixturename, asking.scope, chain[0]) == ("pytester", "function", "pytester")


def _hook_list(live: Live) -> bool:
    manager = pytest.PytestPluginManager()
    plugins = [_SubtestRecorder(), _SubtestRecorder()]
    for plugin in plugins:
        manager.register(plugin)
    manager.hook.pytest_runtest_logreport._hookimpls.reverse()
    return [each.plugin for each in manager.hook.pytest_runtest_logreport.get_hookimpls()] == plugins[::-1]


def _terminal_file(live: Live) -> bool:
    writer = live.terminal._tw
    before, writer._file = writer._file, io.StringIO()
    live.terminal.write_line("line")
    written, writer._file = writer._file.getvalue(), before
    return "line" in written and hasattr(before, "write")


def _cache(live: Live) -> bool:
    cache = live.other.cache
    cache._ensure_cache_dir_and_supporting_files()
    return isinstance(cache._cachedir, Path) and cache._cachedir.is_dir()


def _fault_handler(live: Live) -> bool:
    key = _named("_pytest.faulthandler", "fault_handler_stderr_fd_key")
    return isinstance(live.config.stash[key], int)


NAMES = [
    Name(
        title="_pytest.outcomes.OutcomeException",
        shape="the base of what pytest.fail, skip and xfail raise, and no Exception",
        used_by="OutcomeException",
        holder=lambda _: importlib.import_module("_pytest.outcomes"),
        check=_outcomes,
    ),
    Name(
        title="FixtureRequest._iter_chain",
        shape="a method that yields the requests above, each with its fixturename",
        used_by="set_up_wider_fixtures",
        holder=lambda _: _named("_pytest.fixtures", "FixtureRequest"),
        check=_chain,
    ),
    Name(
        title="FixtureRequest._fixture_defs",
        shape="a dict of names to the definitions in force",
        used_by="set_up_wider_fixtures",
        holder=lambda live: live.item._request,
        check=_known_definitions,
    ),
    Name(
        title="_pytest.fixtures.SubRequest",
        shape="a request of a fixture, made of request, scope, param, param_index, definition and _ispytest",
        used_by="set_up_wider_fixtures",
        holder=lambda _: importlib.import_module("_pytest.fixtures"),
        check=_asking,
    ),
    Name(
        title="FixtureDef._scope",
        shape="the scope that a request is made of",
        used_by="set_up_wider_fixtures",
        holder=lambda live: live.item._fixtureinfo.name2fixturedefs["pytester"][-1],
        check=_asking,
    ),
    Name(
        title="pluggy.HookCaller._hookimpls",
        shape="the live list of a hook's implementations",
        used_by="call_just_before_runner",
        holder=lambda _: pluggy.HookCaller,
        check=_hook_list,
    ),
    Name(
        title="Cache._cachedir",
        shape="the path of the cache's directory",
        used_by="cache_directory",
        holder=lambda live: live.other.cache,
        check=_cache,
    ),
    Name(
        title="Cache._ensure_cache_dir_and_supporting_files",
        shape="a method that makes the cache's directory",
        used_by="cache_directory",
        holder=lambda live: type(live.other.cache),
        check=_cache,
    ),
    Name(
        title="_pytest._io.TerminalWriter",
        shape="a writer to a file, in colours if hasmarkup is set",
        used_by="drawn",
        holder=lambda _: importlib.import_module("_pytest._io"),
        check=_writer,
    ),
    Name(
        title="_pytest._code.code.ReprEntry",
        shape="a part of a traceback with lines of its source",
        used_by="leave_long_source_plain",
        holder=lambda _: importlib.import_module("_pytest._code.code"),
        check=_entries,
    ),
    Name(
        title="_pytest._code.code.ReprEntryNative",
        shape="a part of a traceback with lines that are shown as they are",
        used_by="leave_long_source_plain",
        holder=lambda _: importlib.import_module("_pytest._code.code"),
        check=_entries,
    ),
    Name(
        title="TerminalReporter._tw",
        shape="the writer of the terminal",
        used_by="write_terminal_to",
        holder=lambda live: live.terminal,
        check=_terminal_file,
    ),
    Name(
        title="TerminalWriter._file",
        shape="the file that the terminal's writer writes to",
        used_by="write_terminal_to",
        holder=lambda live: live.terminal._tw,
        check=_terminal_file,
    ),
    Name(
        title="_pytest.faulthandler.fault_handler_stderr_fd_key",
        shape="the key, in the stash of a config, of a descriptor for the fault handler",
        used_by="dump_stacks_in_time",
        holder=lambda _: importlib.import_module("_pytest.faulthandler"),
        check=_fault_handler,
    ),
    Name(
        title="_pytest.outcomes.Failed",
        shape="what pytest.fail raises, made of a message and pytrace",
        used_by="Failed",
        holder=lambda _: importlib.import_module("_pytest.outcomes"),
        check=_failed,
    ),
    Name(
        title="Function._request",
        shape="the item's request, whose getfixturevalue sets fixtures up",
        used_by="set_up_wider_fixtures",
        holder=lambda live: live.item,
        check=_request,
    ),
    Name(
        title="Function._fixtureinfo",
        shape="an object with name2fixturedefs",
        used_by="set_up_wider_fixtures",
        holder=lambda live: live.item,
        check=_definitions,
    ),
    Name(
        title="FuncFixtureInfo.name2fixturedefs",
        shape="a mapping of names to definitions, the last one in force, with a scope",
        used_by="set_up_wider_fixtures",
        holder=lambda live: type(live.item._fixtureinfo),
        check=_definitions,
    ),
    Name(
        title="Function.fixturenames",
        shape="a list of names, those of wider scopes first",
        used_by="set_up_wider_fixtures",
        holder=lambda live: live.item,
        check=_fixture_names,
    ),
    Name(
        title="Session._setupstate",
        shape="a SetupState with a stack",
        used_by="finalizers",
        holder=lambda live: live.item.session,
        check=_stack,
    ),
    Name(
        title="SetupState.stack",
        shape="a dict of nodes to (live list of finalizers with the node's teardown first, error)",
        used_by="finalizers",
        holder=lambda live: live.setup_state,
        check=_stack,
    ),
    Name(
        title="SetupState.teardown_exact",
        shape="a method that, given None, runs all finalizers, the last added first",
        used_by="tear_down_all",
        holder=lambda live: type(live.setup_state),
        check=_teardown_exact,
    ),
    Name(
        title="pluggy.HookCaller._remove_plugin",
        shape="a method that takes one plugin's implementation from a hook",
        used_by="keep_only",
        holder=lambda _: pluggy.HookCaller,
        check=_remove_plugin,
    ),
    Name(
        title="pluggy.HookCaller.get_hookimpls",
        shape="a method that returns a hook's implementations, each with its plugin",
        used_by="keep_only",
        holder=lambda _: pluggy.HookCaller,
        check=_remove_plugin,
    ),
    Name(
        title="CaptureManager.global_and_fixture_disabled",
        shape="a method that returns a context",
        used_by="capture_suspended",
        holder=lambda live: type(live.config.pluginmanager.getplugin("capturemanager")),
        check=_capture,
    ),
    Name(
        title="CaptureManager._method",
        shape="the name of the way to capture",
        used_by="captures",
        holder=lambda live: live.capture,
        check=_capture_method,
    ),
    Name(
        title="CaptureManager._global_capturing",
        shape="what has an out and an err, each with a targetfd and a tmpfile, and is read by read_global_capture()",
        used_by="captured_files",
        holder=lambda live: live.capture,
        check=_global_capturing,
    ),
    Name(
        title="SysCapture._old",
        shape="the stream that is back when capture is suspended",
        used_by="call_before_terminal",
        holder=lambda live: live.capture._global_capturing.out.syscapture,
        check=_old_stream,
    ),
    Name(
        title="CaptureManager.suspend_global_capture",
        shape="a method with one argument, in_",
        used_by="call_before_terminal",
        holder=lambda live: type(live.capture),
        check=_suspend_global_capture,
    ),
    Name(
        title="LoggingPlugin._log_cli_enabled",
        shape="a method that tells whether logs are shown as they come",
        used_by="writes_from_the_crate",
        holder=lambda live: type(live.other.pluginmanager.getplugin("logging-plugin")),
        check=_log_cli_enabled,
    ),
    Name(
        title="LoggingPlugin.report_handler.stream",
        shape="a text file in memory",
        used_by="logged",
        holder=lambda live: live.other.pluginmanager.getplugin("logging-plugin").report_handler,
        check=_report_stream,
    ),
    Name(
        title="Item._report_sections",
        shape="a list of (phase, stream, text)",
        used_by="captured_in",
        holder=lambda live: live.item,
        check=_report_sections,
    ),
    Name(
        title="TestReport._id",
        shape="what a report has beside its nodeid, which is all that is sent of it",
        used_by="GIVEN_IN_PYTEST",
        holder=lambda live: live.report,
        check=_report_id,
        since=(9, 2),
    ),
    Name(
        title="config.option.setupshow",
        shape="what --setup-show sets",
        used_by="show_fixtures",
        holder=lambda live: live.config.option,
        check=_setupshow,
    ),
    Name(
        title="Config._tmp_path_factory",
        shape="the value of the fixture tmp_path_factory",
        used_by="basetemp",
        holder=lambda live: live.config,
        check=_request,
    ),
    Name(
        title="_pytest.skipping.xfailed_key",
        shape="the key of the xfail that applies, or None, in the stash of an item",
        used_by="expected_failures",
        holder=lambda _: importlib.import_module("_pytest.skipping"),
        check=_xfailed_key,
    ),
    Name(
        title="_pytest.junitxml.xml_key",
        shape="the key of the JUnit XML plugin in the stash of a config, there only with --junitxml",
        used_by="take_junit_records",
        holder=lambda _: importlib.import_module("_pytest.junitxml"),
        check=_xml_key,
    ),
    Name(
        title="_pytest.junitxml.bin_xml_escape",
        shape="a function that writes what XML has no characters for in ASCII",
        used_by="xml_text",
        holder=lambda _: importlib.import_module("_pytest.junitxml"),
        check=_bin_xml_escape,
    ),
    Name(
        title="warnings._showwarnmsg",
        shape="a function that shows a warning past any filter",
        used_by="show_warning_message",
        holder=lambda _: warnings,
        check=_showwarnmsg,
    ),
    Name(
        title="LogXML.global_properties",
        shape="the list that add_global_property adds a pair of strings to",
        used_by="take_junit_records",
        holder=lambda live: live.xml,
        check=_global_properties,
    ),
    Name(
        title="LogXML.add_global_property",
        shape="a method that adds a pair of strings to global_properties",
        used_by="add_junit_records",
        holder=lambda live: type(live.xml),
        check=_global_properties,
    ),
    Name(
        title="LogXML.node_reporter",
        shape="a method that returns, for a test's key, what has its attrs and add_attribute",
        used_by="add_junit_records",
        holder=lambda live: type(live.xml),
        check=_node_reporter,
    ),
    Name(
        title="_NodeReporter.add_attribute",
        shape="a method that adds to attrs a name and the string of a value",
        used_by="add_junit_records",
        holder=lambda live: type(live.xml.node_reporter(private._key(live.item))),
        check=_node_reporter,
    ),
    Name(
        title="_NodeReporter.attrs",
        shape="a dict of strings",
        used_by="take_junit_records",
        holder=lambda live: live.xml.node_reporter(private._key(live.item)),
        check=_node_reporter,
    ),
    Name(
        title="_pytest.subtests.failed_subtests_key",
        shape="the key, in the stash of a config, of a dict of a test's id to its number of failed subtests",
        used_by="failed_subtests",
        holder=lambda _: importlib.import_module("_pytest.subtests"),
        check=_failed_subtests,
        since=(9, 0),
    ),
    Name(
        title="SubtestReport.context",
        shape="what a report of a subtest keeps the parameters in: a dict, kwargs, and its own in _subtest.context",
        used_by="show_subtest_parameters",
        holder=lambda live: live.subtest[0],
        check=_subtest_context,
        since=(9, 0),
    ),
]


def complaint(name: Name, live: Live) -> str | None:
    """Return what is wrong with a private name in the installed pytest, or None."""
    try:
        if name.check(live):
            return None
        why = ""
    except (AssertionError, AttributeError, ImportError, KeyError, TypeError, ValueError) as error:
        why = f" ({type(error).__name__}: {error})"
    return (
        f"pytest {pytest.__version__}, pluggy {pluggy.__version__}: {name.title} is no longer {name.shape}{why}: "
        f"see pytest_crate/plugin/private.py, {name.used_by}"
    )


_EACH = pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            id=name.title,
            marks=pytest.mark.skipif(
                pytest.version_tuple < name.since, reason=f"came with pytest {'.'.join(map(str, name.since))}"
            ),
        )
        for name in NAMES
    ],
)


@_EACH
def test_pytest_has(name: Name, live: Live) -> None:
    """The installed pytest and pluggy have the name, in the shape that the adapter relies on."""
    said = complaint(name, live)
    if said is not None:
        pytest.fail(said, pytrace=False)


@_EACH
def test_what_has_gone_or_changed_is_named(name: Name, live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a name, or with something else of that name, the complaint says which name, and who relies on it."""
    assert complaint(name, live) is None
    holder = name.holder(live)
    with monkeypatch.context() as patch:
        patch.delattr(holder, name.attribute)
        gone = complaint(name, live)
    with monkeypatch.context() as patch:
        patch.setattr(holder, name.attribute, object())
        changed = complaint(name, live)
    for said in (gone, changed):
        assert said is not None
        assert f"{name.title} is no longer {name.shape}" in said
        assert said.endswith(f"see pytest_crate/plugin/private.py, {name.used_by}")
    assert complaint(name, live) is None


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name.title)
def test_a_complaint_leads_to_the_adapter(name: Name) -> None:
    """The place that a complaint sends its reader to is one of the adapter's."""
    assert name.used_by in private.__all__


# -- and no other name, and nowhere else --------------------------------------------------------------


def private_uses(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and name of each use of a name that is another's own: ``a._b``, ``from _a import b``, ``"_b"``."""
    own = {"self", "cls"}
    documented = {("os", "_exit"), ("sys", "_current_frames")}
    tree = ast.parse(source)
    pieces = [piece for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for piece in node.values]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            whose = node.value.id if isinstance(node.value, ast.Name) else ""
            if whose not in own and (whose, node.attr) not in documented:
                yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                path = f"{node.module}.{alias.name}"
                if any(map(_is_private, path.split("."))):
                    yield node.lineno, path
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if any(map(_is_private, alias.name.split("."))):
                    yield node.lineno, alias.name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in pieces:
            if node.value == "_thread":  # documented, too
                continue
            first, *rest = node.value.split(".")
            if _is_private(first) and all(part.isidentifier() for part in (first, *rest)):
                yield node.lineno, node.value


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("item._report_sections", "_report_sections"),
        ("a.b()._setupstate.stack", "_setupstate"),
        ("from _pytest.runner import SetupState", "_pytest.runner.SetupState"),
        ("from pytest import _x", "pytest._x"),
        ("import _pytest.nodes", "_pytest.nodes"),
        ("import pluggy._hooks as hooks", "pluggy._hooks"),
        ('getattr(item, "_request", None)', "_request"),
        ('importlib.import_module("_pytest.subtests")', "_pytest.subtests"),
        ('data["_subtest.context"]', "_subtest.context"),
    ],
)
def test_the_search_finds(source: str, found: str) -> None:
    """The search for private names finds each way to use one."""
    assert list(private_uses(source)) == [(1, found)]


def test_the_search_leaves_alone() -> None:
    """What is a module's own, or public in spite of its name, is not found."""
    source = """
from __future__ import annotations
class A:
    def __init__(self): self._b = "a _c"
    def c(self): return self._b.__class__, os._exit(1), _own(), "__module__", f"{1}_d"
"""
    assert list(private_uses(source)) == []


# Python's own: what the import statement calls. Where it has gone, imports are not measured.
PYTHON_S = {"imports.py": ("_bootstrap", "_ModuleLockManager")}


@pytest.mark.parametrize(
    "module", sorted({*(PACKAGE / "plugin").glob("*.py")} - {ADAPTER}), ids=lambda path: str(path.stem)
)
def test_no_other_module_uses_private_names(module: Path) -> None:
    """Beside the adapter no module of the plugin uses a private name of pytest's, nor asks to be let off that rule."""
    source = module.read_text()
    found = [(line, name) for line, name in private_uses(source) if name not in PYTHON_S.get(module.name, ())]
    assert [f"{module.name}:{line}: {name} belongs in private.py" for line, name in found] == []
    assert module.name in PYTHON_S or "SLF001" not in source


def test_no_other_room_imports_pytest_s_own_modules() -> None:
    """Outside of the plugin, where most rooms may not import pytest at all, none imports a private module of its."""
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != ADAPTER
        for line, name in private_uses(path.read_text())
        if name.startswith(("_pytest", "pluggy._", "pytest._"))
    ]
    assert found == []


def test_every_private_name_is_checked() -> None:
    """What the adapter uses is in the list above: a use added there needs a check here."""
    titles = " ".join(f"{name.title} {inspect.getsource(name.check)}" for name in NAMES)
    used = {name for _, name in private_uses(ADAPTER.read_text())}
    assert len(used) > 8
    assert {name for name in used if name not in titles} == set()
