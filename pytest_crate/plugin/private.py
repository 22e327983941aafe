"""Every private name of others that the plugin touches, mostly pytest's, each behind a function that says what for."""

from __future__ import annotations

import faulthandler
import functools
import io
import itertools
import re
import types
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TextIO, cast

import pluggy
import pytest
from _pytest._code.code import ReprEntry, ReprEntryNative
from _pytest._io import TerminalWriter
from _pytest.faulthandler import fault_handler_stderr_fd_key
from _pytest.fixtures import SubRequest
from _pytest.junitxml import bin_xml_escape, xml_key
from _pytest.outcomes import Failed, OutcomeException
from _pytest.skipping import xfailed_key

__all__ = [
    "GIVEN_IN_PYTEST",
    "Failed",
    "OutcomeException",
    "add_junit_records",
    "basetemp",
    "cache_directory",
    "call_before_terminal",
    "call_just_before_runner",
    "capture_suspended",
    "captured_files",
    "captured_in",
    "captures",
    "drawn",
    "drop_wider_finalizers",
    "dump_stacks_in_time",
    "expected_failures",
    "failed_subtests",
    "finalizers",
    "fixture_functions",
    "forget_teardown",
    "give_values",
    "hook_implementations",
    "is_driven_by",
    "is_of_subtest",
    "keep_only",
    "leave_long_source_plain",
    "logged",
    "own_wider_finalizers",
    "replace_function",
    "set_failed_subtests",
    "set_up_wider_fixtures",
    "sets_up_collectors",
    "show_fixtures",
    "show_subtest_parameters",
    "show_warning_message",
    "take_captured",
    "take_junit_records",
    "tear_down_all",
    "terminal_descriptors",
    "terminal_output",
    "wider_values",
    "write_captured",
    "write_terminal_to",
    "writes_from_the_crate",
    "xml_text",
]

# Name, in "Extensible Markup Language (XML) 1.0", 2.3.
_XML_FIRST = (
    r":A-Z_a-z\xC0-\xD6\xD8-\xF6\xF8-\u02FF\u0370-\u037D\u037F-\u1FFF\u200C\u200D\u2070-\u218F\u2C00-\u2FEF"
    r"\u3001-\uD7FF\uF900-\uFDCF\uFDF0-\uFFFD\U00010000-\U000EFFFF"
)
_XML_NAME = re.compile(rf"[{_XML_FIRST}][{_XML_FIRST}.0-9\xB7\u0300-\u036F\u203F\u2040-]*")

# Of a failure's source that is shown in colours, in lines, and in characters of one: the lexer's time grows with the
# square of a line's length, and with more of how many are blank.
_MOST_COLOURED = 1000

GIVEN_IN_PYTEST = ("_id", "crate", "item_index", "node", "session", "testrun_uid", "worker_id")
"""What pytest, xdist and this package give a report in pytest's own process, and go by there; not in a child."""

# These names are pytest's own affair; nothing else in the package may use one.
# ruff: noqa: SLF001


def set_up_wider_fixtures(item: pytest.Item, more: Iterable[str] = ()) -> None:
    """Set up, in the calling process, every fixture of the item with a scope wider than a function.

    In the order in which pytest itself would: ``fixturenames`` is sorted by scope. The values are
    cached by their definitions, so that the item's own set-up finds them.

    :param more: names of fixtures that are asked for only while the item is set up.
    """
    request = getattr(item, "_request", None)
    information = getattr(item, "_fixtureinfo", None)
    if request is None or information is None:
        return  # an item of another plugin, without fixtures
    names = list(getattr(item, "fixturenames", ()))
    definitions = {name: information.name2fixturedefs.get(name) for name in names}
    wider = [name for name in names if definitions[name] and definitions[name][-1].scope != "function"]
    for name in wider:
        # As the item's own set-up does it: hooks that run in pytest find the value there, too.
        give_values(item, {name: request.getfixturevalue(name)})
    for name in names:
        if name not in wider and len(definitions[name] or ()) > 1:
            _set_up_overridden(request, name, definitions)
    for name in more:
        request.getfixturevalue(name)


