"""What a crate shall be: marker keys, parsed and merged once into a frozen :class:`CrateSpec`."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os.path
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from pytest_crate.errors import SpecError, one_of

CPU_PERIOD_USEC = 100_000
"""The bandwidth period that ``cpu_quota_usec`` refers to: the kernel's and Docker's default, 100 ms."""

DEFAULT_PIDS = 512
MAX_PIDS = 4_194_304
"""The kernel's PID_MAX_LIMIT, proc_sys_kernel(5): no machine has more tasks."""
MAX_TIMEOUT_SECONDS = 1_000_000_000
NETWORKS = ("none", "host")
SCOPES = ("function", "class", "module")
UNLIMITED = "unlimited"

_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[bkmg]?)(?:i?b)?", re.IGNORECASE)
_UNIT_BYTES = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_HOSTNAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,62}[A-Za-z0-9])?")
_MAX_BYTES = (1 << 63) - 1

# capabilities(7); the names in the order of their numbers, as in linux/capability.h.
CAPABILITIES = (
    "chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable "
    "net_bind_service net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio "
    "sys_chroot sys_ptrace sys_pacct sys_admin sys_boot sys_nice sys_resource sys_time "
    "sys_tty_config mknod lease audit_write audit_control setfcap mac_override mac_admin syslog "
    "wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore"
).split()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A host path made visible in a crate.

    :ivar source: absolute path on the host.
    :ivar target: absolute path in the crate.
    :ivar writable: writes reach the host.
    """

    source: str
    target: str
    writable: bool

    def __str__(self) -> str:
        return f"{self.source}:{self.target}:{'rw' if self.writable else 'ro'}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CrateSpec:
    """Everything about a crate, in base units; a limit that is None is not set.

    :ivar memory_bytes: hard memory limit (``memory.max``).
    :ivar swap_bytes: swap allowed on top of it.
    :ivar cpu_quota_usec: CPU time per :data:`CPU_PERIOD_USEC` of wall time (``cpu.max``).
    :ivar cpuset: numbers of the CPUs it may use; empty means all.
    :ivar pids: most tasks at once (``pids.max``).
    :ivar timeout_usec: wall time for set-up, body and teardown inside the crate.
    :ivar image: reference of the root filesystem; None means the host's root.
    :ivar network: ``"none"`` or ``"host"``.
    :ivar tmpfs_bytes: size of the private copy-on-write layer; None means the kernel's
        default, half of the host's memory (tmpfs(5)).
    :ivar env: variables to set; a value of None removes the variable.
    :ivar scope: which tests share a crate: those of a class or a module; ``"function"`` is a crate each.
    :ivar asked: the keys that the user set, in contrast to built-in defaults.
    """

    memory_bytes: int | None = None
    swap_bytes: int = 0
    cpu_quota_usec: int | None = None
    cpuset: tuple[int, ...] = ()
    pids: int | None = DEFAULT_PIDS
    timeout_usec: int | None = None
    image: str | None = None
    network: str = "none"
    mounts: tuple[Mount, ...] = ()
    tmpfs_bytes: int | None = None
    env: tuple[tuple[str, str | None], ...] = ()
    clean_env: bool = False
    hostname: str = "crate"
    user: str | None = None
    workdir: str | None = None
    cap_add: tuple[str, ...] = ()
    seccomp: bool = True
    scope: str = "function"
    asked: frozenset[str] = frozenset()

    def to_json(self) -> dict[str, object]:
        """Return the spec as builtins, as reports publish it: sets and tuples as lists, mounts as ``src:dst:mode``.

        A variable's value may be a secret: only that it is set, or removed (None), is told.
        """
        return {
            "memory_bytes": self.memory_bytes,
            "swap_bytes": self.swap_bytes,
            "cpu_quota_usec": self.cpu_quota_usec,
            "cpuset": list(self.cpuset),
            "pids": self.pids,
            "timeout_usec": self.timeout_usec,
            "image": self.image,
            "network": self.network,
            "mounts": [str(mount) for mount in self.mounts],
            "tmpfs_bytes": self.tmpfs_bytes,
            "env": {name: None if value is None else "(set)" for name, value in self.env},
            "clean_env": self.clean_env,
            "hostname": self.hostname,
            "user": self.user,
            "workdir": self.workdir,
            "cap_add": list(self.cap_add),
            "seccomp": self.seccomp,
            "scope": self.scope,
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Marker keys from one place, as the user wrote them.

    :ivar origin: that place, in words, for error messages.
    :ivar directory: what relative host paths in the values are relative to.
    """

    origin: str
    values: Mapping[str, object]
    directory: str = "/"


