from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_crate.report import Line, Outcome, TestRecord, summary
from pytest_crate.report.terminal_text import columns
from pytest_crate.result import CrateResult, Limit, Shared
from pytest_crate.spec import CrateSpec, Mount
from pytest_crate.usage import Usage

MIB = 1 << 20
# The keywords that TerminalWriter.markup() accepts.
MARKUP = {"bold", "red", "green", "yellow"}


def _record(
    nodeid: str,
    *,
    outcome: Outcome = "passed",
    limit_bytes: int | None = None,
    exceeded: tuple[Limit, ...] = (),
    usage: Usage | None = None,
) -> TestRecord:
    return TestRecord(
        nodeid=nodeid,
        outcome=outcome,
        spec=CrateSpec(memory_bytes=limit_bytes).to_json(),
        crates=(CrateResult(name="body", usage=usage or Usage(), exceeded=exceeded),),
    )


def _unsandboxed(nodeid: str, reason: str) -> TestRecord:
    return TestRecord(nodeid=nodeid, outcome="passed", spec=CrateSpec().to_json(), uncrated=reason)


def _texts(lines: Iterable[Line]) -> list[str]:
    return ["".join(text for text, _ in line) for line in lines]


def _markup_of(lines: Iterable[Line], wanted: str) -> dict[str, bool]:
    return next(markup for line in lines for text, markup in line if text == wanted)


OOM = _record(
    "tests/test_a.py::test_oom",
    outcome="failed",
    limit_bytes=64 * MIB,
    exceeded=("memory",),
    usage=Usage(
        wall_usec=1_340_000,
        cpu_usage_usec=1_230_000,
        memory_peak_bytes=64 * MIB,
        memory_oom_kills=1,
        cpu_nr_throttled=2,
        pids_peak=3,
    ),
)
SMALL = _record(
    "tests/test_a.py::test_small",
    limit_bytes=256 * MIB,
    usage=Usage(wall_usec=12_000, cpu_usage_usec=8_000, memory_peak_bytes=9 * MIB, pids_peak=1),
)


def test_the_table_is_biggest_first() -> None:
    """Rows go by memory peak; the total line adds CPU time, and counts what exceeded a limit."""
    assert _texts(summary([SMALL, OOM], top=0, width=120)) == [
        "test                           wall     cpu  mem peak  used          limit  pids  flags",
        "tests/test_a.py::test_oom    1.34 s  1.23 s    64 MiB  ██████████   64 MiB     3  OOM, throttled",
        "tests/test_a.py::test_small   12 ms    8 ms     9 MiB  █░░░░░░░░░  256 MiB     1",
        "2 crates, cpu 1.24 s, highest peak 64 MiB, 1 over a limit",
    ]


def test_an_ascii_terminal_gets_ascii() -> None:
    """Where the encoding lacks the glyphs, bar, ellipsis and ids are ASCII, at the same widths."""
    record = dataclasses.replace(OOM, nodeid="tests/test_a.py::test_é" + "x" * 60)
    text = "\n".join(_texts(summary([record], top=0, width=80, ascii_only=True)))
    assert text.isascii()
    assert "#####" in text
    assert "..." in text


def test_an_ascii_terminal_sees_other_characters_spelled_out() -> None:
    """An id that the encoding lacks is still told apart."""
    assert r"t.py::test_\xe9" in _texts(summary([_record("t.py::test_é")], top=0, width=80, ascii_only=True))[1]


@pytest.mark.parametrize(
    ("width", "header"),
    [
        (120, "test wall cpu mem peak used limit pids flags"),
        (80, "test wall cpu mem peak used pids flags"),
        (60, "test wall cpu mem peak flags"),
        (40, "test mem peak flags"),
    ],
)
def test_narrow_terminals_give_up_columns(width: int, header: str) -> None:
    """The dearest columns stay, flags and memory always; of several flags the worst and a number stay."""
    record = dataclasses.replace(OOM, nodeid=f"tests/test_a.py::test_{'long' * 20}")
    lines = _texts(summary([record], top=0, width=width))
    assert " ".join(lines[0].split()) == header
    assert lines[1].endswith("OOM, throttled" if width == 120 else "OOM +1")
    assert columns(lines[1]) <= width


def test_an_id_shorter_than_its_title_does_not_push_flags_out() -> None:
    """The test column is at least as wide as its title: the room for flags is reckoned with that."""
    record = _record("0", exceeded=("timeout",), usage=Usage(memory_oom_kills=1, pids_max_events=1, cpu_nr_throttled=1))
    lines = _texts(summary([record], top=0, width=60))
    assert max(map(len, lines)) <= 60
    assert lines[1].endswith("OOM +3")


