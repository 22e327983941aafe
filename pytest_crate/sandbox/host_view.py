"""Reads, from the running process, what planning a root needs to know of the host."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import struct
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping

from pytest_crate.errors import SpecError
from pytest_crate.sandbox.rootfs import HostView, MountPoint, is_at_or_below, parse_mountinfo
from pytest_crate.spec import CrateSpec, parse_cpuset

# Directories that hold the system's programs and libraries: never laid over an image's.
_SYSTEM = frozenset(
    "/ /bin /etc /lib /lib64 /sbin /usr /usr/bin /usr/lib /usr/lib64 /usr/local /usr/local/bin /usr/local/lib "
    "/usr/sbin /usr/share /var /var/lib".split()
)


def read_mounts() -> tuple[MountPoint, ...]:
    """Return the mount points of the calling process (proc(5), /proc/pid/mountinfo)."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape", newline="\n") as stream:
        return parse_mountinfo(stream.read())


def verify(spec: CrateSpec, *, origin: str) -> None:
    """Check what can be known of the host before a crate is made: the mounts' sources exist, and so do the CPUs.

    :param origin: where the spec comes from, for the message.
    :raises SpecError: one is missing.
    """
    for mount in spec.mounts:
        if not os.path.exists(mount.source):
            expected = f"an existing path, and {mount.source} is none"
            raise SpecError(origin=origin, key="mounts", value=str(mount), expected=expected)
    if spec.cpuset:
        with open("/sys/devices/system/cpu/online", encoding="ascii") as file:  # sysfs-devices-system-cpu
            online = file.read().strip()
        if not set(spec.cpuset) <= set(parse_cpuset(online)):
            value = ",".join(map(str, spec.cpuset))
            raise SpecError(origin=origin, key="cpuset", value=value, expected=f"CPUs that are online: {online}")


