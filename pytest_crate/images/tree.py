"""Removal of a directory tree that a hostile archive may have shaped."""

from __future__ import annotations

import os
import secrets
import stat

# Descriptors held at once. Symlinks allow to build a tree deeper than PATH_MAX, in which a recursion would run out
# of them, or of stack.
_MAX_DEPTH = 64


def remove_tree(parent: int, name: bytes) -> None:
    """Remove a file, or a directory with everything in it; what is not there is fine.

    No symlink is followed, no directory needs to be writable (for its owner), and depth does not matter.

    :param parent: descriptor of the directory that holds it.
    :raises OSError: something could not be removed.
    """
    try:
        top = _open_to_empty(parent, name)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        os.unlink(name, dir_fd=parent)
        return
    try:
        while _empty(top, top, depth=1):
            continue
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=parent)


def _empty(directory: int, top: int, depth: int) -> bool:
    """Remove what is in a directory, and tell whether there was anything; what is too deep is moved up to the top."""
    with os.scandir(directory) as entries:
        found = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in found:
        if not is_directory:
            os.unlink(name, dir_fd=directory)
            continue
        # Also before a move: that changes a directory's "..", so it must be writable (rename(2)).
        inner = _open_to_empty(directory, name)
        try:
            if depth < _MAX_DEPTH:
                _empty(inner, top, depth + 1)
        finally:
            os.close(inner)
        if depth < _MAX_DEPTH:
            os.rmdir(name, dir_fd=directory)
        else:
            # No archive can have guessed the name. Not for every directory, as a rename takes milliseconds.
            os.rename(name, secrets.token_hex(16).encode(), src_dir_fd=directory, dst_dir_fd=top)
    return bool(found)


def _open_to_empty(parent: int, name: bytes) -> int:
    """Open a directory, made accessible to its owner.

    :raises NotADirectoryError: it is something else, be it a symlink to a directory.
    """
    mode = os.lstat(name, dir_fd=parent).st_mode
    if not stat.S_ISDIR(mode):
        raise NotADirectoryError(name)
    if mode & stat.S_IRWXU != stat.S_IRWXU:
        os.chmod(name, stat.S_IRWXU, dir_fd=parent)
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