def test_a_wide_terminal_does_not_stretch_the_table() -> None:
    """With room to spare the columns stay together."""
    assert summary([OOM], top=0, width=300) == summary([OOM], top=0, width=120)


def test_long_ids_are_shortened_in_the_middle() -> None:
    """Start and end of an id are kept, so that the file's and the test's name can be recognised."""
    record = dataclasses.replace(OOM, nodeid="tests/integration/test_thumbnails.py::test_scaled[png-4096]")
    test = _texts(summary([record], top=0, width=80))[1].split()[0]
    assert (test[:5], test[-9:], test.count("…")) == ("tests", "png-4096]", 1)


def test_wide_characters_do_not_shift_columns() -> None:
    """East Asian characters take two columns: what follows them starts where it does in other rows."""
    lines = _texts(
        summary(
            [_record("t.py::漢字", usage=Usage(wall_usec=1_000)), _record("t.py::ab", usage=Usage(wall_usec=1_000))],
            top=0,
            width=80,
        )
    )
    starts = {columns(line[: line.index("1 ms")]) for line in lines[1:3]}
    assert len(starts) == 1


def test_unknown_numbers_are_dashes() -> None:
    """Nothing known is shown as -, never as 0, and sorts last."""
    lines = _texts(
        summary([_record("a", limit_bytes=MIB), _record("b", usage=Usage(memory_peak_bytes=0))], top=0, width=120)
    )
    assert lines[1].split() == ["b", "-", "-", "0", "B", "-", "-", "-"]
    assert lines[2].split() == ["a", "-", "-", "-", "-", "1", "MiB", "-"]
    assert lines[3] == "2 crates, cpu -, highest peak 0 B, 0 over a limit"


def test_a_sum_with_unknown_parts_says_at_least() -> None:
    """A total that leaves crates out for want of a number does not pass for the whole."""
    lines = _texts(summary([_record("a", usage=Usage(cpu_usage_usec=5_000)), _record("b")], top=0, width=120))
    assert lines[-1] == "2 crates, cpu at least 5 ms, highest peak -, 0 over a limit"


@pytest.mark.parametrize(("top", "rows", "left_out"), [(0, 5, None), (5, 5, None), (4, 4, "1 row"), (2, 2, "3 rows")])
def test_top_bounds_the_rows_and_says_how_many_it_left_out(top: int, rows: int, left_out: str | None) -> None:
    """The biggest are shown, what is left out is counted, and totals are of all."""
    records = [_record(f"t{number}", usage=Usage(memory_peak_bytes=number * MIB)) for number in range(5)]
    lines = _texts(summary(records, top=top, width=120))
    assert [line.split()[0] for line in lines[1 : rows + 1]] == ["t4", "t3", "t2", "t1", "t0"][:rows]
    expected = [f"{left_out} left out, see all with --crate-top=0"] if left_out else []
    assert lines[rows + 1 :] == [*expected, "5 crates, cpu -, highest peak 4 MiB, 0 over a limit"]


@pytest.mark.parametrize("limit", ["memory", "pids", "timeout"])
def test_what_exceeded_a_limit_comes_first_however_small(limit: Limit) -> None:
    """A culprit with a tiny or unknown peak is not cut off for bigger crates; of several the biggest is first."""
    records = [_record(f"t{number}", usage=Usage(memory_peak_bytes=number * MIB)) for number in range(5)]
    records.append(_record("small", exceeded=(limit,), usage=Usage(memory_peak_bytes=4096)))
    records.append(_record("unknown", exceeded=(limit,)))
    records.append(_unsandboxed("none", "no cgroup"))
    lines = _texts(summary(records, top=3, width=120))
    assert [line.split()[0] for line in lines[1:5]] == ["none", "small", "unknown", "t4"]
    assert lines[5] == "4 rows left out, see all with --crate-top=0"


@pytest.mark.parametrize("records", [[], [SMALL], [SMALL, OOM]])
def test_a_negative_number_of_rows_is_an_error(records: list[TestRecord]) -> None:
    """Less than no row is refused, rather than taken for all but the last."""
    with pytest.raises(ValueError, match=r"^top=-1: expected 0 or more rows$"):
        summary(records, top=-1, width=80)


