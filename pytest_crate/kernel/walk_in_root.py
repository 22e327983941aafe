"""Opens a path as if a directory were the file system's root, step by step: for kernels without openat2(2)."""

from __future__ import annotations

import errno
import os
import stat

_MOST_SYMLINKS = 40  # as the kernel's own (path_resolution(7))


def walk_in_root(root: int, path: str, flags: int, mode: int = 0) -> int:
    """Open a path as openat2(2) does with RESOLVE_IN_ROOT, whoever exchanges what is on the way.

    Each component is opened for itself, without following it, from the directory before; a symlink's text, be it that
    of a magic link of procfs, is walked in its place, from the root if it is absolute.

    :param root: a directory's descriptor.
    :raises OSError: with the number that openat2(2) would give.
    """
    if not path:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    follows = not flags & os.O_NOFOLLOW and flags & (os.O_CREAT | os.O_EXCL) != os.O_CREAT | os.O_EXCL
    # ".." leads back to where we came from, wherever that is by now, and from the root nowhere.
    passed: list[int] = []
    components = path.split("/")
    symlinks = 0
    try:
        while components:
            here = passed[-1] if passed else root
            name = components.pop(0)
            if name in ("", "."):
                continue
            if name == "..":
                if passed:
                    os.close(passed.pop())
                continue
            if flags & os.O_CREAT and components and not any(components):
                # A slash at the end: whatever it is, it is not to be made as a file.
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
            try:
                found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            except FileNotFoundError:
                if components or not flags & os.O_CREAT:
                    raise
                return os.open(name, flags | os.O_NOFOLLOW, mode, dir_fd=here)
            passed.append(found)  # to be closed, whatever comes
            kind = os.fstat(found).st_mode
            if stat.S_ISLNK(kind) and (components or follows):
                target = os.readlink("", dir_fd=found)
                os.close(passed.pop())
                symlinks += 1
                if symlinks > _MOST_SYMLINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                if target.startswith("/"):
                    while passed:
                        os.close(passed.pop())
                components = [*target.split("/"), *components]
            elif not components:
                if flags & os.O_PATH and (stat.S_ISDIR(kind) or not flags & os.O_DIRECTORY):
                    return passed.pop()
                # A symlink that is there by now is an error.
                return os.open(name, flags | os.O_NOFOLLOW, mode, dir_fd=here)
            elif not stat.S_ISDIR(kind):
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return os.open(".", flags, mode, dir_fd=passed[-1] if passed else root)
    finally:
        for descriptor in passed:
            os.close(descriptor)
