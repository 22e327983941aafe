"""The store of extracted images: one root filesystem per content, extracted once and never changed."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pwd
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping

import filelock

from pytest_crate.errors import ImageError, SandboxError
from pytest_crate.images.compression import LayerStream
from pytest_crate.images.ownership import Ownership, current_ownership
from pytest_crate.images.rootfs import ExtractLimits, RootfsBuilder
from pytest_crate.images.source import ArchiveFile, ImageSource
from pytest_crate.images.tarstream import ArchiveError
from pytest_crate.images.tree import remove_tree
from pytest_crate.kernel import libc
from pytest_crate.spec import format_size

# The layout, below the store's root:
#
#   v1-root/, v1-uid1000/          a store per ownership (a user's extraction has other owners than root's), 0700,
#                                  as an image's setuid programs are nothing that others may run on the host
#       lock                       held, by flock(2), while anything below changes
#       images/sha256-<digest>/    one image, complete: it was renamed to here
#           rootfs/                the root filesystem
#           image.json             what it was extracted from, and what was left out
#       identities/<sha256>        the digest of the source of this identity, to hash no large archive twice
#       staging/<random>/          being written; left over from a killed process if nobody holds the lock
#
# A hit takes no lock and writes nothing, so that a filled store can be read-only.
_LAYOUT = "v1"
_PROGRESS_BYTES = 64 << 20
# Whatever chose this one: the store is not told.
_ANOTHER_PLACE = "another place can be named by --store, ini crate_image_store or XDG_CACHE_HOME"
_DEFAULT_LIMITS = ExtractLimits()

Progress = Callable[[str], None]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A root filesystem, ready to be the lower directory of an overlay.

    :ivar reference: the image as the user named it.
    :ivar rootfs: absolute path of the directory, to be read only.
    :ivar digest: ``"sha256:…"`` of the archive as it is on disk; empty for a plain directory.
    """

    reference: str
    rootfs: str
    digest: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """An image in the store.

    :ivar digest: ``"sha256:…"`` of the archive as it is on disk.
    :ivar origin: what it was extracted from first: a path, an address.
    :ivar data_bytes: data in its files.
    :ivar extracted_sec: when it was extracted, in seconds since 1970. When it was used last is not known: a use
        writes nothing.
    """

    digest: str
    origin: str
    data_bytes: int
    extracted_sec: int


def default_store_root(environ: Mapping[str, str]) -> str:
    """Return ``$XDG_CACHE_HOME/pytest-crate``, or the same in ``~/.cache`` (XDG Base Directory Specification).

    :raises ImageError: neither the environment nor the password database knows a home directory.
    """
    cache = environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):  # "should consider the path invalid and ignore it", says the specification
        home = environ.get("HOME", "")
        if not os.path.isabs(home):
            try:
                home = pwd.getpwuid(os.getuid()).pw_dir
            except KeyError:
                raise ImageError("", f"there is no home directory to keep images in; {_ANOTHER_PLACE}") from None
        cache = os.path.join(home, ".cache")
    return os.path.join(cache, "pytest-crate")


