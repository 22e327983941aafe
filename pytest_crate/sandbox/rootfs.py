"""A spec becomes the ordered list of mount operations that build its root."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from pytest_crate.kernel.hierarchies import lines_of
from pytest_crate.sandbox.mounts import (
    Bind,
    Capture,
    Copy,
    Devices,
    EmptyRoot,
    Names,
    Operation,
    Overlay,
    Private,
    Proc,
    Reveal,
    Symlink,
    Sys,
)
from pytest_crate.sandbox.temporary import SHARED_MEMORY, temporary_directories
from pytest_crate.spec import CrateSpec

# File systems without files of the user's; the crate gets its own of those that it needs.
_KERNEL_FILE_SYSTEMS = frozenset(
    "autofs binfmt_misc bpf cgroup cgroup2 configfs debugfs devpts devtmpfs efivarfs fusectl hugetlbfs "
    "mqueue nsfs proc pstore ramfs rpc_pipefs securityfs selinuxfs sysfs tracefs".split()
)
_OWN = ("/proc", "/sys", "/dev")
_Place = Overlay | Bind | Private | Reveal | Symlink


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MountPoint:
    """One line of /proc/self/mountinfo (proc(5)): where, and of which type."""

    path: str
    kind: str


@functools.lru_cache(maxsize=1)
def parse_mountinfo(text: str) -> tuple[MountPoint, ...]:
    """Return the mount points that can be seen: not those under another mount."""
    found: dict[str, _Mount] = {}
    for line in lines_of(text):
        fields = line.split(" ")
        # Spaces, tabs, newlines, backslashes and '#' are written as octal numbers.
        path = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        point = MountPoint(path=path, kind=fields[fields.index("-") + 1])
        found[fields[0]] = _Mount(point=point, parent=fields[1])
    for mount in found.values():
        if mount.parent in found and found[mount.parent] is not mount:
            found[mount.parent].children.append(mount)
    roots = [mount for mount in found.values() if mount.point.path == "/" and mount.parent not in found]
    return tuple(_visible(roots[-1])) if roots else ()


@dataclasses.dataclass(kw_only=True)
class _Mount:
    point: MountPoint
    parent: str
    children: list[_Mount] = dataclasses.field(default_factory=list)


def _visible(mount: _Mount) -> Iterator[MountPoint]:
    # A mount over a mount is its child, at the same path. Lines are in no useful order: the root may come last.
    for child in mount.children:
        if child.point.path == mount.point.path:
            yield from _visible(child)
            return
    yield mount.point
    for child in mount.children:
        if not any(is_below(child.point.path, other.point.path) for other in mount.children):
            yield from _visible(child)


def is_below(path: str, directory: str) -> bool:
    """Return whether an absolute path is strictly below a directory, by name."""
    return path != directory and path.startswith(directory.rstrip("/") + "/")


def is_at_or_below(path: str, directory: str) -> bool:
    """Return whether an absolute path is a directory, or below it, by name."""
    return path == directory or is_below(path, directory)


def outermost(paths: Iterable[str]) -> list[str]:
    """Return the paths that aren't below another of them, sorted, each once."""
    kept: list[str] = []
    for path in sorted(set(paths), key=lambda path: path.split("/")):
        if not kept or not is_at_or_below(path, kept[-1]):
            kept.append(path)
    return kept


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HostView:
    """What planning a root needs to know of the host; every path is absolute and resolved.

    :ivar mounts: its mount points.
    :ivar rootless: the crate is built in a user namespace.
    :ivar overlay: the kernel can do overlays; without them an image is copied, and the host's root can't be written to.
    :ivar homes: home directories that are to be private.
    :ivar project: directories of the project and of the interpreter: visible at their own paths.
    :ivar kept: entries that this run put into a temporary directory: visible, copy-on-write.
    :ivar sockets: unix sockets among or below the entries kept: bound, so that they can be connected to.
    :ivar writable: directories shared with the host, such as pytest's ``basetemp``.
    :ivar readable: directories shared with the host, read-only.
    :ivar lent: directories that some crate of this run may write to, by a mount.
    :ivar libraries: directories of the interpreter's shared libraries, by the path where the dynamic linker
        looks for them; shown in an image that has nothing at that path.
    """

    mounts: tuple[MountPoint, ...]
    rootless: bool
    overlay: bool = True
    homes: tuple[str, ...] = ()
    project: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    sockets: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()
    readable: tuple[str, ...] = ()
    lent: tuple[str, ...] = ()
    libraries: Mapping[str, str] = dataclasses.field(default_factory=dict)


def plan_root(spec: CrateSpec, view: HostView, *, rootfs: str | None) -> tuple[Operation, ...]:
    """Return the operations that build the root of a spec, in order.

    :param rootfs: directory of the spec's image; None for the host's root.
    """
    operations = _host_root(spec, view) if rootfs is None else _image_root(spec, view, rootfs)
    if not view.overlay:
        operations = map(_without_overlay, operations)
    return (*operations, *_mounts(spec, view))