@pytest.mark.parametrize(
    ("exceeded", "usage", "flags", "markup"),
    [
        (("memory",), Usage(memory_oom_kills=1, memory_max_events=9), "OOM", {"red": True, "bold": True}),
        (("memory",), Usage(memory_peak_bytes=MIB), "memory", {"red": True, "bold": True}),
        (("timeout",), Usage(), "timeout", {"red": True, "bold": True}),
        (("pids",), Usage(), "pids", {"red": True, "bold": True}),
        ((), Usage(pids_max_events=1), "pids", {"red": True, "bold": True}),
        ((), Usage(memory_max_events=1), "at limit", {"yellow": True}),
        ((), Usage(memory_peak_bytes=MIB), "at limit", {"yellow": True}),
        ((), Usage(cpu_throttled_usec=1), "throttled", {"yellow": True}),
    ],
)
def test_flags_say_what_happened(
    exceeded: tuple[Limit, ...], usage: Usage, flags: str, markup: dict[str, bool]
) -> None:
    """Each event has its flag; memory reclaimed at the limit is told from an OOM kill."""
    lines = summary([_record("t", limit_bytes=MIB, exceeded=exceeded, usage=usage)], top=0, width=120)
    assert lines[1][-1] == (flags, markup)


def test_several_flags_are_all_there_worst_first() -> None:
    """Flags don't hide each other where there is room."""
    record = _record(
        "t",
        limit_bytes=MIB,
        exceeded=("memory", "pids", "timeout"),
        usage=Usage(memory_oom_kills=1, cpu_nr_throttled=1),
    )
    assert _texts(summary([record], top=0, width=120))[1].endswith("  OOM, timeout, pids, throttled")


@pytest.mark.parametrize(
    ("peak_bytes", "oom_kills", "bar", "colour"),
    [
        (0, 0, "░░░░░░░░░░", None),
        (1, 0, "█░░░░░░░░░", {"green": True}),
        (50 * MIB, 0, "█████░░░░░", {"green": True}),
        (90 * MIB, 0, "█████████░", {"yellow": True}),
        (100 * MIB - 4096, 0, "█████████░", {"yellow": True}),
        (100 * MIB, 0, "██████████", {"yellow": True}),
        (100 * MIB, 1, "██████████", {"red": True}),
        (101 * MIB, 0, "██████████", {"yellow": True}),
    ],
)
def test_the_bar_is_full_only_at_the_limit(
    peak_bytes: int, oom_kills: int, bar: str, colour: dict[str, bool] | None
) -> None:
    """Anything used shows, only what reached the limit fills the bar; near it turns yellow, OOM red."""
    usage = Usage(memory_peak_bytes=peak_bytes, memory_oom_kills=oom_kills)
    lines = summary([_record("t", limit_bytes=100 * MIB, usage=usage)], top=0, width=120)
    assert bar in _texts(lines)[1]
    if colour is not None:
        assert _markup_of(lines, "█" * bar.count("█")) == colour


def test_without_limits_there_is_no_bar() -> None:
    """Columns that could hold nothing are left out."""
    assert _texts(summary([_record("t")], top=0, width=120))[0].split() == "test wall cpu mem peak pids".split()


def test_each_crate_of_a_test_has_its_row_name_and_limit() -> None:
    """Several crates of one test are told apart, each measured against its own spec."""
    record = TestRecord(
        nodeid="t",
        outcome="passed",
        spec=CrateSpec(memory_bytes=100 * MIB).to_json(),
        crates=(
            CrateResult(name="body", usage=Usage(memory_peak_bytes=10 * MIB)),
            CrateResult(name="crate_sandbox[2]", usage=Usage(memory_peak_bytes=16 * MIB)),
        ),
        crate_specs={"crate_sandbox[2]": CrateSpec(memory_bytes=32 * MIB).to_json()},
    )
    lines = _texts(summary([record], top=0, width=120))
    assert lines[1].split()[:9] == ["t", "(crate_sandbox[2])", "-", "-", "16", "MiB", "█████░░░░░", "32", "MiB"]
    assert lines[2].split()[:9] == ["t", "(body)", "-", "-", "10", "MiB", "█░░░░░░░░░", "100", "MiB"]


def test_unsandboxed_tests_come_first_and_loud() -> None:
    """Tests that ran without a crate are the first rows, in red, and each reason is told once, with its remedy."""
    reason = "memory limit: not delegated\nTo mend it: systemd-run --user --scope -p Delegate=yes pytest"
    records = [SMALL, _unsandboxed("b", reason), _unsandboxed("a", reason), _unsandboxed("c", "no cgroup")]
    lines = summary(records, top=2, width=80)
    texts = _texts(lines)
    assert [line.split()[0] for line in texts[1:4]] == ["a", "b", "tests/test_a.py::test_small"]
    assert texts[1].endswith("NO CRATE")
    assert _markup_of(lines, "NO CRATE") == {"red": True, "bold": True}
    assert texts[4] == "1 row left out, see all with --crate-top=0"
    assert texts[6:] == [
        "3 tests RAN UNSANDBOXED, no limit was enforced (crate_unsupported = run):",
        "  2x memory limit: not delegated",
        "     To mend it: systemd-run --user --scope -p Delegate=yes pytest",
        "  1x no cgroup",
    ]
    assert all(markup.get("red") for line in lines[6:] for _, markup in line)