def parse_size(value: object) -> int:
    """Return a size in bytes; units are binary: b, k, m, g, as in Docker.

    :raises ValueError: it is not a positive size.
    """
    if isinstance(value, bool):
        raise ValueError(value)
    if isinstance(value, int):
        size = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        size = int(float(match["number"]) * _UNIT_BYTES[match["unit"].lower()])
    else:
        raise ValueError(value)
    if not 0 <= size <= _MAX_BYTES:
        raise ValueError(value)
    return size


def format_size(size_bytes: int) -> str:
    """Return a size in words with a binary unit: ``64 MiB``, ``1.5 GiB``, ``512 B``."""
    amount = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        # What rounds to 1024 is one of the next unit: a peak a page below 1 GiB is not "1024 MiB".
        if round(amount, 1) < 1024 or unit == "GiB":
            break
        amount /= 1024
    text = f"{amount:.1f}".removesuffix(".0")
    return f"{text} {unit}"


def _limit_bytes(value: object) -> int:
    size = parse_size(value)
    # A crate with less than a page can't even be entered; cgroup limits are in whole pages.
    if size < 4096:
        raise ValueError(value)
    return size


def _swap(value: object) -> int:
    return parse_size(value)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(value)
    number = float(value)
    if not math.isfinite(number) or number <= 0:
        raise ValueError(value)
    return number


def _cpu_quota(value: object) -> int:
    quota = round(_number(value) * CPU_PERIOD_USEC)
    # The kernel's floor for a quota is 1 ms (kernel/sched/core.c, min_cfs_quota_period).
    if not 1_000 <= quota <= _MAX_BYTES:
        raise ValueError(value)
    return quota


