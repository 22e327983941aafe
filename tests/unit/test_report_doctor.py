"""The doctor's findings as text."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pytest_crate.report.doctor import doctor_text

REMEDY = "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile with `userns,`"


def host(*rows: dict[str, Any], version: int = 2) -> dict[str, Any]:
    return {
        "kernel": "6.8.0-45",
        "privileged": False,
        "cgroup_version": version,
        "cgroup_how": "systemd scope",
        "enforced": all(row["status"] != "missing" for row in rows),
        "rows": rows,
    }


def row(
    feature: str, status: str = "ok", *, detail: str = "works", affects: str = "", remedy: str = ""
) -> dict[str, Any]:
    return {"feature": feature, "status": status, "detail": detail, "affects": affects.split(), "remedy": remedy}


def test_a_host_that_enforces() -> None:
    """The head names kernel and cgroup; each row is a line; the verdict is the last."""
    text = doctor_text(host(row("overlay"), row("memory limit", detail="enforced")), width=80, colour=False)
    assert text == (
        "kernel 6.8.0-45, cgroup v2 (systemd scope), rootless\n"
        "\n"
        "ok        overlay       works\n"
        "ok        memory limit  enforced\n"
        "\n"
        "Crates are fully enforced here.\n"
    )


def test_what_is_missing() -> None:
    """A row that is not ok says which keys need it, and gives the remedy on a line of its own, unbroken."""
    found = row("user namespaces", "missing", detail="uid_map: Permission denied", remedy=REMEDY)
    limit = row("memory limit", "missing", detail="not delegated", affects="memory swap")
    text = doctor_text(host(found, limit, version=0), width=80, colour=False)
    assert "no cgroups" in text
    assert "needed by: every crate\n" in text
    assert "needed by: memory, swap\n" in text
    assert f"to mend it:\n    {REMEDY}\n" in text
    assert "NOT fully enforced here; missing: user namespaces, memory limit." in " ".join(text.split())


def test_one_cause_is_told_once() -> None:
    """Rows with the same cause and remedy as one before refer to it."""
    rows = [row(name, "missing", detail="read-only", affects=name, remedy=REMEDY) for name in ("cgroup", "pids")]
    text = doctor_text(host(*rows), width=80, colour=False)
    assert "missing   pids    as for cgroup\n                  needed by: pids\n" in text
    assert text.count(REMEDY) == 1


def test_what_is_degraded() -> None:
    """A row that is degraded does not keep crates from being enforced."""
    text = doctor_text(host(row("clone3", "degraded", detail="ENOSYS")), width=80, colour=False)
    assert "degraded  clone3  ENOSYS\n                  without it, by a slower or less deep way: every crate\n" in text
    assert text.endswith("Crates are fully enforced here.\n")


@pytest.mark.parametrize("width", [20, 40, 59, 60, 80])
def test_fits_the_terminal(width: int) -> None:
    """Prose fits the width, be it narrow; only what must stay whole, a word or a remedy, may be longer."""
    long = "a step was refused because of several reasons that take many words to tell"
    rows = (row("user namespaces", "missing", detail=long, remedy=REMEDY, affects="memory cpus"), row("openat2"))
    for line in doctor_text(host(*rows), width=width, colour=False).splitlines():
        assert len(line) <= width or line.strip() == REMEDY or line.startswith(("missing  ", "degraded  ")), line


def test_colour_is_all_that_colour_changes() -> None:
    """Without colour the text is the same, letter for letter."""
    found = host(row("overlay"), row("proc", "missing"), row("clone3", "degraded"))
    plain, coloured = (doctor_text(found, width=80, colour=colour) for colour in (False, True))
    assert coloured.count("\x1b[") == 6
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain


def test_foreign_text_is_harmless() -> None:
    """What a host says can't drive the terminal."""
    text = doctor_text(host(row("cgroup", "missing", detail="a\x1b]0;b", remedy="c\x07")), width=80, colour=False)
    assert "\x1b" not in text
    assert "c\\x07" in text
