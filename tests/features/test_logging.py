"""Log records of crates: caplog, live logs, log files."""

from __future__ import annotations

import re

import pytest

from tests.inner import BothWays, RunInner

LOGS = """
import logging, pytest
log = logging.getLogger("own")
@pytest.fixture(scope="module")
def wide(): log.warning("wide up"); yield; log.warning("wide down")
@pytest.fixture
def inner(): log.info("inner up"); yield; log.error("inner down")
def test_logs(wide, inner): log.debug("debug"); log.info("info"); log.warning("warning")
def test_fails(inner): log.critical("failing"); assert 0
def test_quiet(): pass
"""


def test_caplog(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """caplog has the records of each phase, levels are set and undone, filters and handlers work."""
    pytester.makepyfile(
        """
        import logging, pytest
        log = logging.getLogger("own")
        @pytest.fixture
        def logs(caplog):
            log.warning("in setup")
            yield
            log.warning("in teardown")
            assert [r.getMessage() for r in caplog.get_records("setup")] == ["in setup"]
            assert [r.getMessage() for r in caplog.get_records("call")] == ["in call"]
            assert [r.getMessage() for r in caplog.get_records("teardown")] == ["in teardown"]
        def test_phases(logs, caplog):
            log.warning("in call")
            assert caplog.messages == ["in call"]
            assert caplog.record_tuples == [("own", logging.WARNING, "in call")]
            assert caplog.get_records("setup")[0].msg == "in setup"
        def test_levels(caplog):
            log.debug("unseen")
            with caplog.at_level(logging.DEBUG, logger="own"): log.debug("seen")
            log.debug("unseen again")
            caplog.set_level(logging.INFO); log.info("seen too")
            assert caplog.messages == ["seen", "seen too"]
        def test_level_is_undone(caplog): log.info("unseen"); assert caplog.records == []
        def test_handler(caplog):
            caplog.handler.setFormatter(logging.Formatter("<%(message)s>")); log.warning("formatted")
            assert caplog.text == "<formatted>\\n"
            caplog.clear(); assert caplog.text == "" and caplog.records == []
        def test_filter(caplog):
            class Deny(logging.Filter):
                def filter(self, record): return "deny" not in record.getMessage()
            with caplog.filtering(Deny()): log.warning("deny this"); log.warning("keep this")
            log.warning("deny no more")
            assert caplog.messages == ["keep this", "deny no more"]
        def test_exception(caplog):
            try: 1 / 0
            except ZeroDivisionError: log.exception("oh")
            assert caplog.records[0].exc_info[0] is ZeroDivisionError
            assert 0
        """
    )
    run = both_ways("-rA", "-v")
    assert run.outcomes() == {"passed": 5, "failed": 1}


@pytest.mark.parametrize(
    "options",
    [
        "-o log_cli=true -o log_cli_level=DEBUG -o log_level=DEBUG",
        "-o log_cli=true --log-cli-format=<%(levelname)s:%(message)s> --log-level=INFO -rA --show-capture=no",
        "--log-level=DEBUG --log-format=%(name)s:%(message)s --log-disable=other -rA",
    ],
)
def test_live_logs_and_levels(pytester: pytest.Pytester, both_ways: BothWays, options: str) -> None:
    """Live logs name phases and records as in a plain run; levels and formats hold in the reports."""
    pytester.makepyfile(LOGS)
    run = both_ways("-v", *options.split())
    assert "wide up" in run.text


def test_progress_after_live_logs(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """What follows a live log of a crate on its line is the same, at another column if pytest aligns it."""
    pytester.makepyfile(LOGS)
    options = ("-v", "-o", "log_cli=true", "-o", "log_cli_level=DEBUG")
    lines = []
    for args in ((), ("--crate-all",)):
        run = run_inner(*args, *options)
        lines.append([line for line in run.result.outlines if line.endswith("%]")])
    assert [line.split() for line in lines[0]] == [line.split() for line in lines[1]]
    assert lines[0] != lines[1]


@pytest.mark.parametrize("mode", ["w", "a"])
def test_log_file(pytester: pytest.Pytester, both_ways: BothWays, mode: str) -> None:
    """The log file has the crate's records between pytest's own, in order, whether it is new or appended to."""
    pytester.makepyfile(LOGS)
    path = pytester.path / "logs" / "run.log"
    path.parent.mkdir()
    path.write_text("earlier\n")
    options = ["--log-file-level=DEBUG", "--log-level=DEBUG", "--log-file-format=%(levelname)s %(message)s"]
    both_ways(f"--log-file={path}", "-o", f"log_file_mode={mode}", *options)
    contents = path.read_text().splitlines()
    once = [
        "WARNING wide up", "INFO inner up", "DEBUG debug", "INFO info", "WARNING warning", "ERROR inner down",
        "INFO inner up", "CRITICAL failing", "ERROR inner down", "WARNING wide down",
    ]  # fmt: skip
    assert contents == (once if mode == "w" else ["earlier", *once, *once])


def test_log_file_of_a_test(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """A hook that gives each test a log file, as pytest's documentation shows, gets the records of the whole test."""
    pytester.makeconftest(
        """
        import pytest
        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_setup(item):
            plugin = item.config.pluginmanager.get_plugin("logging-plugin")
            plugin.set_log_path(str(item.config.rootpath / "logs" / (item.name + ".log")))
            return (yield)
        """
    )
    pytester.makeini("[pytest]\nlog_file_format = %(message)s\nlog_level = INFO\nlog_file_level = INFO\n")
    pytester.makepyfile(LOGS)
    both_ways("-v")
    logs = {path.name: path.read_text().split("\n") for path in (pytester.path / "logs").iterdir()}
    assert logs["test_logs.log"][:5] == ["wide up", "inner up", "info", "warning", "inner down"]
    assert re.match("inner up", logs["test_fails.log"][0])