def parse_cpuset(value: object) -> tuple[int, ...]:
    """Return CPU numbers from a list such as ``"0-2,7"`` (cpuset(7), List format).

    :raises ValueError: it is not such a list, or empty.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(value)
    cpus: set[int] = set()
    for part in value.split(","):
        match = re.fullmatch(r"\s*(\d{1,5})(?:-(\d{1,5}))?\s*", part)
        if not match:
            raise ValueError(value)
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(value)
        cpus.update(range(first, last + 1))
    return tuple(sorted(cpus))


def _pids(value: object) -> int:
    if isinstance(value, bool):
        raise ValueError(value)
    count = int(value) if isinstance(value, (int, str)) else 0
    if not 1 <= count <= MAX_PIDS:
        raise ValueError(value)
    return count


def _timeout(value: object) -> int:
    seconds = _number(value)
    if seconds > MAX_TIMEOUT_SECONDS:
        raise ValueError(value)
    return max(1, round(seconds * 1_000_000))


def _text(value: object) -> str:
    if not isinstance(value, (str, os.PathLike)):
        raise ValueError(value)
    text = os.fspath(cast("str", value))
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError(value)
    return text


def _choice(choices: Sequence[str]) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if value not in choices:
            raise ValueError(value)
        return str(value)

    return parse


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError(value)


def _env(value: object) -> dict[str, str | None]:
    if not isinstance(value, Mapping):
        raise ValueError(value)
    for name, text in value.items():
        if not isinstance(name, str) or not name or "=" in name or "\0" in name:
            raise ValueError(name)
        if text is not None and (not isinstance(text, str) or "\0" in text):
            raise ValueError(text)
    return dict(value)


def _hostname(value: object) -> str:
    text = _text(value)
    if not _HOSTNAME.fullmatch(text):
        raise ValueError(value)
    return text


def _user(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < (1 << 32) - 1:
        return str(value)
    text = _text(value)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?::[A-Za-z0-9_][A-Za-z0-9_.-]*)?", text):
        raise ValueError(value)
    return text


def _absolute(value: object) -> str:
    text = _text(value)
    if not text.startswith("/"):
        raise ValueError(value)
    return os.path.normpath(text)


class _Unknown(ValueError):
    """Some of several names are not known; they are the argument."""


def _cap_add(value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError(value)
    names = tuple(str(name).lower().removeprefix("cap_") for name in value)
    if unknown := set(names) - set(CAPABILITIES):
        raise _Unknown(sorted(unknown))
    return tuple(sorted(set(names), key=CAPABILITIES.index))


def parse_mount(value: object, directory: str = "/") -> Mount:
    """Return the mount described by ``src[:dst][:ro|rw]``; it is read-only unless ``rw`` is given.

    :param directory: what a relative source is relative to.
    :raises ValueError: it has another form, or the target is not an absolute path that may be covered.
    """
    parts = _text(value).split(":")
    writable = False
    if len(parts) > 1 and parts[-1] in ("ro", "rw"):
        writable = parts.pop() == "rw"
    if len(parts) > 2 or not all(parts):
        raise ValueError(value)
    source = os.path.normpath(os.path.join(directory, os.path.expanduser(parts[0])))
    target = os.path.normpath(parts[1]) if len(parts) == 2 else source
    if target.startswith("//"):
        target = target[1:]  # normpath() leaves two slashes, which POSIX allows to mean something else; Linux doesn't
    # A crate has these three of its own.
    if not target.startswith("/") or target in ("/", "/dev") or re.match(r"/(proc|sys)(/|$)", target):
        raise ValueError(value)
    return Mount(source=source, target=target, writable=writable)


def _mounts(value: object, directory: str) -> tuple[Mount, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError(value)
    return tuple(parse_mount(item, directory) for item in value)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Key:
    """One marker key: the spec's field, the parser of its value, and the valid values in words.

    ``unlimited`` marks the keys that also take ``"unlimited"`` (or None), which lifts a wider layer's limit.
    """

    field: str
    parse: Callable[[object], Any]
    expected: str
    unlimited: bool = False


_SIZE_WORDS = 'a size such as "256m", "1.5g" or a number of bytes'
_KEYS: Mapping[str, _Key] = {
    "memory": _Key(field="memory_bytes", parse=_limit_bytes, expected=f"{_SIZE_WORDS}, at least 4k", unlimited=True),
    "swap": _Key(field="swap_bytes", parse=_swap, expected=_SIZE_WORDS),
    "cpus": _Key(field="cpu_quota_usec", parse=_cpu_quota, expected="a number of CPUs, at least 0.01", unlimited=True),
    "cpuset": _Key(field="cpuset", parse=parse_cpuset, expected='CPU numbers such as "0-1" or "0,2"'),
    "pids": _Key(field="pids", parse=_pids, expected=f"a number of tasks from 1 to {MAX_PIDS}", unlimited=True),
    "timeout": _Key(
        field="timeout_usec",
        parse=_timeout,
        expected=f"a number of seconds above 0, at most {MAX_TIMEOUT_SECONDS}",
        unlimited=True,
    ),
    "image": _Key(field="image", parse=_text, expected="an image's name or path", unlimited=False),
    "network": _Key(field="network", parse=_choice(NETWORKS), expected=one_of(NETWORKS)),
    "mounts": _Key(
        field="mounts",
        parse=_mounts,  # type: ignore[arg-type]  # the one parser that needs the layer's directory
        expected='a list of "src[:dst][:ro|rw]"; dst an absolute path, not / or /dev, nor in /proc or /sys',
    ),
    "tmpfs": _Key(field="tmpfs_bytes", parse=_limit_bytes, expected=f"{_SIZE_WORDS}, at least 4k", unlimited=True),
    "env": _Key(field="env", parse=_env, expected="a dict of names to strings or None"),
    "clean_env": _Key(field="clean_env", parse=_flag, expected="True or False"),
    "hostname": _Key(
        field="hostname", parse=_hostname, expected="a host name of at most 64 letters, digits, '-' and '.'"
    ),
    "user": _Key(field="user", parse=_user, expected='a user id or name, or "user:group"'),
    "workdir": _Key(field="workdir", parse=_absolute, expected="an absolute path"),
    "cap_add": _Key(field="cap_add", parse=_cap_add, expected='a list of capability names such as "net_admin"'),
    "seccomp": _Key(field="seccomp", parse=_flag, expected="True or False"),
    "scope": _Key(field="scope", parse=_choice(SCOPES), expected=one_of(SCOPES)),
}

KEYS: tuple[str, ...] = tuple(_KEYS)
"""The marker's keys, in the order of the documentation."""

