"""Mounts as data: the operations that build a crate's root, each able to print and to perform itself."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import libc
from pytest_crate.sandbox.copying import copy_tree
from pytest_crate.sandbox.workshop import HOST, PROC, ROOT, Workshop

_SAFE = libc.MS_NOSUID | libc.MS_NODEV
_SEALED = libc.MOUNT_ATTR_RDONLY | libc.MOUNT_ATTR_NOSUID | libc.MOUNT_ATTR_NOEXEC
_MAX_TEXT_BYTES = 4 << 20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One step of building a root."""

    kind: ClassVar[str]

    def describe(self) -> str:
        """Return the operation in one line, as ``--crate-debug`` shows it."""
        words = [self.kind.ljust(8)]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "target":
                words.append(str(value))
            elif value is True:
                words.append(field.name)
            elif value not in (False, None, ""):
                words.append(f"{field.name}={oct(value) if field.name == 'mode' else value}")
        return " ".join(words)

    def sources(self) -> tuple[str, ...]:
        """Return the host's paths that it takes as they are now, and would show even if others took their places."""
        return ()

    def perform(self, shop: Workshop) -> None:
        """Do it.

        :raises SandboxError: the kernel refuses.
        """
        raise NotImplementedError


def _option(path: str) -> str:
    # Overlay's option parser splits on ',' and ':' (fs/overlayfs/params.c); a backslash escapes.
    return path.replace("\\", "\\\\").replace(",", "\\,").replace(":", "\\:")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Overlay(Operation):
    """A host directory seen copy-on-write: reads go through, writes stay in the private layer.

    :ivar if_present: only if the directory is still there.
    :ivar within: the directory that it has to be in, whatever links are in that one by now; empty for none.
    :ivar or_read_only: where the kernel can't do it, the directory itself is shown, read-only.
    """

    kind: ClassVar[str] = "overlay"
    target: str
    lower: str
    if_present: bool = False
    within: str = ""
    or_read_only: bool = False

    def sources(self) -> tuple[str, ...]:
        return (self.lower,)

    def perform(self, shop: Workshop) -> None:
        step = f"show {self.lower} copy-on-write at {self.target}"
        if self.if_present and not _is_present(shop, step, self.lower, directory=True):
            return
        with _found(shop, step, self.lower, within=self.within) as lower:
            self._lay(shop, step, lower)

    def _lay(self, shop: Workshop, step: str, lower: str) -> None:
        layer = shop.new_private(0o700)
        upper, work = f"{layer}/upper", f"{layer}/work"
        with libc.os_step(step, "stat", self.lower):
            status = os.stat(lower)
        with libc.os_step(step, "mkdir", upper):
            os.mkdir(upper)
            os.mkdir(work)
        # The overlay's own root shows the upper directory's owner and mode.
        if not shop.one_user:
            os.chown(upper, status.st_uid, status.st_gid)
        os.chmod(upper, stat.S_IMODE(status.st_mode))
        # In a user namespace overlayfs keeps its marks in user.* attributes (kernel 5.11). With
        # redirect_dir a directory of the host can be renamed; a user namespace doesn't have it.
        extra = "userxattr" if shop.rootless else "redirect_dir=on"
        data = f"lowerdir={_option(lower)},upperdir={upper},workdir={work},{extra}"
        if self.target == "/":
            libc.mount(step, "crate", ROOT, "overlay", _SAFE, data)
            return
        with shop.target(self.target, directory=True) as place:
            try:
                libc.mount(step, "crate", place, "overlay", _SAFE, data)
                return
            except SandboxError as error:
                # Not every file system can be an overlay's lower one (FAT, an overlay on an overlay, a dead NFS).
                if error.errno not in (errno.EINVAL, errno.EACCES, errno.ELOOP, errno.ESTALE) or not self.or_read_only:
                    raise
        Bind(target=self.target, source=self.lower, recursive=True, within=self.within).perform(shop)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Copy(Operation):
    """An image's directory as a copy in the private layer, where the kernel can do no overlay.

    :ivar within: as of an overlay.
    """

    kind: ClassVar[str] = "copy"
    source: str
    target: str = "/"
    within: str = ""

    def sources(self) -> tuple[str, ...]:
        return (self.source,)

    def perform(self, shop: Workshop) -> None:
        step = f"copy {self.source} to {self.target}"
        layer = shop.new_private(0o700)
        with _found(shop, step, self.source, within=self.within) as found, libc.os_step(step, "open", self.source):
            source = os.open(found, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            copy = os.open(layer, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with libc.os_step(step, "copy"):
                copy_tree(source, copy, owners=not shop.one_user)
        finally:
            os.close(source)
            os.close(copy)
        shop.bind(step, layer, ROOT)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EmptyRoot(Operation):
    """A root that starts as an empty private directory, to be filled top-level entry by entry."""

    kind: ClassVar[str] = "empty"
    target: str = "/"

    def perform(self, shop: Workshop) -> None:
        shop.bind("make an empty root", shop.new_private(0o755), ROOT)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Symlink(Operation):
    """A symbolic link, such as ``/bin -> usr/bin``."""

    kind: ClassVar[str] = "symlink"
    target: str
    to: str

    def perform(self, shop: Workshop) -> None:
        parent = shop.directory(os.path.dirname(self.target))
        try:
            # What is there already, in an image, stays.
            with libc.os_step("make a symlink", "symlinkat", self.target), contextlib.suppress(FileExistsError):
                os.symlink(self.to, os.path.basename(self.target), dir_fd=parent)
        finally:
            os.close(parent)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bind(Operation):
    """A host path itself, not a copy: a write, where allowed, reaches the host.

    :ivar writable: it may be written to.
    :ivar recursive: with what is mounted below it.
    :ivar if_absent: only where the root has nothing at that path.
    :ivar if_present: only if the source is still there.
    :ivar as_named: the source is not resolved: symbolic links lead from it to where they lead on the host.
    :ivar within: the directory that it has to be in, whatever links are in that one by now; empty for none.
    """

    kind: ClassVar[str] = "bind"
    target: str
    source: str
    writable: bool = False
    recursive: bool = False
    if_absent: bool = False
    if_present: bool = False
    as_named: bool = False
    within: str = ""

    def sources(self) -> tuple[str, ...]:
        return (self.source,)

    def perform(self, shop: Workshop) -> None:
        step = f"show {self.source} at {self.target}"
        if self.if_absent and _exists(shop, self.target):
            return
        if self.if_present and not _is_present(shop, step, self.source):
            return
        with _found(shop, step, self.source, as_named=self.as_named, within=self.within) as source:
            self._show(shop, step, source)

    def _show(self, shop: Workshop, step: str, source: str) -> None:
        with libc.os_step(step, "stat", self.source):
            status = os.stat(source)
        directory = stat.S_ISDIR(status.st_mode)
        if self.writable and directory:
            shop.shared.add(status.st_dev)
        _verify_kind(shop, step, self.target, directory=directory)
        with shop.target(self.target, directory=directory) as place:
            shop.bind(step, source, place, recursive=self.recursive)
        # Not even where a write is welcome shall a set-user-id program, or a device, come in by a mount.
        attributes = libc.MOUNT_ATTR_NOSUID | libc.MOUNT_ATTR_NODEV
        if not self.writable:
            attributes |= libc.MOUNT_ATTR_RDONLY
        with shop.target(self.target, directory=directory) as place:
            shop.restrict(step, place, attributes, recursive=self.recursive)


@contextlib.contextmanager
def _found(shop: Workshop, step: str, path: str, *, as_named: bool = False, within: str = "") -> Iterator[str]:
    """Give a path of a source: of what is found now, so that nobody can exchange it any more, where that matters.

    :param as_named: it may lead through links, followed as on the host.
    :param within: the directory that it has to be in, links followed; empty for none.
    """
    if not as_named and not within:
        yield shop.source(path)
        return
    with libc.os_step(step, "open", HOST):
        host = os.open(HOST, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        place = libc.open_in_root(step, host, path, os.O_PATH)
    finally:
        os.close(host)
    try:
        held = f"{HOST}/proc/self/fd/{place}"
        _verify_within(step, place, within, tree=HOST)
        yield held
    finally:
        os.close(place)


def _verify_within(step: str, place: int, within: str, *, tree: str) -> None:
    """Refuse an open path that crates have led out of a directory; nothing is refused if that is empty.

    :param tree: where the tree of paths begins that the directory's is of.
    """
    if not within:
        return
    with libc.os_step(step, "readlink", within):
        found = os.readlink(f"{HOST}/proc/self/fd/{place}").removeprefix(tree)
    if not f"{found}/".startswith(f"{within}/"):
        detail = (
            f"a symbolic link in {within}, where crates may write, leads to {found}; "
            f"mount {found} itself if that is meant"
        )
        raise SandboxError(step, detail=detail)


def _is_present(shop: Workshop, step: str, path: str, *, directory: bool = False) -> bool:
    """Return whether a source is still there, and the user's to see.

    :raises SandboxError: that can't be told; a root is not to lack what is there.
    """
    with libc.os_step(step, "stat", path):
        try:
            status = os.stat(shop.source(path))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                raise
            return False
    return not directory or stat.S_ISDIR(status.st_mode)


def _verify_kind(shop: Workshop, step: str, path: str, *, directory: bool) -> None:
    """Refuse to hide a directory under a file, or a file under a directory: what is asked for is a mistake."""
    try:
        place = libc.open_in_root(step, shop.root, path, os.O_PATH | os.O_NOFOLLOW)
    except SandboxError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return
        raise
    try:
        mode = os.fstat(place).st_mode
    finally:
        os.close(place)
    # A symlink is replaced by what is needed.
    if stat.S_ISDIR(mode) != directory and not stat.S_ISLNK(mode):
        ours, there = ("directory", "file") if directory else ("file", "directory")
        raise SandboxError(step, detail=f"a {ours} can't be shown on a {there}")


def _exists(shop: Workshop, path: str) -> bool:
    try:
        os.close(libc.open_in_root("look for a path", shop.root, path, os.O_PATH))
    except SandboxError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return False
        raise
    return True


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Capture(Operation):
    """Hold a path of the root aside, with what is mounted below it, before it is covered.

    :ivar within: as of an overlay.
    """

    kind: ClassVar[str] = "capture"
    target: str
    within: str = ""

    def sources(self) -> tuple[str, ...]:
        return (self.target,)

    def perform(self, shop: Workshop) -> None:
        step = f"hold {self.target} aside"
        try:
            place = libc.open_in_root(step, shop.root, self.target, os.O_PATH)
        except SandboxError as error:
            if error.errno == errno.ENOENT:
                return  # gone since it was planned: there is nothing to show
            raise
        try:
            _verify_within(step, place, self.within, tree=ROOT)
            shop.captured[self.target] = shop.hold(libc.open_tree(step, place, "", recursive=True))
        finally:
            os.close(place)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reveal(Operation):
    """Show again, at its own path, what was captured there."""

    kind: ClassVar[str] = "reveal"
    target: str

    def perform(self, shop: Workshop) -> None:
        tree = shop.captured.get(self.target)
        if tree is None:
            return
        step = f"show {self.target} again"
        directory = stat.S_ISDIR(os.fstat(tree).st_mode)
        with shop.target(self.target, directory=directory) as place:
            descriptor = int(place.rpartition("/")[2])
            libc.move_mount(step, tree, descriptor, self.target)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Private(Operation):
    """An empty directory of the crate's own, over whatever is there."""

    kind: ClassVar[str] = "private"
    target: str
    mode: int = 0o755

    def perform(self, shop: Workshop) -> None:
        with shop.target(self.target, directory=True) as place:
            shop.bind(f"give {self.target} a private directory", shop.new_private(self.mode), place)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Devices(Operation):
    """A minimal ``/dev``: the harmless nodes, a terminal directory of its own, shared memory, message queues."""

    kind: ClassVar[str] = "devices"
    target: str = "/dev"

    NODES: ClassVar[tuple[str, ...]] = ("null", "zero", "full", "random", "urandom", "tty")
    LINKS: ClassVar[Mapping[str, str]] = {
        "fd": "/proc/self/fd",
        "stdin": "/proc/self/fd/0",
        "stdout": "/proc/self/fd/1",
        "stderr": "/proc/self/fd/2",
        "ptmx": "pts/ptmx",
    }

    def perform(self, shop: Workshop) -> None:
        step = "make /dev"
        directory = shop.new_private(0o755)
        # Nodes are bound from the host's own, held by path in the host's tree: never looked up in an
        # image, whose /dev/null may be a symlink (CVE-2025-31133).
        for name in self.NODES:
            with libc.os_step(step, "open", f"/dev/{name}"):
                os.close(os.open(f"{directory}/{name}", os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
            shop.bind(step, f"{HOST}/dev/{name}", f"{directory}/{name}")
            # The node is the host's own: read-only keeps its mode and owner; the device can be written to all the same.
            shop.restrict(step, f"{directory}/{name}", _SEALED)
        for name, to in self.LINKS.items():
            with libc.os_step(step, "symlink", f"/dev/{name}"):
                os.symlink(to, f"{directory}/{name}")
        for name, mode in (("pts", 0o755), ("shm", 0o1777), ("mqueue", 0o1777)):
            with libc.os_step(step, "mkdir", f"/dev/{name}"):
                os.mkdir(f"{directory}/{name}")
                os.chmod(f"{directory}/{name}", mode)
        flags = libc.MS_NOSUID | libc.MS_NOEXEC
        libc.mount(step, "devpts", f"{directory}/pts", "devpts", flags, "newinstance,ptmxmode=0666,mode=0620")
        libc.mount(step, "mqueue", f"{directory}/mqueue", "mqueue", flags | libc.MS_NODEV)
        with shop.target(self.target, directory=True) as place:
            shop.bind(step, directory, place, recursive=True)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Proc(Operation):
    """A fresh ``/proc`` of the crate's PID namespace, its dangerous parts masked or read-only."""

    kind: ClassVar[str] = "proc"
    target: str = "/proc"

    # What Docker and runc mask and protect (moby, oci/defaults.go): it shows or changes the whole host. And
    # the kernel's messages, which who reads takes away: a test on the host would, by a link in the place of a file.
    MASKED: ClassVar[tuple[str, ...]] = (
        "acpi",
        "asound",
        "interrupts",
        "kcore",
        "keys",
        "kmsg",
        "latency_stats",
        "sched_debug",
        "scsi",
        "timer_list",
        "timer_stats",
    )
    READ_ONLY: ClassVar[tuple[str, ...]] = ("bus", "dynamic_debug", "fs", "irq", "sys", "sysrq-trigger")

    def perform(self, shop: Workshop) -> None:
        with shop.target(self.target, directory=True) as place:
            shop.bind("show /proc", PROC, place)
        empty = shop.new_private(0o555)
        for name in self.MASKED:
            _mask(shop, f"{self.target}/{name}", empty)
        for name in self.READ_ONLY:
            _protect(shop, f"{self.target}/{name}")


def _mask(shop: Workshop, path: str, empty: str) -> None:
    """Hide a path, if it is there, under /dev/null or an empty directory."""
    step = f"mask {path}"
    try:
        place = libc.open_in_root(step, shop.root, path, os.O_PATH)
    except SandboxError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return
        raise
    try:
        target = f"{HOST}/proc/self/fd/{place}"
        directory = stat.S_ISDIR(os.fstat(place).st_mode)
        if directory:
            shop.bind(step, empty, target)
        else:
            shop.bind(step, f"{HOST}/dev/null", target)
        with shop.target(path, directory=directory) as mounted:
            shop.restrict(step, mounted, _SEALED)
    finally:
        os.close(place)


def _protect(shop: Workshop, path: str) -> None:
    """Make a path, if it is there, read-only."""
    step = f"make {path} read-only"
    try:
        place = libc.open_in_root(step, shop.root, path, os.O_PATH)
    except SandboxError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return
        raise
    try:
        directory = stat.S_ISDIR(os.fstat(place).st_mode)
        target = f"{HOST}/proc/self/fd/{place}"
        shop.bind(step, target, target, recursive=True)
        with shop.target(path, directory=directory) as mounted:
            shop.restrict(step, mounted, libc.MOUNT_ATTR_RDONLY, recursive=True)
    finally:
        os.close(place)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sys(Operation):
    """A read-only ``/sys`` that shows the crate's own network; without the cgroup file systems."""

    kind: ClassVar[str] = "sys"
    target: str = "/sys"

    # moby, oci/defaults.go. The energy that the machine takes tells what others on it compute (CVE-2020-8694).
    MASKED: ClassVar[tuple[str, ...]] = ("firmware", "devices/virtual/powercap")

    def perform(self, shop: Workshop) -> None:
        step = "mount /sys"
        flags = _SAFE | libc.MS_NOEXEC | libc.MS_RDONLY
        with shop.target(self.target, directory=True) as place:
            libc.mount(step, "sysfs", place, "sysfs", flags)
        empty = shop.new_private(0o555)
        for name in self.MASKED:
            _mask(shop, f"{self.target}/{name}", empty)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Names(Operation):
    """The crate's host name in ``/etc/hosts`` and ``/etc/hostname``, so that it resolves without a network."""

    kind: ClassVar[str] = "names"
    hostname: str
    target: str = "/etc/hosts"

    def sources(self) -> tuple[str, ...]:
        return (self.target,)

    def perform(self, shop: Workshop) -> None:
        step = "write the crate's host name"
        text = self._read(shop, step)
        names = {name for line in text.splitlines() for name in line.partition("#")[0].split()[1:]}
        if text and not text.endswith("\n"):
            text += "\n"
        if "localhost" not in names:
            text += "127.0.0.1\tlocalhost\n::1\tlocalhost\n"
        if self.hostname not in names:
            text += f"127.0.0.1\t{self.hostname}\n"
        for path, content in ((self.target, text), ("/etc/hostname", f"{self.hostname}\n")):
            self._write(shop, step, path, content)

    def _read(self, shop: Workshop, step: str) -> str:
        # An image may have anything there: a pipe to wait on, a device, a file without end.
        try:
            descriptor = libc.open_in_root(step, shop.root, self.target, os.O_RDONLY | os.O_NONBLOCK)
        except SandboxError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
                return ""
            raise
        with os.fdopen(descriptor, "rb") if _is_regular(descriptor) else _nothing(descriptor) as stream:
            return stream.read(_MAX_TEXT_BYTES).decode(errors="surrogateescape")

    @staticmethod
    def _write(shop: Workshop, step: str, path: str, content: str) -> None:
        name = os.path.basename(path)
        parent = shop.directory(os.path.dirname(path))
        try:
            # A new file in place of the old one: the old one's owner may not let the user write to it.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=parent)
            descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=parent)
        except OSError:
            # A mount point, as containers have /etc/hosts, or in a directory of someone else's: bound over it.
            private = f"{shop.new_private(0o755)}/{name}"
            with libc.os_step(step, "open", path):
                descriptor = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            with shop.target(path, directory=False) as place:
                shop.bind(step, private, place)
        finally:
            os.close(parent)
        with (
            libc.os_step(step, "write", path),
            os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as stream,
        ):
            stream.write(content)


def _is_regular(descriptor: int) -> bool:
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def _nothing(descriptor: int) -> io.BytesIO:
    os.close(descriptor)
    return io.BytesIO()


_KINDS: Mapping[str, type[Operation]] = {
    operation.kind: operation
    for operation in (Overlay, Copy, EmptyRoot, Symlink, Bind, Capture, Reveal, Private, Devices, Proc, Sys, Names)
}


def to_json(operations: Iterable[Operation]) -> list[dict[str, Any]]:
    """Return operations as builtins, to cross a process boundary."""
    # Not asdict(), whose deep copies are most of the work: the fields hold strings, numbers and flags.
    return [
        {"kind": operation.kind}
        | {field.name: getattr(operation, field.name) for field in dataclasses.fields(operation)}
        for operation in operations
    ]


def from_json(data: Iterable[Mapping[str, Any]]) -> list[Operation]:
    """Rebuild the operations that :func:`to_json` wrote."""
    operations = []
    for entry in data:
        values = dict(entry)
        operations.append(_KINDS[values.pop("kind")](**values))
    return operations