def home_directories(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the user's home directories: ``$HOME`` and the password database's, resolved, if they exist."""
    homes = [environ.get("HOME", "")]
    with contextlib.suppress(KeyError):  # a numeric user of a container has no entry
        homes.append(pwd.getpwuid(os.getuid()).pw_dir)
    found = {os.path.realpath(home) for home in homes if home.startswith("/") and os.path.isdir(home)}
    return tuple(sorted(found - {"/"}))


def interpreter_paths() -> Iterator[str]:
    """Yield what the interpreter and the imported packages need to be found again at their own paths."""
    for prefix in (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix):
        # The system's own interpreter lives among the programs of the system; an image has its own.
        if prefix not in _SYSTEM:
            yield prefix
    # pyenv's "python" is a script that looks for the interpreter from the manager's own root.
    manager = os.path.dirname(os.path.dirname(sys.base_prefix))
    if os.path.isdir(os.path.join(manager, "shims")):
        yield manager
    paths = sysconfig.get_paths()
    yield from (paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    yield from (entry for entry in sys.path if os.path.isabs(entry) and os.path.realpath(entry) not in _SYSTEM)
    # An editable install may be found through an import hook rather than sys.path.
    for name, module in list(sys.modules.items()):
        if "." not in name:
            places = list(getattr(module, "__path__", None) or [])
            yield from (place for place in places if isinstance(place, str) and os.path.isabs(place))


def visible_paths(paths: Iterable[str], homes: Iterable[str], project: str) -> tuple[str, ...]:
    """Return the paths that exist, resolved, without any that would show a whole home directory.

    Where the project's own root is a home directory, its entries that aren't hidden stand for it.
    """
    homes = tuple(homes)
    found: set[str] = set()
    for path in (*paths, project):
        resolved = os.path.realpath(path)
        own = resolved == os.path.realpath(project)
        if resolved in homes:
            if own:
                with os.scandir(resolved) as entries:
                    found.update(entry.path for entry in entries if not entry.name.startswith("."))
            continue
        # A project that holds a home is shown, and the home in it covered; nothing else above a home is.
        if not own and any(is_at_or_below(home, resolved) for home in homes):
            continue
        if os.path.exists(resolved):
            found.add(resolved)
    return tuple(sorted(found))


def project_paths(project: str, *others: str, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return what a project and the interpreter need to be visible in a crate.

    :param project: the project's root directory.
    :param others: paths that matter as well, such as the current directory.
    """
    return visible_paths((*interpreter_paths(), *others), home_directories(environ), project)


def program_view(directory: str, *, rootless: bool, environ: Mapping[str, str], overlay: bool = True) -> HostView:
    """Return the host as a program sees it that no test runs: its project is the directory it is started in.

    What the run has put into temporary directories is nothing to it.
    """
    return HostView(
        mounts=read_mounts(),
        rootless=rootless,
        overlay=overlay,
        homes=home_directories(environ),
        project=project_paths(directory, environ=environ),
    )


def load_interpreter_libraries() -> Mapping[str, str]:
    """Load the shared libraries of the standard library's extension modules; return where all loaded ones are.

    A body on an image can then import ``ssl`` or ``sqlite3``: the dynamic linker takes a library
    that is loaded already by its name, whatever the image holds (dlopen(3), ld.so(8)). The directories, and then the
    single libraries, by the path where the dynamic linker looks for them, let the interpreter start anew: on an image
    that has none of these directories, such as one with another C library, and on one that lacks some of the libraries.
    """
    directory = sysconfig.get_config_var("DESTSHARED")
    if directory and os.path.isdir(directory):
        for name in sorted(os.listdir(directory)):
            # Tk would load the whole of a window system.
            if name.endswith(".so") and not name.startswith(("_tkinter", "_test", "xx")):
                # One that can't be loaded here can't be imported outside a crate either.
                with contextlib.suppress(OSError):
                    ctypes.CDLL(os.path.join(directory, name), mode=os.RTLD_LAZY | os.RTLD_LOCAL)
    found: dict[str, str] = {}
    files: dict[str, str] = {}
    own = (sys.prefix, sys.base_prefix)
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            path = "/" + line.rstrip("\n").partition("/")[2]
            if ".so" not in os.path.basename(path) or any(is_at_or_below(path, prefix) for prefix in own):
                continue
            # Where /lib is a symlink to /usr/lib, the dynamic linker looks under both names.
            place = os.path.dirname(path)
            for name in (place, place.removeprefix("/usr")):
                if os.path.realpath(name) == place:
                    found[name] = place
            files.update((f"{place}/{name}", path) for name in _names_of(path))
    if loader := _program_interpreter(sys.executable):
        found[os.path.dirname(loader)] = os.path.realpath(os.path.dirname(loader))
    if sys.base_prefix in _SYSTEM:
        found[_leaves_for_the_system(sys.executable)] = os.path.realpath(sys.executable)
    return found | files


def _leaves_for_the_system(path: str) -> str:
    """Return the first of a chain of symlinks that lies among the system's programs, or else the file at its end.

    A virtual environment, which crates show, has such a chain to the system's interpreter, which they don't.
    """
    while os.path.islink(path) and os.path.realpath(os.path.dirname(path)) not in _SYSTEM:
        path = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
    return path


def _names_of(library: str) -> Iterator[str]:
    """Yield the names by which programs ask for a library: of the symlinks beside it, or, without any, its own."""
    directory, own = os.path.split(library)
    stem = f"{own.partition('.so')[0]}.so."
    with os.scandir(directory) as entries:
        links = [entry for entry in entries if entry.name.startswith(stem) and entry.is_symlink()]
    yield from [link.name for link in links if os.path.realpath(link.path) == library] or [own]


def _program_interpreter(path: str) -> str | None:
    """Return the dynamic linker that a 64-bit ELF program names (elf(5), PT_INTERP); None if it names none."""
    with open(path, "rb") as file:
        header = file.read(64)
        if header[:5] != b"\x7fELF\x02":
            return None
        (start,) = struct.unpack_from("=Q", header, 32)
        size, count = struct.unpack_from("=HH", header, 54)
        file.seek(start)
        table = file.read(size * count)
        for offset in range(0, len(table), size):
            (kind,) = struct.unpack_from("=I", table, offset)
            if kind == 3:
                place, _, _, length = struct.unpack_from("=QQQQ", table, offset + 8)
                file.seek(place)
                return file.read(length).rstrip(b"\0").decode()
    return None