def _without_overlay(operation: Operation) -> Operation:
    """Return what there is in the place of an overlay: an image is copied, what is the host's is shown read-only.

    A copy of the host's root would take its size in memory, and a test that can't write is no less isolated.
    """
    if not isinstance(operation, Overlay):
        return operation
    if operation.target == "/":
        return Copy(target="/", source=operation.lower, within=operation.within)
    return Bind(
        target=operation.target,
        source=operation.lower,
        recursive=True,
        if_present=operation.if_present,
        within=operation.within,
    )


def is_all_in_view(view: HostView) -> bool:
    """Tell whether plans are made of nothing but spec, view and :func:`entries`, and hold for as long as these do.

    Otherwise it depends on what is in directories now.
    """
    return not view.rootless and view.overlay


def entries(view: HostView) -> tuple[str | int, ...]:
    """Return what each entry kept is: where a symlink leads, the type of another file (stat(2)), 0 if it is gone."""
    return tuple(_link(path) or _type(path) for path in view.kept)


def _type(path: str) -> int:
    try:
        return stat.S_IFMT(os.lstat(path).st_mode)
    except FileNotFoundError:
        return 0


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return ""  # readlink(2) of a symlink is never empty
    except OSError:
        return None


def _kernel_parts(spec: CrateSpec, view: HostView) -> Iterator[Operation]:
    yield Proc()
    if view.rootless and spec.network == "host":
        # A fresh sysfs can be mounted only by the owner of the network namespace that it shows.
        yield Bind(target="/sys", source="/sys", recursive=True)
    else:
        yield Sys()
    yield Devices()


def _mounts(spec: CrateSpec, view: HostView) -> Iterator[Operation]:
    for mount in sorted(spec.mounts, key=lambda mount: mount.target.count("/")):
        yield Bind(
            target=mount.target,
            source=mount.source,
            writable=mount.writable,
            recursive=True,
            as_named=True,
            within=lent_above(mount.source, view.lent),
        )


def lent_above(path: str, lent: Collection[str]) -> str:
    """Return the directory lent to crates that a path leads through: from there on, they may have put links into it.

    :param lent: such directories, resolved.
    :returns: the outermost; empty if there is none.
    """
    above = [os.path.realpath(path[:at]) for at, letter in enumerate(path) if letter == "/" and at] if lent else []
    return next((place for place in above if place in lent), "")


def is_covered(path: str, view: HostView) -> bool:
    """Return whether a path of the host's lies where a crate on the host's root has a private directory."""
    return any(is_below(path, cover) for cover in (*_covers(view), "/dev/shm"))


def _covers(view: HostView) -> dict[str, int]:
    return {**temporary_directories(), **dict.fromkeys(view.homes, 0o755)}


# -- the host's root -----------------------------------------------------------------------------


def _host_root(spec: CrateSpec, view: HostView) -> Iterator[Operation]:
    covers = _covers(view)
    kept, links = _kept(view)
    revealed = _to_show(
        (path for path in (*view.project, *kept) if _any_holds(covers, path) and path not in covers),
        (*covers, *view.writable, *view.readable),
    )
    apart = view.rootless or not view.overlay
    yield from _rootless_overlays(view) if apart else _root_overlays(view, list(covers), revealed)
    # Before anything of the host's is mounted where a symlink of the tree may lead.
    yield Names(hostname=spec.hostname)
    yield from (Capture(target=path, within=lent_above(path, view.lent)) for path in revealed)
    yield from _kernel_parts(spec, view)
    # Outer places first, whatever they are: a project below basetemp is shown on top of it.
    # /dev has a private directory for shared memory already.
    places: list[_Place] = [Private(target=path, mode=mode) for path, mode in covers.items() if path != SHARED_MEMORY]
    places += [Reveal(target=path) for path in revealed]
    places += [*links, *_shared(view)]
    yield from sorted(places, key=_depth)


def _to_show(paths: Iterable[str], covers: Sequence[str]) -> list[str]:
    """Return the paths that are not shown with another of them: none that holds it, or a cover on the way to it."""
    found = sorted(set(paths), key=lambda path: path.split("/"))
    return [path for path in found if not any(_is_shown_with(path, outer, covers) for outer in found)]


def _is_shown_with(path: str, outer: str, covers: Sequence[str]) -> bool:
    return is_below(path, outer) and not any(is_below(cover, outer) and is_below(path, cover) for cover in covers)


def _kept(view: HostView) -> tuple[list[str], list[Symlink]]:
    """Part what this run has put into temporary directories: things to show, and symlinks to make again."""
    kept: list[str] = []
    symlinks: list[Symlink] = []
    for path in outermost(view.kept):
        leads_to = _link(path)
        if leads_to is None:
            kept.append(path)
        elif leads_to:
            symlinks.append(Symlink(target=path, to=leads_to))
    return kept, symlinks