CEILING_KEYS = ("memory", "cpus", "pids", "timeout", "tmpfs")
"""The keys that a ceiling can be set for."""


def _parse(layer: Layer, key: str, value: object) -> Any:
    definition = _KEYS.get(key)
    if definition is None:
        meant = "".join(f", {near!r} perhaps" for near in difflib.get_close_matches(key, KEYS, n=1))
        raise SpecError(origin=layer.origin, key=key, value=value, expected=f"a known key{meant}: {one_of(KEYS)}")
    if definition.unlimited and (value is None or value == UNLIMITED):
        return None
    try:
        if key == "mounts":
            return _mounts(value, layer.directory)
        if key == "image" and value is None:
            return None
        return definition.parse(value)
    except _Unknown as error:
        expected = f"{definition.expected}; not known: {', '.join(error.args[0])}"
        raise SpecError(origin=layer.origin, key=key, value=value, expected=expected) from None
    except (ValueError, TypeError, OverflowError):
        raise SpecError(origin=layer.origin, key=key, value=value, expected=definition.expected) from None


def _image(reference: str, directory: str) -> str:
    """Return a reference in which a path is absolute; a bare name stays what it is.

    A path is what starts with ``.``, ``/`` or ``~``; ``debian12`` and ``oci:…`` are names.
    """
    if reference.startswith((".", "/", "~")):
        return os.path.normpath(os.path.join(directory, os.path.expanduser(reference)))
    return reference


def build_spec(layers: Iterable[Layer], ceilings: Mapping[str, object] | None = None) -> CrateSpec:
    """Merge layers, weakest first, key by key into one spec.

    A nearer layer's value replaces a wider one's; ``env`` merges variable by variable, and ``mounts``
    mount by mount (a nearer one replaces a wider one of the same target).

    :param ceilings: the most a spec may ask for, by key of :data:`CEILING_KEYS`. A spec without
        that limit gets the ceiling as its limit.
    :raises SpecError: a key is unknown, a value does not parse or is above its ceiling.
    """
    merged: dict[str, Any] = {}
    origins: dict[str, tuple[str, object]] = {}
    env: dict[str, str | None] = {}
    mounts: dict[str, Mount] = {}
    for layer in layers:
        for key, value in layer.values.items():
            parsed = _parse(layer, key, value)
            origins[key] = (layer.origin, value)
            if key == "env":
                env.update(parsed)
            elif key == "mounts":
                for mount in parsed:
                    mounts.pop(mount.target, None)
                    mounts[mount.target] = mount
            elif key == "image" and parsed is not None:
                merged["image"] = _image(parsed, layer.directory)
            else:
                merged[_KEYS[key].field] = parsed
    merged["env"] = tuple(sorted(env.items()))
    merged["mounts"] = tuple(mounts.values())
    for key, value in (ceilings or {}).items():
        field = _KEYS[key].field
        ceiling = _parse(Layer(origin=f"crate_{key}_ceiling", values={}), key, value)
        asked = merged.get(field, DEFAULT_PIDS if key == "pids" else None)
        if ceiling is None:
            continue
        if asked is None or (key not in origins and asked > ceiling):
            merged[field] = ceiling
        elif asked > ceiling:
            origin, given = origins[key]
            raise SpecError(origin=origin, key=key, value=given, expected=f"at most crate_{key}_ceiling = {value}")
    return CrateSpec(**merged, asked=frozenset(origins))