def _set_up_overridden(request: Any, name: str, definitions: Mapping[str, Any]) -> None:
    """Set up the wider fixture that a function's fixture of the same name overrides, and asks for."""
    __tracebackhide__ = True
    # As FixtureRequest._get_active_fixturedef counts: how many of that name are asking already.
    depth = sum(above.fixturename == name for above in request._iter_chain())
    found = definitions.get(name) or ()
    if depth >= len(found):
        return
    definition = found[-1 - depth]
    if definition.scope != "function":
        if depth:
            request.getfixturevalue(name)
            # It is known now by the name that is the overriding fixture's, which is yet to be set up.
            del request._fixture_defs[name]
        return
    asking = SubRequest(request, definition._scope, None, 0, definition, _ispytest=True)
    for needed in definition.argnames:
        _set_up_overridden(asking, needed, definitions)


def fixture_functions(item: pytest.Item) -> list[Callable[..., object]]:
    """Return the functions of the item's fixtures."""
    information = getattr(item, "_fixtureinfo", None)
    if information is None:
        return []
    return [definitions[-1].func for definitions in information.name2fixturedefs.values() if definitions]


def wider_values(item: pytest.Item) -> list[object]:
    """Return the values of the item's wider fixtures that are set up."""
    information = getattr(item, "_fixtureinfo", None)
    if information is None:
        return []
    found = [definitions[-1] for definitions in information.name2fixturedefs.values() if definitions]
    wider = [definition for definition in found if definition.scope != "function"]
    return [definition.cached_result[0] for definition in wider if definition.cached_result is not None]


def finalizers(item: pytest.Item) -> list[Callable[[], object]]:
    """Return the live list of the item's own finalizers, ``item.teardown`` first."""
    stack = item.session._setupstate.stack
    found: list[Callable[[], object]] = stack[item][0]
    return found


def forget_teardown(item: pytest.Item, instead: Callable[[], object] | None = None) -> None:
    """Forget the item's own tear-down: its set-up has never begun here, and unittest's would miss what that sets.

    :param instead: what is to be done before wider fixtures' finalizers, if there are any on the item.
    """
    pending = finalizers(item)
    pending[:] = [finalizer for finalizer in pending if finalizer != item.teardown]
    if instead is not None:
        pending.append(instead)


def drop_wider_finalizers(item: pytest.Item) -> None:
    """In a forked child: forget the finalizers of every wider fixture; they are the parent's to run.

    They are on the collectors; on the item itself are those of class-scoped fixtures if it is in no class.
    """
    for node, (pending, _) in item.session._setupstate.stack.items():
        pending[:] = [finalizer for finalizer in pending if node is item and finalizer == item.teardown]


def own_wider_finalizers(item: pytest.Item) -> None:
    """In a forked child, before the tear-down: have the item tear down the wider fixtures that were set up in here.

    Last, the nearest first, as at the end of a run: nobody else will.
    """
    stack = item.session._setupstate.stack
    own: list[Callable[[], object]] = []
    for node, (pending, _) in stack.items():
        if node is not item:
            own += pending
            pending.clear()
    if item in stack:
        finalizers(item)[:0] = own


def sets_up_collectors(item: pytest.Item, before: pytest.Item) -> bool:
    """Return whether a collector of the item's, that is none of an earlier item's, has a set-up step of its own."""
    old = before.listchain()
    return any(type(node).setup is not pytest.Item.setup for node in item.listchain()[:-1] if node not in old)


def tear_down_all(item: pytest.Item) -> None:
    """Run every finalizer that is still pending, the item's before its collectors'."""
    item.session._setupstate.teardown_exact(None)


def keep_only(config: pytest.Config, hook_name: str, *plugins: object) -> None:
    """In a forked child: let these plugins alone see a hook from now on."""
    caller = getattr(config.pluginmanager.hook, hook_name)
    for implementation in list(caller.get_hookimpls()):
        if not any(implementation.plugin is plugin for plugin in plugins):
            caller._remove_plugin(implementation.plugin)


def hook_implementations(config: pytest.Config, hook_name: str) -> list[pluggy.HookImpl]:
    """Return the implementations of a hook, those of conftest files in directories among them."""
    return list(getattr(config.pluginmanager.hook, hook_name).get_hookimpls())


