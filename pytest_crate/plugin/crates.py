"""Makes the crates of a pytest process: one engine, one image store, one view of the host."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import pytest

from pytest_crate.errors import CrateError, HostError, ImageError
from pytest_crate.plugin import options, private
from pytest_crate.plugin.shared_cache import SharedCache
from pytest_crate.plugin.specs import ImageFinder
from pytest_crate.sandbox import holders, host_view, mounts, rootfs
from pytest_crate.sandbox.sandbox import Enforcement, Engine, Sandbox
from pytest_crate.sandbox.steps import OFF, Clock
from pytest_crate.sandbox.temporary import TemporaryEntries
from pytest_crate.spec import CrateSpec

if TYPE_CHECKING:
    from pytest_crate.images import ImageStore


_Plans = dict[tuple[CrateSpec, str | None, tuple[str | int, ...], bool], tuple[mounts.Operation, ...]]


class Crates:
    """The crates of one pytest process; made at collection if a test wants one, closed at the end."""

    def __init__(self, config: pytest.Config, entries: TemporaryEntries, find_image: ImageFinder) -> None:
        self.config = config
        self.find_image = find_image
        self.policy = options.unsupported_policy(config)
        self._entries = entries
        self._engine = Engine(
            cgroup_parent=config.getini("crate_cgroup_parent") or None,
            id_map=config.getini("crate_id_map"),
            steps=config.getoption("crate_debug"),
        )
        self._store: ImageStore | None = None
        self._opened: set[str] = set()
        self._lent: dict[str, None] = {}
        self._interpreter: tuple[int, tuple[str, ...]] = (-1, ())
        self._libraries: Mapping[str, str] | None = None
        # The host as it was seen last, and what has been planned of it.
        self._seen: rootfs.HostView | None = None
        self._plans: _Plans = {}
        self._homes: tuple[str | None, tuple[str, ...]] = (None, ())
        self._cache: SharedCache | None = None
        self._entries.keep(holders.held)
        # Before the first fork: each child would make a numbered directory of its own.
        try:
            basetemp = private.basetemp(config)
        # The latter where a test before has nested more directories there than shutil.rmtree() has stack for.
        except (OSError, RecursionError) as error:
            raise pytest.UsageError(
                f"crates: pytest's temporary directory could not be made: {error}; name another with --basetemp"
            ) from None
        self._basetemp = None if basetemp is None else os.path.realpath(basetemp)
        # pytest's own directories are numbered and shared with its other runs; basetemp is shown as it is.
        self._own = () if self._basetemp is None else (self._basetemp, _numbered_directories(self._basetemp))

    @property
    def enforcement(self) -> Enforcement:
        """What enforces crates here."""
        return self._engine.enforcement

    def create(self, spec: CrateSpec, *, timed: bool = False, clock: Clock = OFF) -> Sandbox:
        """Make a crate of a spec.

        :param timed: for programs: kill it at the spec's timeout, counted from now on. A body's time is counted by
            its walk.
        :raises HostError: the host can't give what it needs; with the doctor's reason and remedy.
        :raises ImageError: its image can't be used.
        :raises SandboxError: the kernel refuses a step for a reason that the doctor does not know.
        """
        operations = self.plan(spec, programs=timed)
        clock.done("plan the root")
        if self.config.getoption("crate_debug"):
            self._show(spec, operations)
        clock.done("show what it is made of")
        sandbox = self._engine.create(spec, operations, timed=timed)
        clock.done("have it made")
        return sandbox

    def lend(self, spec: CrateSpec) -> None:
        """Note what crates of a spec may write to, before one does: no mount follows a link there out of it."""
        self._lent.update({os.path.realpath(mount.source): None for mount in spec.mounts if mount.writable})

    def prepare(self, spec: CrateSpec, *, programs: bool = False, count: int = 1) -> None:
        """Have crates begun that the next tests will probably ask for, while this one runs."""
        if self._seen is not None and (spec.image is None or spec.image in self._opened):
            # What stands in its way is the next test's affair, which will meet it again.
            with contextlib.suppress(CrateError, OSError):
                self._engine.prepare(spec, self._plan(spec, self._seen, programs=programs), count=count)

    def create_or_refuse(self, spec: CrateSpec, *, timed: bool = False, clock: Clock = OFF) -> Sandbox:
        """Make a crate, or carry out ``crate_unsupported`` if the host can't enforce it.

        :raises Uncrated: the policy is ``run``.
        :raises CrateError: as :meth:`create`.
        """
        try:
            return self.create(spec, timed=timed, clock=clock)
        except HostError as error:
            reason = f"crate not supported here: {error}"
        # Outside the handler: the reason is the whole story, with no "during handling of" before it.
        if self.policy == "skip":
            pytest.skip(reason)
        if self.policy == "run":
            raise Uncrated(reason)
        pytest.fail(reason, pytrace=False)

    def plan(self, spec: CrateSpec, *, programs: bool = False) -> tuple[mounts.Operation, ...]:
        """Return the mount operations of a spec's root; the same object where they are the same as before.

        :param programs: for programs that a test drives, and not for its body.
        """
        view = self._view()
        if view != self._seen:
            self._seen, self._plans = view, {}
        return self._plan(spec, view, programs=programs)

    def _plan(self, spec: CrateSpec, view: rootfs.HostView, *, programs: bool) -> tuple[mounts.Operation, ...]:
        if not rootfs.is_all_in_view(view):
            return self._plan_of(spec, view, programs=programs)
        image = None if spec.image is None else self._open_image(spec.image)
        key = (spec, image, rootfs.entries(view), programs)
        if key not in self._plans:
            self._plans[key] = self._plan_of(spec, view, programs=programs)
        return self._plans[key]

    def _plan_of(self, spec: CrateSpec, view: rootfs.HostView, *, programs: bool) -> tuple[mounts.Operation, ...]:
        if programs:
            # They may be hostile: what tests share is theirs to read only. pytest writes to its cache's files by name,
            # and would follow the symbolic link that one of them may have become; below basetemp are other tests'
            # files, and what a wider fixture has built there is run outside of crates.
            readable = tuple(path for path in view.writable if path == self._basetemp)
            view = dataclasses.replace(view, writable=(), readable=readable)
        if spec.image is None:
            return rootfs.plan_root(spec, view, rootfs=None)
        if self._libraries is None:
            self._libraries = host_view.load_interpreter_libraries()
        view = dataclasses.replace(view, libraries=self._libraries)
        return rootfs.plan_root(spec, view, rootfs=self._open_image(spec.image))

    def hidden(self, paths: Iterable[str]) -> Iterator[str]:
        """Yield those of the host's paths that crates on the host's root hide: a home's, a temporary directory's."""
        view: rootfs.HostView | None = None
        for path in paths:
            view = view or self._view()
            place = os.path.realpath(path)
            # Only what is bound leads to a server: in a directory that is shown copy-on-write nobody answers.
            kept = view.sockets if is_socket(place) else view.kept
            shown = (*view.project, *kept, *view.writable)
            if rootfs.is_covered(place, view) and not any(rootfs.is_at_or_below(place, each) for each in shown):
                yield path

    def _view(self) -> rootfs.HostView:
        kept = tuple(
            path for path in self._entries.kept() if not any(rootfs.is_at_or_below(path, place) for place in self._own)
        )
        return rootfs.HostView(
            # Read each time: a wider fixture may have mounted something.
            mounts=host_view.read_mounts(),
            rootless=self._engine.enforcement.rootless,
            overlay=self._engine.enforcement.overlay,
            homes=self._home_directories(),
            project=self._project(),
            kept=kept,
            sockets=self._entries.sockets(kept, holders.bound_sockets),
            writable=tuple(self._writable()),
            lent=tuple(self._lent),
        )

    def _writable(self) -> Iterator[str]:
        if self._basetemp is not None:
            yield self._basetemp
        cache = self._cache_directory()
        if cache is not None:
            yield cache

    def _cache_directory(self) -> str | None:
        # Made again if a test has removed it.
        cache = private.cache_directory(self.config)
        return None if cache is None else os.path.realpath(cache)

    def _home_directories(self) -> tuple[str, ...]:
        home = os.environ.get("HOME", "")
        if self._homes[0] != home:
            self._homes = (home, host_view.home_directories(os.environ))
        return self._homes[1]

    def _project(self) -> tuple[str, ...]:
        if self._interpreter[0] != len(sys.modules):
            project, here = str(self.config.rootpath), str(self.config.invocation_params.dir)
            self._interpreter = (len(sys.modules), host_view.project_paths(project, here, environ=os.environ))
        return self._interpreter[1]

    def _open_image(self, reference: str) -> str:
        from pytest_crate.images import default_store_root, store_at

        if self._store is None:
            root = self.config.getini("crate_image_store") or default_store_root(os.environ)
            path = os.path.join(str(self.config.rootpath), os.path.expanduser(root))
            ranged = self.config.getini("crate_id_map") == "range" and self.enforcement.rootless
            self._store = store_at(path, ranged=ranged)
        opened = self._store.open(self._image_source(reference), reference, progress=self._progress)
        self._opened.add(reference)
        return opened.rootfs

    def _image_source(self, reference: str) -> str:
        """Return an image's path.

        :raises ImageError: there is none, or a crate may have led it elsewhere.
        """
        source = os.path.abspath(self.find_image(reference))
        within = rootfs.lent_above(source, self._lent)
        if not within:
            return source
        found = os.path.realpath(source)
        if not rootfs.is_at_or_below(found, within):
            place = f"a symbolic link in {within}, where crates may write, leads to {found}"
            raise ImageError(reference, f"{place}; name that itself if it is meant")
        return found

    def _progress(self, line: str) -> None:
        reporter = self.config.pluginmanager.getplugin("terminalreporter")
        if reporter is None:
            return  # an xdist worker: its terminal is the controller's
        with private.capture_suspended(self.config):
            reporter.ensure_newline()
            reporter.write_line(line)
            reporter.flush()

    def _show(self, spec: CrateSpec, operations: Sequence[mounts.Operation]) -> None:
        for line in debug_lines(spec, operations):
            self._progress(line)

    def watch_fixture(self) -> None:
        """Note that a wider fixture is about to be set up: what it puts into /tmp is to be found in crates."""
        self._entries.ignore()

    def fixture_ready(self) -> None:
        """Note that it has been set up."""
        self._entries.keep(holders.held)

    def give_back(self) -> None:
        """Make pytest's own again what other users of an image's crates have left in its directories."""
        from pytest_crate.images import RangedImageStore
        from pytest_crate.kernel.mapped_process import give_back

        if isinstance(self._store, RangedImageStore):
            give_back(self._store.ids, self._writable())

    def clean_cache(self) -> None:
        """Have pytest meet nothing in its cache but values, whatever a body has put there."""
        if self._cache is None and (directory := self._cache_directory()) is not None:
            self._cache = SharedCache(directory)
        if self._cache is not None:
            self._cache.clean()

    def close(self) -> None:
        """End the engine, and every crate with it."""
        self._engine.close()


def is_socket(path: str) -> bool:
    """Return whether a unix socket is at a path."""
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except (OSError, ValueError):  # the latter for what can't be a path
        return False


def _numbered_directories(basetemp: str) -> str:
    parent = os.path.dirname(basetemp)
    return parent if os.path.basename(parent).startswith("pytest-of-") else basetemp


def debug_lines(spec: CrateSpec, operations: Sequence[mounts.Operation]) -> list[str]:
    """Return what ``--crate-debug`` shows of a crate: its spec, its mounts and the descriptors a body inherits."""
    lines = ["crate spec:"]
    lines += [f"  {name} = {value}" for name, value in spec.to_json().items() if value not in (None, [], {}, False)]
    lines.append("crate mounts:")
    lines += [f"  {operation.describe()}" for operation in operations]
    lines.append("directories that a body inherits open:")
    lines += _open_directories() or ["  none"]
    return lines


def _open_directories() -> list[str]:
    found = []
    for name in sorted(os.listdir("/proc/self/fd"), key=int):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the listing's own descriptor
            continue
        if os.path.isdir(target):
            found.append(f"  {name} {target}")
    return found


class Uncrated(Exception):
    """The host can't enforce a crate, and ``crate_unsupported = run`` wants the test run all the same."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)
