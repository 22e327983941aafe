"""The section of a failed test that shows what its crate used, what was killed, and what it last said."""

from __future__ import annotations

from pytest_crate.report import terminal_text, units
from pytest_crate.report.limits import failure_message, is_throttled, near_limits
from pytest_crate.result import CrateResult
from pytest_crate.spec import CrateSpec
from pytest_crate.usage import Usage

STDERR_LINES = 20
STDERR_BYTES = 4096
STACK_LINES = 200


def failure_section(
    crate: CrateResult, spec: CrateSpec, *, stderr: bytes | str = b"", stacks: str = ""
) -> tuple[str, str]:
    """Return title and text of the section on one crate of a failed test.

    :param spec: what that crate was made from.
    :param stderr: what it wrote to standard error; the last :data:`STDERR_LINES` lines of at most
        :data:`STDERR_BYTES` bytes are shown, with control characters spelled out.
    :param stacks: where its threads were when the timeout came, or it crashed; the first
        :data:`STACK_LINES` lines are shown.
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
        ("loosened", ", ".join(_loosened(spec))),
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


def _of(used: str, limit: str | int | None) -> str:
    return f"{used} of {limit}" if limit else used


def _memory(usage: Usage, spec: CrateSpec) -> str:
    peak, limit = usage.memory_peak_bytes, spec.memory_bytes
    text = f"peak {_of(units.size(peak), limit and units.size(limit))}"
    if peak is not None and limit:
        text = f"{text} ({units.percent(peak, limit)})"
    parts = [
        f"{name} {units.size(level)}"
        for name, level in (
            ("anon", usage.memory_anon_bytes),
            ("file", usage.memory_file_bytes),
            ("shmem", usage.memory_shmem_bytes),
        )
    ]
    # Levels are of the last reading: what killed processes held is gone by then.
    return f"{text}; at the end {', '.join(parts)}"


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


def _loosened(spec: CrateSpec) -> list[str]:
    names = [f"cap_add {name}" for name in spec.cap_add]
    return names if spec.seccomp else [*names, "seccomp off"]


def _stacks(stacks: str, when: str) -> list[str]:
    lines = stacks.rstrip().splitlines()
    shown = [f"  {terminal_text.harmless(line.expandtabs())}" for line in lines[:STACK_LINES]]
    if left_out := len(lines) - len(shown):
        shown.append(f"  ({units.count(left_out, 'line')} left out)")
    return [f"stacks {when}:", *shown]