def call_just_before_runner(config: pytest.Config, hook_name: str, plugin: object) -> None:
    """Have a plugin's implementation of a hook called last of all but that of pytest's runner."""
    implementations = getattr(config.pluginmanager.hook, hook_name)._hookimpls
    (own,) = [each for each in implementations if each.plugin is plugin]
    implementations.remove(own)
    runner = config.pluginmanager.get_plugin("runner")
    (index,) = [index for index, each in enumerate(implementations) if each.plugin is runner]
    implementations.insert(index + 1, own)


def replace_function(implementation: pluggy.HookImpl, function: Callable[..., Any]) -> None:
    """Have an implementation of a hook call another function, which takes the same arguments."""
    implementation.function = function  # type: ignore[misc]


def write_terminal_to(config: pytest.Config, file: TextIO | None) -> TextIO | None:
    """Let what is written through pytest's terminal reporter go to a file; return where it went until now.

    The reporter keeps count of lines as always. Without a reporter there is no such file: None.
    """
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return None
    before, reporter._tw._file = reporter._tw._file, file
    return cast("TextIO", before)


def drawn(failure: Any, *, colours: bool) -> str:
    """Return what the representation of a failure looks like on the terminal."""
    file = io.StringIO()
    writer = TerminalWriter(file)
    writer.hasmarkup = colours
    failure.toterminal(writer)
    return file.getvalue()


def leave_long_source_plain(failure: Any) -> None:
    """Have those of a failure's tracebacks that have long source be shown without colours."""
    chain = getattr(failure, "chain", None) or [(getattr(failure, "reprtraceback", None), None, None)]
    for traceback, _, _ in chain:
        entries = getattr(traceback, "reprentries", [])
        if any(isinstance(entry, ReprEntry) and _has_long_source(entry.lines) for entry in entries):
            # As a whole: what pytest writes between two parts goes by their styles, and a plain one has none.
            plain = ReprEntryNative(drawn(traceback, colours=False).splitlines(keepends=True))
            traceback.reprentries, traceback.extraline = [plain], None


def _has_long_source(lines: Sequence[str]) -> bool:
    source = list(itertools.takewhile(lambda line: not line.startswith("E   "), lines))
    return len(source) > _MOST_COLOURED or any(len(line) > _MOST_COLOURED for line in source)


def give_values(item: pytest.Item, values: Mapping[str, object]) -> None:
    """Have ``item.funcargs`` hold values of fixtures."""
    held = getattr(item, "funcargs", None)
    if held is not None:
        held.update(values)


def is_driven_by(item: pytest.Item, names: frozenset[str]) -> bool:
    """Return whether the item requests one of the fixtures, directly or through another fixture."""
    return not names.isdisjoint(getattr(item, "fixturenames", ()))


def capture_suspended(config: pytest.Config) -> AbstractContextManager[None]:
    """Return a context in which what is written to the terminal gets there, in the midst of a phase."""
    manager = config.pluginmanager.getplugin("capturemanager")
    # The class's own: see call_before_terminal().
    suspended: AbstractContextManager[None] = (
        nullcontext() if manager is None else type(manager).global_and_fixture_disabled(manager)
    )
    return suspended


def captures(config: pytest.Config) -> str:
    """Return how pytest captures output: ``fd``, ``sys``, ``tee-sys`` or ``no``."""
    manager: Any = config.pluginmanager.getplugin("capturemanager")
    if manager is None or manager._global_capturing is None:
        return "no"
    return str(manager._method)


def captured_files(config: pytest.Config) -> list[tuple[int, int]]:
    """Return the descriptors that pytest captures (1 and 2), and those of the files that it captures them in."""
    manager: Any = config.pluginmanager.getplugin("capturemanager")
    streams = (manager._global_capturing.out, manager._global_capturing.err)
    return [(stream.targetfd, stream.tmpfile.fileno()) for stream in streams]


def terminal_descriptors(config: pytest.Config) -> list[int]:
    """Return the descriptors by which pytest reads from the terminal and writes to it, whatever it captures."""
    manager: Any = config.pluginmanager.getplugin("capturemanager")
    capturing = None if manager is None else manager._global_capturing
    streams = () if capturing is None else (capturing.in_, capturing.out, capturing.err)
    return [0, 1, 2, *(stream.targetfd_save for stream in streams if hasattr(stream, "targetfd_save"))]


def terminal_output(config: pytest.Config) -> int:
    """Return the descriptor by which pytest writes to its standard output, whatever it captures."""
    manager: Any = config.pluginmanager.getplugin("capturemanager")
    capturing = None if manager is None else manager._global_capturing
    return int(getattr(getattr(capturing, "out", None), "targetfd_save", 1))