def _shared(view: HostView) -> Iterator[Bind]:
    """What is the host's own even in a crate: bound, not copied."""
    for path in view.writable:
        yield Bind(target=path, source=path, writable=True, recursive=True, within=lent_above(path, view.lent))
    for path in view.readable:
        yield Bind(target=path, source=path, recursive=True, within=lent_above(path, view.lent))
    for path in view.sockets:
        yield Bind(target=path, source=path, if_present=True, within=lent_above(path, view.lent))


def _depth(place: _Place) -> int:
    return place.target.rstrip("/").count("/")


def _root_overlays(view: HostView, covers: Sequence[str], revealed: Sequence[str]) -> Iterator[Operation]:
    yield Overlay(target="/", lower="/")
    for mount in view.mounts:
        if mount.path == "/" or mount.kind in _KERNEL_FILE_SYSTEMS:
            continue
        if _any_holds(_OWN, mount.path) and not _any_holds([SHARED_MEMORY], mount.path):
            continue
        # Under a cover only what is shown again matters: a mount that holds, or is below, such a path.
        if _any_holds(covers, mount.path) and not any(
            is_at_or_below(path, mount.path) or is_below(mount.path, path) for path in revealed
        ):
            continue
        yield from _copy_on_write(
            mount.path, or_read_only=not any(is_at_or_below(path, mount.path) for path in view.project)
        )


def _any_holds(directories: Iterable[str], path: str) -> bool:
    return any(is_at_or_below(path, directory) for directory in directories)


def _copy_on_write(
    path: str, *, within: str = "", if_present: bool = False, or_read_only: bool = False
) -> Iterator[Overlay | Bind]:
    if os.path.isdir(path):
        yield Overlay(target=path, lower=path, within=within, if_present=if_present, or_read_only=or_read_only)
    elif os.path.isfile(path):
        # A file bound on a file, as containers have /etc/hosts: an overlay is made of directories. Nothing
        # else is shown: a socket, as containers have an engine's, would be a way to the host.
        yield Bind(target=path, source=path, within=within, if_present=if_present)


def _rootless_overlays(view: HostView) -> Iterator[Operation]:
    """One overlay for each directory without mounts below it: in a user namespace the kernel
    refuses a lower directory with locked mounts below (EINVAL, "failed to clone lowerpath")."""
    yield EmptyRoot()
    points = [mount.path for mount in view.mounts if mount.kind not in _KERNEL_FILE_SYSTEMS]
    temporary = temporary_directories()
    skip = (*_OWN, *temporary)
    yield from _split("/", points, skip)
    # What a temporary directory holds of this run is shown from an overlay of its own.
    kept, _ = _kept(view)
    for path in outermost(path for path in (*view.project, *kept) if _any_holds(temporary, path)):
        if any(is_below(point, path) for point in points):
            yield from _split(path, points, ())
        else:
            yield from _copy_on_write(path, within=lent_above(path, view.lent), if_present=True)


def _split(directory: str, points: Sequence[str], skip: Sequence[str]) -> Iterator[Operation]:
    try:
        with os.scandir(directory) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except PermissionError:
        return
    for entry in entries:
        if entry.path in skip:
            continue
        if entry.is_symlink():
            yield Symlink(target=entry.path, to=os.readlink(entry.path))
        elif not entry.is_dir(follow_symlinks=False):
            if entry.is_file(follow_symlinks=False):
                yield Bind(target=entry.path, source=entry.path)
        elif any(is_below(point, entry.path) for point in points):
            yield from _split(entry.path, points, skip)
        elif os.access(entry.path, os.R_OK | os.X_OK):
            yield Overlay(target=entry.path, lower=entry.path)


# -- an image's root -----------------------------------------------------------------------------


def _image_root(spec: CrateSpec, view: HostView, rootfs: str) -> Iterator[Operation]:
    yield Overlay(target="/", lower=rootfs, within=lent_above(rootfs, view.lent))
    yield Names(hostname=spec.hostname)
    yield from _kernel_parts(spec, view)
    places: list[_Place] = [
        Bind(target=path, source=path, recursive=True) for path in _to_show(view.project, view.homes) if path != "/"
    ]
    kept, links = _kept(view)
    for path in kept:
        places += _copy_on_write(path, within=lent_above(path, view.lent), if_present=True)
    places += [*links, *_shared(view)]
    # A home within the project is as private as one elsewhere.
    places += [Private(target=home) for home in view.homes if any(is_below(home, path) for path in view.project)]
    yield from sorted(places, key=_depth)
    yield from (Bind(target=path, source=source, if_absent=True) for path, source in view.libraries.items())
