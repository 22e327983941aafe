"""Examines a host: the rows of its probe, and a whole crate made, limited, used and removed."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Mapping

from pytest_crate.errors import HostError, SandboxError
from pytest_crate.kernel import calls
from pytest_crate.kernel.cgroup import CgroupOffer, NoCgroups, Refusal
from pytest_crate.kernel.host import Host, Row, probe_host
from pytest_crate.sandbox import host_view, rootfs
from pytest_crate.sandbox.crate_sandbox import CrateSandbox
from pytest_crate.sandbox.program import CompletedRun
from pytest_crate.sandbox.sandbox import Engine
from pytest_crate.spec import CPU_PERIOD_USEC, UNLIMITED, CrateSpec, Layer, build_spec
from pytest_crate.usage import Usage

_WHOLE = "a whole crate"
_ENTERING = "entering"
_HOSTNAME = "crate-doctor"
_LIMITS: Mapping[str, str | float] = {"memory": "256m", "cpus": 0.2, "pids": 32}
# More CPU time than two periods allow, so that the limit has to hold it back.
_SCRIPT = """
import socket, time
while time.process_time() < 0.06: pass
print(socket.gethostname(), end="")
"""
# For a slow machine, on which the limited program takes a while to start; elsewhere all takes less than a second.
_PATIENCE_SEC = 20.0
# What a summary can't do without, by the field of a usage.
_NUMBERS: Mapping[str, str] = {
    "cpu_usage_usec": "CPU time",
    "memory_peak_bytes": "memory peak",
    "memory_oom_kills": "OOM kills",
    "pids_peak": "peak of tasks",
}


def examine(*, cgroup_parent: str | None = None) -> Host:
    """Find out what this host offers to crates by doing it; any user can.

    :param cgroup_parent: the control group to make the crates' below; None for our own.
    :raises HostError: there is no such control group.
    """
    with contextlib.closing(Engine(cgroup_parent=cgroup_parent)) as engine:
        try:
            offer = engine.enforcement.cgroups
        except SandboxError as error:
            offer = CgroupOffer.of(NoCgroups(Refusal(reason="not tried: the launcher did not start")))
            whole: tuple[Row, ...] = (Row(feature=_WHOLE, status="missing", detail=str(error)),)
        else:
            whole = _try_a_crate(engine)
    found = probe_host(offer)
    return dataclasses.replace(found, rows=(*found.rows, entering_row(), *whole))


def _try_a_crate(engine: Engine) -> tuple[Row, ...]:
    enforcement = engine.enforcement
    began = time.monotonic()
    try:
        spec = _spec(enforcement.cgroups.limits)
        view = host_view.program_view(
            "/", rootless=enforcement.rootless, overlay=enforcement.overlay, environ=os.environ
        )
        sandbox = engine.create(spec, rootfs.plan_root(spec, view, rootfs=None), timed=True)
        crate = CrateSandbox(sandbox, spec, name="doctor")
        done = crate.run([sys.executable, "-I", "-S", "-c", _SCRIPT], cwd="/")
        result = crate.close()
    except HostError as error:
        return (Row(feature=_WHOLE, status="missing", detail=error.message, remedy=error.hint),)
    except SandboxError as error:
        return (Row(feature=_WHOLE, status="missing", detail=str(error)),)
    # The launcher removes a crate without an answer; it has when it has ended.
    engine.close()
    took_msec = round((time.monotonic() - began) * 1e3)
    fault = fault_of(done, spec) or _left_behind(sandbox.entry.enter_files)
    if fault:
        return (Row(feature=_WHOLE, status="missing", detail=fault),)
    return (
        Row(feature=_WHOLE, status="ok", detail=f"made, limited, used and removed in {took_msec} ms"),
        usage_row(result.usage),
    )


def entering_row() -> Row:
    """Return the row that says how programs enter crates here."""
    if calls.works():
        return Row(feature=_ENTERING, status="ok", detail="by a sealed copy of a small program of the package's own")
    detail = (
        "the package was installed without its compiled program, or that can't be executed here: a fork of the "
        "interpreter enters, which is slower, and whose file root's programs can get hold of (docs/security.md)"
    )
    name = "pytest-crate-sandbox"
    remedy = f"sudo apt install gcc && pip install --force-reinstall --no-deps --no-binary {name} {name}"
    return Row(feature=_ENTERING, status="degraded", detail=detail, remedy=remedy)


def usage_row(usage: Usage) -> Row:
    """Return the row that says which numbers of a crate are known here."""
    unknown = [name for field, name in _NUMBERS.items() if getattr(usage, field) is None]
    if not unknown:
        return Row(feature="usage", status="ok", detail=", ".join(_NUMBERS.values()))
    detail = f"this host does not tell: {', '.join(unknown)}; reports show '-' there"
    return Row(feature="usage", status="degraded", detail=detail)


def _spec(limits: frozenset[str]) -> CrateSpec:
    """Return a spec that asks for what can be enforced; the lack of the rest has a row of its own."""
    wanted = {key: value for key, value in _LIMITS.items() if key in limits}
    values = {"pids": UNLIMITED, "timeout": _PATIENCE_SEC, "hostname": _HOSTNAME} | wanted
    return build_spec([Layer(origin="the doctor", values=values)])


def fault_of(done: CompletedRun, spec: CrateSpec) -> str:
    """Return what shows that a crate was not what its spec says, by the doctor's program in it; empty if nothing."""
    if done.exceeded:
        return f"a program in it went over a limit: {', '.join(done.exceeded)}"
    if done.returncode != 0:
        last = str(done.stderr).strip().splitlines()[-1:]
        return f"a program in it ended with {done.returncode}: {''.join(last)}"
    if done.stdout != _HOSTNAME:
        return f"a program in it saw the host name {done.stdout!r} instead of {_HOSTNAME!r}"
    used, wall = done.usage.cpu_usage_usec, done.usage.wall_usec
    if spec.cpu_quota_usec is not None and used is not None and wall is not None:
        # A quota is for each period begun; on a busy host the program may not have got even that. A period's quota is
        # overrun by up to a tick and a slice, which later periods pay back (Documentation/scheduler/sched-bwc.rst):
        # more than was allowed shows a missing limit only where the kernel has held nothing back.
        allowed = spec.cpu_quota_usec * (wall // CPU_PERIOD_USEC + 2)
        if used > allowed and not done.usage.cpu_nr_throttled:
            return f"the CPU limit did not hold: {used} us of CPU time in {wall} us, {allowed} us were allowed"
    return ""


def _left_behind(enter_files: tuple[str, ...]) -> str:
    left = [path for path in enter_files if os.path.exists(path)]
    return f"it could not be removed: {os.path.dirname(left[0])} is still there" if left else ""