def take_captured(config: pytest.Config) -> tuple[str, str]:
    """Return what has been captured of standard output and standard error, and forget it."""
    manager: Any = config.pluginmanager.getplugin("capturemanager")
    taken = manager.read_global_capture()
    return taken.out, taken.err


def write_captured(config: pytest.Config, out: str, err: str) -> None:
    """Have pytest's ``sys`` or ``tee-sys`` capture hold more."""
    manager: Any = config.pluginmanager.getplugin("capturemanager")
    for stream, text in ((manager._global_capturing.out, out), (manager._global_capturing.err, err)):
        # Not tee-sys' own: it writes to the terminal as well, where this has been.
        io.TextIOWrapper.write(stream.tmpfile, text)


def writes_from_the_crate(config: pytest.Config) -> bool:
    """Return whether tests write to the terminal while they run: with ``-s``, live logs, or ``--setup-show``."""
    logging: Any = config.pluginmanager.getplugin("logging-plugin")
    live = logging is not None and logging._log_cli_enabled()
    return captures(config) not in ("fd", "sys") or live or bool(config.getoption("setupshow", False))


def call_before_terminal(config: pytest.Config, function: Callable[[], object]) -> None:
    """Have a function called before anything is written to the terminal, but for what :func:`capture_suspended` is for.

    That is after a test or a hook has suspended the capture, between two phases, or through pytest's terminal reporter.
    """
    manager: Any = config.pluginmanager.getplugin("capturemanager")
    disabled, suspend = manager.global_and_fixture_disabled, manager.suspend_global_capture

    # As methods: a failed subtest shows the repr of what it suspends the capture with.
    @functools.wraps(type(manager).global_and_fixture_disabled)
    def disable_in_turn(_: object) -> AbstractContextManager[None]:
        function()
        return cast("AbstractContextManager[None]", disabled())

    @functools.wraps(type(manager).suspend_global_capture)
    def suspend_in_turn(_: object, in_: bool = False) -> None:
        if in_:  # pytest itself does without it at the end of each phase
            function()
        suspend(in_=in_)

    manager.global_and_fixture_disabled = types.MethodType(disable_in_turn, manager)
    manager.suspend_global_capture = types.MethodType(suspend_in_turn, manager)
    # What hooks print that run around the capture, or between two phases.
    for stream in (manager._global_capturing.out, manager._global_capturing.err):
        streams = getattr(stream, "syscapture", stream)
        streams._old = _InTurn(streams._old, function)
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter._tw._file = _InTurn(reporter._tw._file, function)


class _InTurn:
    """A file that calls a function before each write."""

    def __init__(self, file: TextIO, function: Callable[[], object]) -> None:
        self._file = file
        self._function = function

    def write(self, text: str) -> int:
        self._function()
        return self._file.write(text)

    def __getattr__(self, name: str) -> Any:
        if name in ("buffer", "fileno", "writelines"):
            self._function()
        return getattr(self._file, name)


def failed_subtests(item: pytest.Item) -> int:
    """Return how many failed subtests pytest has counted of an item; a test with such a one fails (pytest 9)."""
    counts = _subtest_counts(item)
    return 0 if counts is None else counts.get(_key(item), 0)


def set_failed_subtests(item: pytest.Item, count: int) -> None:
    """Have pytest know of so many failed subtests of an item.

    :raises ValueError: it is no number of them.
    """
    if type(count) is not int or count < 0:
        raise ValueError(f"{count!r} failed subtests")
    counts = _subtest_counts(item)
    if counts is not None and count:
        counts[_key(item)] = count


def _subtest_counts(item: pytest.Item) -> dict[object, int] | None:
    try:
        from _pytest.subtests import failed_subtests_key
    except ImportError:
        return None
    return cast("dict[object, int] | None", item.config.stash.get(failed_subtests_key, None))


def _key(item: pytest.Item) -> Any:
    # What pytest keeps by node is keyed with the node's id, which newer versions have as an object.
    return getattr(item, "id", item.nodeid)


