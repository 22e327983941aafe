"""Removal of a directory tree that a hostile archive may have shaped."""

from __future__ import annotations

import os
import secrets
import stat


def remove_tree(parent: int, name: bytes) -> None:
    """Remove a file, or a directory with everything in it; what is not there is fine.

    No symlink is followed, no directory needs to be writable (for its owner), and depth does not matter: a
    recursion would run out of stack or descriptors in a tree deeper than PATH_MAX, which symlinks allow to build.

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
    # Every directory is moved up before it is emptied. The names can't be guessed by an archive.
    token, moved = secrets.token_hex(8), 0
    try:
        while names := _unlink_files(top):
            for directory in names:
                inner = _open_to_empty(top, directory)
                try:
                    for deeper in _unlink_files(inner):
                        # Moving a directory changes its "..", so it must be writable (rename(2)).
                        os.close(_open_to_empty(inner, deeper))
                        os.rename(deeper, f"{token}-{moved}".encode(), src_dir_fd=inner, dst_dir_fd=top)
                        moved += 1
                finally:
                    os.close(inner)
                os.rmdir(directory, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=parent)


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


def _unlink_files(directory: int) -> list[bytes]:
    """Unlink all in a directory but directories, and return the names of these."""
    with os.scandir(directory) as entries:
        found = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in found:
        if not is_directory:
            os.unlink(name, dir_fd=directory)
    return [name for name, is_directory in found if is_directory]
