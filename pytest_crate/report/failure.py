"""The section of a failed test that shows what its crate used, what was killed, and what it last said."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

from pytest_crate.report import terminal_text, units
from pytest_crate.report.confinement import loosened
from pytest_crate.report.limits import failure_message, is_throttled, near_limits
from pytest_crate.result import CrateResult
from pytest_crate.spec import CrateSpec
from pytest_crate.usage import Usage

STDERR_LINES = 20
STDERR_BYTES = 4096
STACK_LINES = 200

# faulthandler cuts a path at 500 characters; but what a body writes in its place may be anything.
_LINE_CHARS = 4096
# Frames as faulthandler writes them, the most recent first: a path, and after it the line and the function.
_FRAME, _PLACE = '  File "', '", line '
_PYTEST_FILES = (
    ("/_pytest/", re.compile(r"[\w/]+\.py")),
    ("/pluggy/", re.compile(r"_\w+\.py")),
    ("/pytest_crate/plugin/", re.compile(r"\w+\.py")),
)
_RUNNER = ("pytest_runtest_setup", "pytest_runtest_call", "pytest_runtest_teardown")


def failure_section(
    crate: CrateResult, spec: CrateSpec, *, stderr: bytes | str = b"", stacks: str = "", left_behind: str = ""
) -> tuple[str, str]:
    """Return title and text of the section on one crate of a failed test.

    :param spec: what that crate was made from.
    :param stderr: what it wrote to standard error; the last :data:`STDERR_LINES` lines of at most
        :data:`STDERR_BYTES` bytes are shown, with control characters spelled out.
    :param stacks: where its threads were when the timeout came, or it crashed; the first
        :data:`STACK_LINES` lines are shown, without the frames of pytest below the test's own.
    :param left_behind: threads that were alive in pytest when it forked, and that the crate has not.
    """
    usage = crate.usage
    lines = [failure_message(limit, spec, usage) for limit in crate.exceeded]
    lines += near_limits(crate, spec)
    facts = [
        ("memory", _memory(usage, spec)),
        ("cpu", _cpu(usage, spec)),
        ("pids", _pids(usage, spec)),
        ("wall", _of(units.duration(usage.wall_usec), spec.timeout_usec and units.time_limit(spec.timeout_usec))),
        ("killed", _killed(crate)),
        ("ended", str(crate.exit)),
        ("loosened", ", ".join(loosened(spec.to_json()))),
        ("threads", f"alive in pytest, not in the crate: {left_behind}" if left_behind else ""),
    ]
    lines += [f"{name:<8}  {text}" for name, text in facts if text]
    if stderr:
        last, cut = terminal_text.tail(stderr, most_lines=STDERR_LINES, most_bytes=STDERR_BYTES)
        lines.append(f"stderr, last {units.count(len(last), 'line')}:" if cut else "stderr:")
        lines += [f"  {line}" for line in last]
    if stacks:
        lines += _stacks(stacks, "at the timeout" if "timeout" in crate.exceeded else "at the end")
    # A body needs no name: it is the test.
    return ("Crate" if crate.name == "body" else f"Crate {crate.name}"), "\n".join(lines)


def notes_section(notes: Iterable[str]) -> tuple[str, str]:
    """Return title and text of the section of a failed test whose crate has nothing but these lines to say."""
    return "Crate", "\n".join(map(terminal_text.harmless, notes))


def no_network() -> str:
    """Return the line of a failure that comes from a network which isn't there."""
    return "this crate has no network; network='host' opens it"


def other_loopback(port: int) -> str:
    """Return the line of a failure that comes from a server of the host's, which a crate's own loopback has not."""
    return f"port {port} is open on the host; this crate has a network of its own; network='host' opens the host's"


def hidden_path(path: str) -> str:
    """Return the line of a failure that comes from a host's file which crates don't see."""
    return f"{path} is there on the host, and hidden in this crate; mounts={[path]!r} opens it"