class ImageStore:
    """Extracts images into a directory tree that processes share.

    :param root: path of the store, which is created when the first image is extracted.
    :param limits: how large an image may be.
    :param ownership: whose its files are; what this process can do if None.
    """

    def __init__(
        self, root: str, *, limits: ExtractLimits = _DEFAULT_LIMITS, ownership: Ownership | None = None
    ) -> None:
        self._root = os.path.abspath(root)
        self._limits = limits
        self._ownership = ownership or current_ownership()
        self._directory = os.path.join(self._root, f"{_LAYOUT}-{self._ownership.name}")

    def open(self, source: ImageSource | str, reference: str, progress: Progress | None = None) -> Image:
        """Return an image's root filesystem, extracted now if no process did before.

        :param source: a source of layers, or the path of an archive or a directory; a directory is used as it is.
        :param reference: the image as the user named it, for messages.
        :param progress: called with a line of text now and then while it takes long.
        :raises ImageError: the image is missing, unreadable, damaged, hostile or too large, or the store can't be
            written. Nothing half-written is left.
        """
        with _reading(reference):
            if isinstance(source, str) and os.path.isdir(source):
                return _directory_image(source, reference)
            source = source_of(source)
            identity = source.identity()
        with self._writing(reference):
            image = self._find(identity, reference)
            if image:
                self._tidy()
                return image
            self._prepare(reference)
            with self._locked(progress):
                self._remove_leftovers()
                # Another process may have extracted it while this one waited.
                image = self._find(identity, reference)
                return image or self._extract(source, identity, reference, progress)

    def find(self, source: ImageSource | str, reference: str) -> Image | None:
        """Return an image's root filesystem if it is there already; None if it is to be extracted.

        :raises ImageError: as :meth:`open`.
        """
        with _reading(reference):
            if isinstance(source, str) and os.path.isdir(source):
                return _directory_image(source, reference)
            identity = source_of(source).identity()
        with self._writing(reference):
            return self._find(identity, reference)

    def images(self) -> tuple[StoredImage, ...]:
        """Return the images in the store, by digest.

        :raises ImageError: the store can't be read, or can't be trusted.
        """
        with self._writing("", "read"):
            try:
                names = sorted(os.listdir(self._path("images")))
            except FileNotFoundError:
                return ()
            self._verify_owner("")
            return tuple(self._describe(name) for name in names)

    def remove(self, digest: str) -> None:
        """Remove an image.

        :raises ImageError: it is not there, a crate uses it, or the store can't be written.
        """
        with self._writing(digest, "remove it from"):
            if not os.path.isdir(self._image_path(digest)):
                raise ImageError(digest, f"it is not in the store {self._root}")
            with self._locked(None):
                user = self._take_out(digest)
            if user is not None:
                raise ImageError(digest, f"a crate uses it now: process {user}")

    def prune(self) -> tuple[StoredImage, ...]:
        """Remove the images that no crate uses and whose archive is gone or has changed; return them.

        :raises ImageError: the store can't be read or written.
        """
        removed = []
        for image in self.images():
            with self._writing(image.digest, "remove it from"), self._locked(None):
                if not self._is_current(image) and self._take_out(image.digest) is None:
                    removed.append(image)
        return tuple(removed)

    def _describe(self, name: str) -> StoredImage:
        path = self._path("images", name, "image.json")
        with open(path, encoding="ascii") as file:
            description = json.load(file)
            return StoredImage(
                digest=description["digest"],
                origin=description["origin"],
                data_bytes=description["data_bytes"],
                extracted_sec=int(os.fstat(file.fileno()).st_mtime),
            )

    def _is_current(self, image: StoredImage) -> bool:
        """Whether the archive is still there, and the same."""
        try:
            identity = ArchiveFile(path=image.origin).identity()
        except OSError:
            return False
        found = self._find(identity, image.origin)
        return found is not None and found.digest == image.digest

    def _users(self, digest: str) -> list[int]:
        """Return the processes that have the image mounted: an overlay must not lose its lower directory."""
        found = []
        lower = f"/{os.path.basename(self._image_path(digest))}/rootfs"
        for name in os.listdir("/proc"):
            if name.isdecimal():
                with (
                    contextlib.suppress(OSError),  # it has ended
                    open(f"/proc/{name}/mountinfo", encoding="utf-8", errors="replace") as mounts,
                ):
                    if lower in mounts.read():
                        found.append(int(name))
        return found

    def _take_out(self, digest: str) -> int | None:
        """Remove an image, whole or not at all to whoever looks for it. The lock is held.

        :returns: a process that has it mounted, and for which it stays; None if there was none, and it is removed.
        """
        for user in self._users(digest):
            return user
        taken = self._path("staging", secrets.token_hex(8))
        os.rename(self._image_path(digest), taken)
        # Nobody can mount it any more; who did while we looked through all processes would lose file after file.
        for user in self._users(digest):
            os.rename(taken, self._image_path(digest))
            return user
        for name in os.listdir(self._path("identities")):
            with open(self._path("identities", name), encoding="ascii") as file:
                of_it = file.read() == digest
            if of_it:
                os.unlink(self._path("identities", name))
        self._remove_leftovers()
        return None

    def _path(self, *names: str) -> str:
        return os.path.join(self._directory, *names)

    def _identity_path(self, identity: str) -> str:
        return self._path("identities", hashlib.sha256(os.fsencode(identity)).hexdigest())

    def _image_path(self, digest: str) -> str:
        return self._path("images", digest.replace(":", "-"))

    def _find(self, identity: str, reference: str) -> Image | None:
        try:
            with open(self._identity_path(identity), encoding="ascii") as file:
                digest = file.read()
        except FileNotFoundError:
            return None
        self._verify_owner(reference)
        rootfs = os.path.join(self._image_path(digest), "rootfs")
        return Image(reference=reference, rootfs=rootfs, digest=digest) if os.path.isdir(rootfs) else None

    def _prepare(self, reference: str) -> None:
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        self._verify_owner(reference)
        for name in ("images", "identities", "staging"):
            os.makedirs(self._path(name), exist_ok=True)

    def _verify_owner(self, reference: str) -> None:
        """Refuse a store that another user could have put there, or could change."""
        status = os.lstat(self._directory)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise ImageError(
                reference,
                f"the store {self._directory} must be a directory that belongs to user {os.geteuid()} and that nobody "
                f"else can write to: it has mode {stat.filemode(status.st_mode)} and belongs to user {status.st_uid}",
            )

    @contextlib.contextmanager
    def _locked(self, progress: Progress | None) -> Iterator[None]:
        lock = filelock.FileLock(self._path("lock"))
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            if progress:
                progress(f"waiting for another process that extracts an image into {self._root}")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _tidy(self) -> None:
        """Remove leftovers, unless another process is at work or the store can't be written."""
        try:
            if os.listdir(self._path("staging")):
                with filelock.FileLock(self._path("lock"), timeout=0):
                    self._remove_leftovers()
        except OSError:  # filelock.Timeout too; the image is there, and this is no reason to fail
            return

    def _remove_leftovers(self) -> None:
        for name in os.listdir(self._path("staging")):
            self._remove("staging", name)

    def _remove(self, *names: str) -> None:
        *above, name = names
        with _directory(self._path(*above)) as parent:
            remove_tree(parent, os.fsencode(name))

    def _extract(self, source: ImageSource, identity: str, reference: str, progress: Progress | None) -> Image:
        """Extract an image beside the others and move it among them when it is complete. The lock is held."""
        token = secrets.token_hex(8)
        staging = self._path("staging", token)
        try:
            digest = self._stage(source, staging, identity, reference, progress)
            directory = self._image_path(digest)
            # The same content may be there already, from an archive elsewhere.
            if not os.path.isdir(os.path.join(directory, "rootfs")):
                self._remove("images", os.path.basename(directory))
                os.rename(staging, directory)
            self._record(identity, digest)
        finally:
            self._remove("staging", token)
        return Image(reference=reference, rootfs=os.path.join(directory, "rootfs"), digest=digest)

    def _stage(
        self, source: ImageSource, staging: str, identity: str, reference: str, progress: Progress | None
    ) -> str:
        """Write an image's directory and return the image's digest."""
        rootfs = os.path.join(staging, "rootfs")
        os.mkdir(staging, 0o700)
        os.mkdir(rootfs, 0o700)
        digests = []
        # Said at the first entry: what turns out to be no archive isn't being extracted.
        started = None if progress is None else lambda: progress(f"extracting {reference}…")
        with _directory(rootfs) as root:
            builder = RootfsBuilder(
                root,
                reference=reference,
                where=f"the store {self._root}",
                remedy=f"; {_ANOTHER_PLACE}",
                limits=self._limits,
                keep_owners=self._ownership.keep,
            )
            for layer in source.layers():
                with layer as raw:
                    stream = LayerStream(
                        raw,
                        reference=reference,
                        limit_bytes=self._limits.size_bytes,
                        on_read=_progress_of(reference, progress),
                    )
                    builder.add_layer(stream.read, origin=source.origin, started=started)
                    try:
                        digests.append(stream.digest())
                    except ArchiveError as error:
                        raise ImageError(reference, f"{source.origin}: {error}") from error
            if source.identity() != identity:
                raise ImageError(reference, f"{source.origin} changed while it was being extracted")
            _verify_rootfs(os.listdir(root), source.origin, reference)
            contents = builder.finish()
            digest = _combined(digests)
            description = {"reference": reference, "origin": source.origin, "digest": digest}
            with open(os.path.join(staging, "image.json"), "w", encoding="ascii") as file:
                json.dump(description | dataclasses.asdict(contents), file)
            # A rename can reach the disk before the files do: after a power cut they would be there, and empty.
            libc.libc_call("write the image to disk", "syncfs", root, path=rootfs)
        return digest

    def _record(self, identity: str, digest: str) -> None:
        written = self._path("staging", secrets.token_hex(8))
        with open(written, "w", encoding="ascii") as file:
            file.write(digest)
        os.replace(written, self._identity_path(identity))

    @contextlib.contextmanager
    def _writing(self, reference: str, what: str = "keep it in") -> Iterator[None]:
        try:
            yield
        except (OSError, SandboxError) as error:
            raise ImageError(
                reference,
                f"cannot {what} the store {self._root}: {_described(error)}; {_ANOTHER_PLACE}",
            ) from error