def test_loosened_confinement_is_named() -> None:
    """Every loosening that a crate had is named with the number of tests; a test without crates had none."""
    loose = dataclasses.replace(OOM, spec=CrateSpec(cap_add=("net_admin",), seccomp=False).to_json())
    other = dataclasses.replace(
        SMALL, crate_specs={"body": CrateSpec(seccomp=False).to_json()}, spec=CrateSpec(cap_add=("chown",)).to_json()
    )
    never_ran = dataclasses.replace(loose, nodeid="skipped", crates=())
    mounts = tuple(Mount(source="/a", target=target, writable=True) for target in ("/b", "/c"))
    opened = dataclasses.replace(SMALL, nodeid="opened", spec=CrateSpec(network="host", mounts=mounts).to_json())
    lines = _texts(summary([loose, other, never_ran, opened], top=0, width=120))
    assert lines[-1] == (
        "confinement loosened: cap_add net_admin in 1 test, mounts rw in 1 test, network host in 1 test, "
        "seccomp off in 2 tests"
    )


def test_nothing_to_tell_is_no_lines() -> None:
    """Without crates and without unsandboxed tests the summary is empty."""
    assert summary([], top=10, width=80) == []
    assert summary([dataclasses.replace(OOM, crates=())], top=10, width=80) == []


def test_failed_tests_are_red() -> None:
    """A failed test's id is red, a passed one's has no colour; the total is red if a limit was exceeded."""
    lines = summary([OOM, SMALL], top=0, width=120)
    assert _markup_of(lines, OOM.nodeid) == {"red": True}
    assert _markup_of(lines, SMALL.nodeid) == {}
    assert lines[-1][0][1] == {"bold": True, "red": True}
    assert summary([SMALL], top=0, width=120)[-1][0][1] == {"bold": True}


def test_an_id_cannot_drive_the_terminal() -> None:
    """Control characters of a parametrized id are spelled out."""
    assert r"t[\x1b]0;x\x07]" in _texts(summary([_record("t[\x1b]0;x\x07]")], top=0, width=120))[1]


_NUMBER = st.none() | st.integers(0, 1 << 45)
_RECORDS = st.lists(
    st.builds(
        lambda nodeid, usage, limit_bytes, exceeded, outcome: TestRecord(
            nodeid=nodeid,
            outcome=outcome,
            spec=CrateSpec(memory_bytes=limit_bytes, cap_add=("chown",)).to_json(),
            crates=(CrateResult(name="body", usage=usage, exceeded=exceeded),),
        ),
        st.text(min_size=1, max_size=150),
        st.builds(Usage, **{field.name: _NUMBER for field in dataclasses.fields(Usage)}),
        st.none() | st.integers(4096, 1 << 45),
        st.sets(st.sampled_from(["memory", "pids", "timeout"])).map(sorted).map(tuple),
        st.sampled_from(["passed", "failed"]),
    ),
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(_RECORDS, st.integers(0, 4), st.integers(60, 200), st.booleans())
def test_no_line_is_wider_than_the_terminal(records: Any, top: int, width: int, ascii_only: bool) -> None:
    """Whatever ids and numbers there are, no line wraps, ends in a space, or has a markup that pytest lacks."""
    lines = summary(records, top=top, width=width, ascii_only=ascii_only)
    for line, text in zip(lines, _texts(lines), strict=True):
        assert columns(text) <= width
        assert text == text.rstrip() or text.isspace()
        assert "\n" not in text
        assert {keyword for _, markup in line for keyword in markup} <= MARKUP
        assert text.isascii() or not ascii_only


def test_a_shared_crate() -> None:
    """A crate that tests shared has a row as a whole; the total counts it once, and each test's part not at all."""
    records = [
        TestRecord(
            nodeid=f"t.py::test_{place}",
            outcome="passed",
            spec=CrateSpec(memory_bytes=64 * MIB).to_json(),
            crates=(
                CrateResult(
                    name="body",
                    usage=Usage(cpu_usage_usec=1_000),
                    shared=Shared(
                        name="t.py",
                        number=1,
                        tests=place,
                        usage=Usage(cpu_usage_usec=1_000 * place, memory_peak_bytes=10 * MIB),
                    ),
                ),
            ),
        )
        for place in (1, 2)
    ]
    texts = _texts(summary([*records, SMALL], top=0, width=100))
    assert [text.split()[0] for text in texts[1:]] == [
        "t.py",
        "tests/test_a.py::test_small",
        "t.py::test_1",
        "t.py::test_2",
        "2",
    ]
    assert texts[1].startswith("t.py (2 tests) ")
    assert texts[-1] == "2 crates (1 shared), cpu 10 ms, highest peak 10 MiB, 0 over a limit"