def _of(used: str, limit: str | int | None) -> str:
    return f"{used} of {limit}" if limit else used


def _memory(usage: Usage, spec: CrateSpec) -> str:
    peak, limit = usage.memory_peak_bytes, spec.memory_bytes
    text = f"peak {_of(units.size(peak), limit and units.size(limit))}"
    if peak is not None and limit:
        text = f"{text} ({units.percent(peak, limit)})"
    # Levels are of the last reading: what ended or killed processes held is gone by then, and 0 would mislead.
    held = [
        f"{name} {units.size(level)}"
        for name, level in (
            ("anon", usage.memory_anon_bytes),
            ("file", usage.memory_file_bytes),
            ("shmem", usage.memory_shmem_bytes),
        )
        if level
    ]
    return f"{text}; at the end {', '.join(held)}" if held else text


def _cpu(usage: Usage, spec: CrateSpec) -> str:
    text = units.duration(usage.cpu_usage_usec)
    text += f" (user {units.duration(usage.cpu_user_usec)}, system {units.duration(usage.cpu_system_usec)})"
    if spec.cpu_quota_usec is not None:
        text += f", limit {units.cpu_limit(spec.cpu_quota_usec)}"
    if is_throttled(usage):
        waited = units.duration(usage.cpu_throttled_usec)
        text += f", throttled {units.number(usage.cpu_nr_throttled)} times for {waited}"
    return text


def _pids(usage: Usage, spec: CrateSpec) -> str:
    text = f"peak {_of(units.number(usage.pids_peak), spec.pids)}"
    return f"{text}, {units.count(usage.pids_max_events, 'fork')} refused" if usage.pids_max_events else text


def _killed(crate: CrateResult) -> str:
    killed = []
    if crate.usage.memory_oom_kills:
        killed.append(f"{units.count(crate.usage.memory_oom_kills, 'process', 'processes')} by the kernel's OOM killer")
    if "timeout" in crate.exceeded:
        killed.append("the whole crate at its timeout")
    return "; ".join(killed)


def _stacks(stacks: str, when: str) -> list[str]:
    lines: list[str] = []
    cut = (line if len(line) <= _LINE_CHARS else f"{line[:_LINE_CHARS]}..." for line in stacks.rstrip().splitlines())
    for is_frame, group in itertools.groupby(cut, _is_frame):
        part = list(group)
        lines += _without_runner(part) if is_frame else part
    shown = [f"  {terminal_text.harmless(line.expandtabs())}" for line in lines[:STACK_LINES]]
    if left_out := len(lines) - len(shown):
        shown.append(f"  ({units.count(left_out, 'line')} left out)")
    return [f"stacks {when}:", *shown]


def _without_runner(frames: list[str]) -> list[str]:
    """Return one thread's frames without those by which pytest came to the test, a fixture or their teardown."""
    # The outermost counts: a test may itself run pytest, or ask pytest for a fixture.
    runner = max((index for index, frame in enumerate(frames) if _is_of_runner(frame)), default=0)
    while runner and _is_of_pytest(frames[runner - 1]):
        runner -= 1
    # At 0 there is no such frame, or nothing but them: then it is pytest itself that hangs.
    return [*frames[:runner], "  ... pytest's own frames left out"] if runner else frames


def _is_frame(line: str) -> bool:
    return line.startswith(_FRAME) and _PLACE in line


def _is_of_pytest(frame: str) -> bool:
    path = frame.rpartition(_PLACE)[0]
    parts = ((path.rpartition(directory), file) for directory, file in _PYTEST_FILES)
    return any(found and file.fullmatch(rest) for (_, found, rest), file in parts)


def _is_of_runner(frame: str) -> bool:
    path, _, place = frame.rpartition(_PLACE)
    return path.endswith("/_pytest/runner.py") and place.partition(" in ")[2].startswith(_RUNNER)