def take_junit_records(item: pytest.Item) -> dict[str, Any] | None:
    """In a child: take what ``record_testsuite_property`` and ``record_xml_attribute`` have recorded, as builtins."""
    xml = item.config.stash.get(xml_key, None)
    if xml is None:
        return None
    suite, xml.global_properties[:] = list(xml.global_properties), []
    return {"suite": suite, "attributes": dict(xml.node_reporter(_key(item)).attrs)}


def add_junit_records(item: pytest.Item, records: Mapping[str, Any] | None) -> None:
    """Record for JUnit XML what :func:`take_junit_records` took.

    :raises ValueError: an attribute's name is none in XML: it is written as it is, and might be a whole other test.
    """
    xml = item.config.stash.get(xml_key, None)
    if xml is None or records is None:
        return
    for name, value in records["suite"]:
        xml.add_global_property(xml_text(name), value)
    for name, value in records["attributes"].items():
        if not _XML_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of an attribute in XML")
        xml.node_reporter(_key(item)).add_attribute(name, value)


def xml_text(text: object) -> str:
    """Return a text as pytest writes it to JUnit XML, where not every character can be."""
    return bin_xml_escape(text)


def is_of_subtest(report: pytest.TestReport) -> bool:
    """Return whether a report is a subtest's: of pytest's, or of the plugin that was before it."""
    return type(report) is not pytest.TestReport and hasattr(report, "context")


def show_subtest_parameters(report: pytest.TestReport, data: Mapping[str, Any]) -> None:
    """Give a subtest's report, rebuilt from data, its parameters as shown: pytest takes the repr of their reprs."""
    if "_subtest.context" in data:
        cast("Any", report).context.kwargs.update(data["_subtest.context"]["kwargs"])


def captured_in(item: pytest.Item) -> list[tuple[str, str, str]]:
    """Return what pytest has captured of an item so far: phase, ``stdout``, ``stderr`` or ``log``, and the text."""
    return [(phase, key, text) for phase, key, text in item._report_sections if text]


def logged(config: pytest.Config) -> str:
    """Return what has been logged in this phase so far, as its report shows it."""
    plugin: Any = config.pluginmanager.getplugin("logging-plugin")
    return "" if plugin is None else str(plugin.report_handler.stream.getvalue())


def show_fixtures(config: pytest.Config, *, shown: bool) -> bool:
    """Have ``--setup-show`` show what is done in this process, or not; return whether it did."""
    before = bool(config.getoption("setupshow", False))
    config.option.setupshow = shown
    return before


def cache_directory(config: pytest.Config) -> str | None:
    """Return the directory that ``config.cache`` keeps its values in, made if it is not there yet."""
    cache = getattr(config, "cache", None)
    if cache is None:
        return None  # -p no:cacheprovider
    try:
        cache._ensure_cache_dir_and_supporting_files()
    except OSError:
        return None  # pytest warns of it when it has something to keep
    return str(cache._cachedir)


def dump_stacks_in_time(config: pytest.Config, *, here: bool) -> None:
    """Have ``faulthandler_timeout`` dump this process's stacks, from now on, or not."""
    if fault_handler_stderr_fd_key not in config.stash:
        return  # -p no:faulthandler
    timeout = float(config.getini("faulthandler_timeout") or 0)
    if timeout <= 0:
        return
    if not here:
        faulthandler.cancel_dump_traceback_later()
        return
    try:
        leave = bool(config.getini("faulthandler_exit_on_timeout"))
    except (KeyError, ValueError):
        leave = False  # an older pytest
    faulthandler.dump_traceback_later(timeout, exit=leave, file=config.stash[fault_handler_stderr_fd_key])


def basetemp(config: pytest.Config) -> str | None:
    """Return the run's base temporary directory, made if it is not there yet; None with ``-p no:tmpdir``."""
    factory = getattr(config, "_tmp_path_factory", None)
    return None if factory is None else str(factory.getbasetemp())


def show_warning_message(message: warnings.WarningMessage) -> None:
    """Have a warning shown, or recorded, past any filter, with all that it holds: its line, and its source."""
    cast("Any", warnings)._showwarnmsg(message)


def expected_failures(item: pytest.Item) -> Any:
    """Return the ``raises=`` of the xfail that applies to an item, by pytest's own judgement of all its conditions.

    :return: None if it has none, or no xfail applies.
    """
    return getattr(item.stash.get(xfailed_key, None), "raises", None)
