"""Where a run's control groups can be made on version 2, tried in order."""

from __future__ import annotations

import os
from collections.abc import Sequence

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import cgroup_v2, delegation, systemd
from pytest_crate.kernel.cgroup_v2 import ParentV2
from pytest_crate.kernel.cgroupfs import SYSTEMD_RUN, Refusal
from pytest_crate.kernel.hierarchies import Hierarchies


class Places:
    """The places, as a process finds them that will make crates."""

    def __init__(self, here: Hierarchies, *, run_name: str, entering: Sequence[int], proc_root: str = "/proc") -> None:
        """
        :param here: where the process is.
        :param run_name: of the run's directory.
        :param entering: other processes whose children will enter crates.
        """
        self._here = here
        self._run_name = run_name
        self._entering = entering
        self._proc_root = proc_root

    def configured(self, directory: str) -> ParentV2 | Refusal:
        """Make the run's directory where the user says; processes that are there are the user's affair."""
        return self._make(directory, how="configured cgroup", move=False)

    def best(self, own: str) -> ParentV2 | Refusal:
        """Make the run's directory in the first place that lets us.

        :param own: our own control group.
        :returns: a refusal if none does, with the reasons of all.
        """
        own = delegation.above_leaf(own)
        manager = systemd.find_manager()
        refusals: list[Refusal] = []
        delegated = _is_delegated(own, manager)
        if not delegated and isinstance(manager, systemd.Manager):
            scope = self._in_scope(manager)
            if isinstance(scope, ParentV2):
                return scope
            refusals.append(scope)
        made = self._make(own, how="delegated cgroup" if delegated else "own cgroup", move=True)
        if isinstance(made, ParentV2):
            return made
        if isinstance(manager, Refusal):
            refusals.append(manager)
        hint = next((refusal.hint for refusal in (*refusals, made) if refusal.hint), "")
        if manager is None and hint == SYSTEMD_RUN:
            hint = "run pytest as root, or give this user a cgroup and name it: crate_cgroup_parent in the ini file"
        return Refusal(reason="; ".join(refusal.reason for refusal in (made, *refusals)), hint=hint)

    def _make(self, directory: str, *, how: str, move: bool) -> ParentV2 | Refusal:
        return cgroup_v2.make_parent(
            directory,
            run_name=self._run_name,
            how=how,
            entered_from=list(self._origins().values()),
            move=move,
            proc_root=self._proc_root,
        )

    def _origins(self) -> dict[int, str]:
        """Return where the processes are that will enter crates, by pid; one that is not to be seen is left out."""
        found = {pid: Hierarchies.of_process(pid, proc_root=self._proc_root).directory() for pid in self._entering}
        return {pid: directory for pid, directory in found.items() if directory is not None}

    def _in_scope(self, manager: systemd.Manager) -> ParentV2 | Refusal:
        """Have systemd move us into a scope, and the processes that could not enter it otherwise, too."""
        unit = f"{self._run_name}.scope"
        around = systemd.slice_of(self._here.membership.get("", ""), manager)
        try:
            manager.start_scope(unit, os.getpid(), slice_=around, proc_root=self._proc_root)
            scope = Hierarchies.of_process(proc_root=self._proc_root).directory()
            if scope is None:
                return Refusal(reason="the scope that systemd made is not visible here")
            for pid, origin in self._origins().items():
                if not delegation.may_move(origin, scope):
                    manager.attach(unit, pid, proc_root=self._proc_root)
        except SandboxError as error:
            return Refusal(reason=str(error))
        return self._make(scope, how="systemd scope", move=True)


def _is_delegated(directory: str, manager: systemd.Manager | Refusal | None) -> bool:
    """Tell whether systemd leaves a control group to us."""
    unit, of_user = systemd.unit_of(directory)
    if not of_user:
        return bool(unit) and delegation.is_marked(unit)
    try:
        return isinstance(manager, systemd.Manager) and manager.delegates(os.path.basename(unit))
    except SandboxError:
        return False