def source_of(source: ImageSource | str) -> ImageSource:
    """Return a source of layers as it is, and of an archive's path the archive."""
    return ArchiveFile(path=source) if isinstance(source, str) else source


def _directory_image(path: str, reference: str) -> Image:
    rootfs = os.path.realpath(path)
    _verify_rootfs(os.listdir(rootfs), rootfs, reference)
    return Image(reference=reference, rootfs=rootfs, digest="")


def _verify_rootfs(names: list[str], origin: str, reference: str) -> None:
    """Refuse what is no root filesystem at all. There is little to demand: a single static program can be one."""
    if not names:
        raise ImageError(reference, f"{origin} is empty, and no root filesystem")
    if not {"bin", "usr"} & set(names) and {"manifest.json", "oci-layout"} & set(names):
        raise ImageError(
            reference, f"{origin} holds a packed OCI or Docker image, not a root filesystem: use 'docker export'"
        )


def _combined(digests: list[str]) -> str:
    """Return an image's digest: its layer's own, so that sha256sum(1) shows it, or of all layers' digests in order."""
    if len(digests) == 1:
        return digests[0]
    return f"sha256:{hashlib.sha256(' '.join(digests).encode()).hexdigest()}"


def _progress_of(reference: str, progress: Progress | None) -> Callable[[int], None] | None:
    """Return what turns a growing number of bytes into a line every 64 MiB."""
    if progress is None:
        return None
    report, due_bytes = progress, _PROGRESS_BYTES

    def on_read(read_bytes: int) -> None:
        nonlocal due_bytes
        if read_bytes >= due_bytes:
            due_bytes += _PROGRESS_BYTES
            report(f"extracting {reference}: {format_size(read_bytes)}…")

    return on_read


@contextlib.contextmanager
def _directory(path: str) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _reading(reference: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ImageError(reference, f"cannot read it: {_described(error)}") from error


def _described(error: OSError | SandboxError) -> str:
    if isinstance(error, SandboxError):
        return str(error)
    reason = f"{error.strerror} (errno {error.errno})" if error.errno else str(error)
    return f"{os.fsdecode(error.filename)}: {reason}" if error.filename else reason
