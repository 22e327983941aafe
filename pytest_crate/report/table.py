"""The summary at the end of a run: a table of what the crates used, and its totals."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from pytest_crate.report import terminal_text, units
from pytest_crate.report.confinement import loosened
from pytest_crate.report.limits import NEAR_PERCENT, is_at_memory_limit, is_throttled
from pytest_crate.report.record import SharedCrate, TestRecord, limit_in, shared_crates
from pytest_crate.result import CrateResult
from pytest_crate.usage import Usage

Segment = tuple[str, dict[str, bool]]
"""A piece of a line and its markup, in the keywords of pytest's ``TerminalWriter.write``."""
Line = list[Segment]

_GAP = 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Glyphs:
    full: str
    empty: str
    ellipsis: str


_UNICODE = _Glyphs(full="\N{FULL BLOCK}", empty="\N{LIGHT SHADE}", ellipsis="\N{HORIZONTAL ELLIPSIS}")
_ASCII = _Glyphs(full="#", empty=".", ellipsis="...")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """Which optional columns are shown, and how wide the bar is."""

    limit: bool = True
    bar_cells: int = 10
    every_flag: bool = True
    pids: bool = True
    cpu: bool = True
    wall: bool = True


# In a narrow terminal columns are given up, the dearest last, until test ids can be told apart.
_LAYOUTS = (
    _Layout(),
    _Layout(limit=False),
    _Layout(limit=False, bar_cells=5),
    _Layout(limit=False, bar_cells=5, every_flag=False),
    _Layout(limit=False, bar_cells=5, every_flag=False, pids=False),
    _Layout(limit=False, bar_cells=0, every_flag=False, pids=False),
    _Layout(limit=False, bar_cells=0, every_flag=False, pids=False, cpu=False),
    _Layout(limit=False, bar_cells=0, every_flag=False, pids=False, cpu=False, wall=False),
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One crate, or (``crate`` is None) one test that ran without one."""

    test: str
    bad: bool
    crate: CrateResult | None
    memory_limit_bytes: int | None = None

    @property
    def usage(self) -> Usage:
        return self.crate.usage if self.crate else Usage()

    @property
    def rank(self) -> tuple[bool, int]:
        """What the table is sorted by, descending: a limit exceeded, then the memory peak, an unknown one last.

        What waits until its timeout, or is refused a fork, has a small peak: by that alone it would be cut off.
        """
        peak = self.usage.memory_peak_bytes
        return bool(self.crate and self.crate.exceeded), -1 if peak is None else peak


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    title: str
    cells: list[Line]
    right: bool = True

    @property
    def width(self) -> int:
        return max([len(self.title), *(_line_columns(cell) for cell in self.cells)])

    def padded(self) -> list[Line]:
        """Return title and cells, all of the column's width."""
        width = self.width
        padded = []
        for cell in [[(self.title, {"bold": True})], *self.cells]:
            spaces: Segment = (" " * (width - _line_columns(cell)), {})
            padded.append([spaces, *cell] if self.right else [*cell, spaces])
        return padded


def summary(records: Iterable[TestRecord], *, top: int, width: int, ascii_only: bool = False) -> list[Line]:
    """Return the table of crates and the lines below it.

    Tests that ran unsandboxed come before all others, then crates that exceeded a limit, then the rest; of crates
    the highest memory peak comes first. Without crates and such tests there are no lines.

    :param top: how many crates, and how many unsandboxed tests, to show; 0 shows all.
    :param width: the terminal's columns.
    :param ascii_only: the terminal's encoding lacks the bar's glyphs; everything is ASCII then.
    :returns: lines of segments; the text of a segment has no newline.
    :raises ValueError: ``top`` is negative.
    """
    if top < 0:
        raise ValueError(f"top={top}: expected 0 or more rows")
    tests = sorted(records, key=lambda record: record.nodeid)
    glyphs = _ASCII if ascii_only else _UNICODE
    uncrated = [_uncrated_row(record, ascii_only=ascii_only) for record in tests if record.uncrated is not None]
    shared = [_shared_row(crate, ascii_only=ascii_only) for crate in shared_crates(tests)]
    crates = [row for record in tests for row in _crate_rows(record, ascii_only=ascii_only)] + shared
    if not uncrated and not crates:
        return []
    # Sorting is stable: equal and unknown peaks stay in the order of test ids.
    crates.sort(key=lambda row: row.rank, reverse=True)
    shown = [*uncrated[: top or None], *crates[: top or None]]
    lines = _table(shown, width=width, glyphs=glyphs)
    if left_out := len(uncrated) + len(crates) - len(shown):
        lines += _sentence([f"{units.count(left_out, 'row')} left out", "see all with --crate-top=0"], width)
    lines += _total(crates, width, shared=len(shared))
    lines += _loosened(tests, width)
    lines += _reasons(tests, width=width, ascii_only=ascii_only)
    return lines


def _crate_rows(record: TestRecord, *, ascii_only: bool) -> Iterator[_Row]:
    for crate in record.crates:
        # One crate needs no name; of several each has one.
        name = f" ({crate.name})" if len(record.crates) > 1 else ""
        yield _Row(
            test=_printable(f"{record.nodeid}{name}", ascii_only=ascii_only),
            bad=record.outcome in ("failed", "error"),
            crate=crate,
            memory_limit_bytes=limit_in(record.spec_of(crate), "memory_bytes"),
        )


def _shared_row(shared: SharedCrate, *, ascii_only: bool) -> _Row:
    return _Row(
        test=_printable(f"{shared.name} ({units.count(len(shared.tests), 'test')})", ascii_only=ascii_only),
        bad=False,
        crate=shared.crate,
        memory_limit_bytes=limit_in(shared.spec, "memory_bytes"),
    )


def _uncrated_row(record: TestRecord, *, ascii_only: bool) -> _Row:
    return _Row(test=_printable(record.nodeid, ascii_only=ascii_only), bad=True, crate=None)


def _printable(text: str, *, ascii_only: bool) -> str:
    text = terminal_text.harmless(text)
    return terminal_text.to_ascii(text) if ascii_only else text


def _table(rows: Sequence[_Row], *, width: int, glyphs: _Glyphs) -> list[Line]:
    title = "test"
    longest = max([len(title), *(terminal_text.columns(row.test) for row in rows)])
    wanted = min(longest, max(20, width // 3))
    for layout in _LAYOUTS:
        columns = _columns(rows, layout, glyphs)
        room = width - sum(_GAP + column.width for column in columns)
        if room >= wanted:
            break
    cells = [_test_cell(row, max(len(title), room), glyphs) for row in rows]
    test = _Column(title=title, cells=cells, right=False)
    return [_joined(line) for line in zip(*(column.padded() for column in [test, *columns]), strict=True)]


def _columns(rows: Sequence[_Row], layout: _Layout, glyphs: _Glyphs) -> list[_Column]:
    limited = any(row.memory_limit_bytes is not None for row in rows)
    columns = []
    if layout.wall:
        columns.append(_numbers("wall", (units.duration(row.usage.wall_usec) for row in rows)))
    if layout.cpu:
        columns.append(_numbers("cpu", (units.duration(row.usage.cpu_usage_usec) for row in rows)))
    columns.append(_numbers("mem peak", (units.size(row.usage.memory_peak_bytes) for row in rows)))
    if limited and layout.bar_cells:
        bars = [_bar(row, layout.bar_cells, glyphs) for row in rows]
        columns.append(_Column(title="used", cells=bars, right=False))
    if limited and layout.limit:
        columns.append(_numbers("limit", (units.size(row.memory_limit_bytes) for row in rows)))
    if layout.pids:
        columns.append(_numbers("pids", (units.number(row.usage.pids_peak) for row in rows)))
    flags = [_flags(row, every=layout.every_flag) for row in rows]
    if any(flags):
        columns.append(_Column(title="flags", cells=flags, right=False))
    return columns


def _numbers(title: str, texts: Iterable[str]) -> _Column:
    return _Column(title=title, cells=[[(text, {})] for text in texts])


def _test_cell(row: _Row, width: int, glyphs: _Glyphs) -> Line:
    return [(terminal_text.shorten_middle(row.test, width, glyphs.ellipsis), {"red": True} if row.bad else {})]


def _bar(row: _Row, cells: int, glyphs: _Glyphs) -> Line:
    peak, limit = row.usage.memory_peak_bytes, row.memory_limit_bytes
    if peak is None or not limit:
        return [(units.UNKNOWN, {})]
    # Anything used shows; only what reached the limit fills the bar.
    filled = min(cells, max(1 if peak else 0, peak * cells // limit))
    if row.usage.memory_oom_kills:
        markup = {"red": True}
    elif peak * 100 >= limit * NEAR_PERCENT:
        markup = {"yellow": True}
    else:
        markup = {"green": True}
    return [(glyphs.full * filled, markup), (glyphs.empty * (cells - filled), {})]


def _flags(row: _Row, *, every: bool) -> Line:
    """Return what happened to a crate, the worst first; the worst alone and a number unless ``every``."""
    if row.crate is None:
        return [("NO CRATE", {"red": True, "bold": True})]
    usage = row.usage
    exceeded = row.crate.exceeded
    red = {"red": True, "bold": True}
    yellow = {"yellow": True}
    flags: Line = []
    if usage.memory_oom_kills:
        flags.append(("OOM", red))
    elif "memory" in exceeded:
        flags.append(("memory", red))
    if "timeout" in exceeded:
        flags.append(("timeout", red))
    if "pids" in exceeded or usage.pids_max_events:
        flags.append(("pids", red))
    if is_at_memory_limit(usage, row.memory_limit_bytes) and "memory" not in exceeded:
        flags.append(("at limit", yellow))
    if is_throttled(usage):
        flags.append(("throttled", yellow))
    if not every and len(flags) > 1:
        return [flags[0], (f" +{len(flags) - 1}", {})]
    return [segment for flag in flags for segment in ((", ", {}), flag)][1:]


def _joined(cells: Sequence[Line]) -> Line:
    """Return one row of the table, without the spaces that would end it."""
    line = [segment for cell in cells for segment in ((" " * _GAP, {}), *cell) if segment[0]][1:]
    while line and line[-1][0].isspace():
        line.pop()
    return line


def _line_columns(line: Line) -> int:
    return sum(terminal_text.columns(text) for text, _ in line)


def _sentence(parts: Sequence[str], width: int, markup: dict[str, bool] | None = None) -> list[Line]:
    """Return parts joined by commas, on one line if they fit, and else broken between parts."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(", ") + len(part) < width:
            lines[-1] += f", {part}"
        else:
            lines.append(part)
    ends = [","] * (len(lines) - 1) + [""]
    return [[(f"{line}{end}", markup or {})] for line, end in zip(lines, ends, strict=True)]


def _total(rows: Sequence[_Row], width: int, *, shared: int) -> list[Line]:
    # A test's part of a shared crate is in the row of the crate as a whole.
    crates = [row for row in rows if row.crate is None or row.crate.shared is None]
    known = [row.usage.cpu_usage_usec for row in crates if row.usage.cpu_usage_usec is not None]
    cpu = units.duration(sum(known) if known else None)
    if known and len(known) < len(crates):
        cpu = f"at least {cpu}"
    peak = max((row.usage.memory_peak_bytes for row in crates if row.usage.memory_peak_bytes is not None), default=None)
    over = sum(bool(row.crate and row.crate.exceeded) for row in crates)
    parts = [
        units.count(len(crates), "crate") + (f" ({shared} shared)" if shared else ""),
        f"cpu {cpu}",
        f"highest peak {units.size(peak)}",
        f"{over} over a limit",
    ]
    return _sentence(parts, width, {"bold": True, "red": True} if over else {"bold": True})


def _loosened(tests: Iterable[TestRecord], width: int) -> list[Line]:
    """Return a line that names every loosening of the default confinement that a crate of the run had."""
    tests_of: dict[str, set[str]] = {}
    for record in tests:
        for crate in record.crates:
            for name in loosened(record.spec_of(crate)):
                tests_of.setdefault(name, set()).add(record.nodeid)
    if not tests_of:
        return []
    parts = [f"{name} in {units.count(len(ids), 'test')}" for name, ids in sorted(tests_of.items())]
    return _sentence([f"confinement loosened: {parts[0]}", *parts[1:]], width, {"yellow": True})


def _reasons(tests: Iterable[TestRecord], *, width: int, ascii_only: bool) -> list[Line]:
    """Return how many tests ran unsandboxed, and each reason once, unwrapped: it may hold a command to copy."""
    reasons: dict[str, int] = {}
    for record in tests:
        if record.uncrated is not None:
            reasons[record.uncrated] = reasons.get(record.uncrated, 0) + 1
    if not reasons:
        return []
    markup = {"red": True, "bold": True}
    amount = units.count(sum(reasons.values()), "test")
    lines = _sentence([f"{amount} RAN UNSANDBOXED", "no limit was enforced (crate_unsupported = run):"], width, markup)
    for reason, times in reasons.items():
        first, *rest = reason.splitlines() or [""]
        lines.append([(_printable(f"  {times}x {first}", ascii_only=ascii_only), {"red": True})])
        lines += [[(_printable(f"     {line}", ascii_only=ascii_only), {"red": True})] for line in rest]
    return lines
