"""The doctor's findings as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pytest_crate.report.terminal_text import harmless

# Select graphic rendition, ECMA-48 §8.3.117.
_COLOURS = {"ok": "\x1b[32m", "degraded": "\x1b[33m", "missing": "\x1b[1;31m"}
_END = "\x1b[0m"

_NARROW = 60  # columns; below, a finding has lines of its own under its feature
_LEAST_WIDTH = 20


def doctor_text(host: Mapping[str, Any], *, width: int, colour: bool) -> str:
    """Return what a host offers to crates: a line on the host, the rows, and a verdict.

    Prose is wrapped; a remedy is not, so that it can be copied.

    :param host: as :meth:`pytest_crate.kernel.host.Host.to_json` gives it.
    :param width: of the terminal, in columns.
    """
    rows: Sequence[Mapping[str, Any]] = host["rows"]
    width = max(width, _LEAST_WIDTH)
    lines = [*_wrapped(_host_line(host), width), ""]
    first = max((len(str(row["feature"])) for row in rows), default=0)
    told: dict[tuple[str, str], str] = {}
    for row in rows:
        fault = (str(row["detail"]), str(row["remedy"]))
        same = told.setdefault(fault, str(row["feature"]))
        # One cause, such as cgroups that can't be written, takes many things away.
        again = row["status"] != "ok" and same != row["feature"]
        shown = {**row, "detail": f"as for {same}", "remedy": ""} if again else row
        lines += _row_lines(shown, first, width, colour=colour)
    return "\n".join([*lines, "", *_wrapped(_verdict(rows), width), ""])


def _host_line(host: Mapping[str, Any]) -> str:
    cgroup = f"cgroup v{host['cgroup_version']} ({host['cgroup_how']})" if host["cgroup_version"] else "no cgroups"
    return f"kernel {host['kernel']}, {cgroup}, {'root' if host['privileged'] else 'rootless'}"


def _row_lines(row: Mapping[str, Any], first: int, width: int, *, colour: bool) -> Iterator[str]:
    status, feature = str(row["status"]), str(row["feature"])
    head = f"{_COLOURS[status]}{status}{_END}" if colour else status
    head += " " * (len("degraded") - len(status) + 2)
    indent = len("degraded") + 2
    detail = str(row["detail"])
    affects = "every crate" if not row["affects"] else ", ".join(row["affects"])
    if width < _NARROW:
        yield f"{head}{feature}"
        indent = 2
        yield from _wrapped(detail, width, indent)
    else:
        indent += first + 2
        found = _wrapped(detail, width, indent) or [""]
        yield f"{head}{feature.ljust(first)}  {found[0].lstrip()}".rstrip()
        yield from found[1:]
    if status == "ok":
        return
    need = "without it, by a slower or less deep way" if status == "degraded" else "needed by"
    yield from _wrapped(f"{need}: {affects}", width, indent)
    if row["remedy"]:
        yield f"{' ' * indent}to mend it:"
        yield f"{' ' * min(indent, 4)}{harmless(str(row['remedy']))}"


def _verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    missing = [str(row["feature"]) for row in rows if row["status"] == "missing"]
    if not missing:
        return "Crates are fully enforced here."
    return (
        f"Crates are NOT fully enforced here; missing: {', '.join(missing)}. "
        "The ini option crate_unsupported says what becomes of tests that need it."
    )


def _wrapped(text: str, width: int, indent: int = 0) -> list[str]:
    # A path or a command is not broken: the terminal does that, and a copy of it stays whole.
    space = " " * indent
    return textwrap.wrap(
        harmless(text),
        max(width, indent + 10),
        initial_indent=space,
        subsequent_indent=space,
        break_long_words=False,
        break_on_hyphens=False,
    )
