"""What tests of the whole need of the host."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import filelock
import psutil
import pytest

import pytest_crate
from pytest_crate.kernel import calls, hierarchies
from pytest_crate.kernel.cgroup import CgroupOffer
from pytest_crate.sandbox import doctor
from pytest_crate.sandbox.sandbox import Engine

pytest_plugins = ["pytester", "tests.inner", "tests.leftovers"]
# Other people's suites are a run of their own: tox -e parity, tox -e parity-short.
collect_ignore = ["parity"]

NOBODY = 65534
FREEZER = "/sys/fs/cgroup/freezer"
GUEST_PROGRAMS = ("mmdebstrap", "mkfs.ext4", "ssh", "ssh-keygen", "qemu-system-x86_64")

# -- what the host has -------------------------------------------------------------------------------


def _succeeds(script: str) -> bool:
    """Whether a script, which may do to its own process what it likes, ends well."""
    return subprocess.run([sys.executable, "-c", script], cwd="/", capture_output=True, check=False).returncode == 0


_MOUNTS = """
from pytest_crate.kernel import libc
libc.unshare("try", libc.CLONE_NEWNS)
libc.mount("try", "none", "/", flags=libc.MS_REC | libc.MS_PRIVATE)
"""
_OVERLAY = """
import os
libc.mount("try", "try", "/tmp", "tmpfs")
os.mkdir("/tmp/upper")
os.mkdir("/tmp/work")
libc.mount("try", "try", "/mnt", "overlay", data="lowerdir=/,upperdir=/tmp/upper,workdir=/tmp/work")
"""
_OPENAT2 = """
import os
from pytest_crate.kernel import libc
libc.openat2_in_root("try", os.open("/", os.O_PATH), "..", os.O_PATH)
"""
_BECOME_NOBODY = f"""
import os
from pytest_crate.kernel import identity, libc
os.setgroups([])
os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
libc.prctl("own /proc/self again", libc.PR_SET_DUMPABLE, 1)
"""
_USER_NAMESPACE = f"""
libc.unshare("try", libc.CLONE_NEWUSER | libc.CLONE_NEWNS | libc.CLONE_NEWNET | libc.CLONE_NEWPID)
identity.write_id_maps("self", *identity.single_id_map({NOBODY}, {NOBODY}), deny_setgroups=True)
libc.mount("try", "try", "/tmp", "tmpfs")
"""


class HostTable:
    """What tests may need: by name, the reason to give where it lacks, and a probe that does it."""

    def __init__(self) -> None:
        self._table: Mapping[str, tuple[str, Callable[[], bool]]] = {
            "root": ("must be root, with the right to mount", lambda: os.geteuid() == 0 and _succeeds(_MOUNTS)),
            "crates": ("no crate with an overlay can be made here, as root or in a user namespace", _makes_crates),
            "overlay": ("overlayfs can't be mounted here", lambda: _succeeds(_MOUNTS + _OVERLAY)),
            "unprivileged user": ("this process can't become another user", lambda: _succeeds(_BECOME_NOBODY)),
            "user namespaces": (
                "an ordinary user gets no user namespace here",
                lambda: _succeeds(_BECOME_NOBODY + _USER_NAMESPACE),
            ),
            "cgroup v1": ("memory, cpu and pids aren't all in writable cgroups v1", lambda: self._version() == 1),
            "cgroup v2": ("there is no writable cgroup v2", self._writable_v2),
            "freezer": ("there is no writable freezer of cgroup v1", lambda: os.access(FREEZER, os.W_OK)),
            **{
                f"{key} limit": (f"cgroups can't limit {key} here", lambda key=key: key in self._limits())  # type: ignore[misc]
                for key in ("memory", "swap", "cpus", "cpuset", "pids")
            },
            "openat2": ("the kernel is older than 5.6, or a filter denies it", lambda: _succeeds(_OPENAT2)),
            "no swap": ("there is swap", lambda: psutil.swap_memory().total == 0),
            "ipv6": ("the kernel has no IPv6", lambda: os.path.exists("/proc/net/if_inet6")),
            "public python": ("other users may execute no Python >= 3.11 here", lambda: public_python() is not None),
            "two cpus": ("there is one CPU only", lambda: len(os.sched_getaffinity(0)) > 1),
            "alpine": ("CRATE_TEST_IMAGES names no directory with an alpine-*.tar.gz", lambda: bool(alpine_images())),
            "mmdebstrap": ("mmdebstrap is not installed", lambda: shutil.which("mmdebstrap") is not None),
            "zstd program": ("zstd(1) is not installed", lambda: shutil.which("zstd") is not None),
            "gnu tar": ("tar(1) is not GNU's", _has_gnu_tar),
            "runc": ("runc(8) is not installed", lambda: shutil.which("runc") is not None),
            "capsh": ("capsh(1), of Debian's libcap2-bin, is not installed", lambda: shutil.which("capsh") is not None),
            "calls": (f"there was no C compiler when the package was built: {calls.PROGRAM}", calls.works),
            "strace": ("strace(1) is not installed", lambda: shutil.which("strace") is not None),
            "setpriv": ("setpriv(1) is not installed", lambda: shutil.which("setpriv") is not None),
            "zstd": ("no zstd module", lambda: any(map(_importable, ("compression.zstd", "zstandard")))),
            "postgresql": ("PostgreSQL's server is not installed", lambda: pg_ctl() is not None),
            "loop devices": ("losetup(8) can make no loop device of a file", _has_loop_devices),
            "guests": (
                "mmdebstrap, mkfs.ext4, ssh or qemu-system-x86_64 is not installed",
                lambda: all(map(shutil.which, GUEST_PROGRAMS)),
            ),
            "id ranges": (
                "newuidmap, newgidmap (Debian's uidmap) or useradd is not installed",
                lambda: all(map(shutil.which, ("newuidmap", "newgidmap", "useradd", "usermod"))),
            ),
            "xdist": ("pytest-xdist is not installed", lambda: _importable("xdist")),
        }
        self._known: dict[str, bool] = {}

    def lacking(self, *names: str) -> str | None:
        """Return the reason why the first of the named things that the host lacks is lacking, or None."""
        for name in names:
            reason, probe = self._table[name]
            if name not in self._known:
                self._known[name] = probe()
            if not self._known[name]:
                return f"needs {name}: {reason}"
        return None

    @functools.cached_property
    def _offer(self) -> CgroupOffer:
        # By a launcher, as any run does: the way there may move it to another control group.
        with contextlib.closing(Engine()) as engine:
            return engine.enforcement.cgroups

    def _limits(self) -> frozenset[str]:
        return self._offer.limits

    def _version(self) -> int:
        return self._offer.version if self._limits() >= {"memory", "cpus", "pids"} else 0

    @staticmethod
    def _writable_v2() -> bool:
        return any(os.access(directory, os.W_OK) for directory in own_cgroups(2))


def _makes_crates() -> bool:
    rows = {row.feature: row.status for row in doctor.examine().rows}
    return rows["a whole crate"] == rows["overlay"] == "ok"


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _has_gnu_tar() -> bool:
    tar = shutil.which("tar")
    return tar is not None and "GNU" in subprocess.check_output([tar, "--version"], text=True)


def _has_loop_devices() -> bool:
    losetup = shutil.which("losetup")
    found = None if losetup is None else subprocess.run([losetup, "--find"], capture_output=True, check=False)
    return found is not None and found.returncode == 0


def own_cgroups(*versions: int) -> list[str]:
    """Return the directories of this process's own control group in the hierarchies of these versions."""
    membership = hierarchies.parse_membership(Path("/proc/self/cgroup").read_text())
    found = []
    for mount in hierarchies.parse_mountinfo(Path("/proc/self/mountinfo").read_text()):
        for controller in mount.controllers if mount.version == 1 else ("",):
            path = membership.get(controller)
            directory = hierarchies.locate(mount, path) if path is not None else None
            if mount.version in versions and directory is not None:
                found.append(directory)
    return sorted(set(found))


def public_python() -> str | None:
    """Return an interpreter that any user may execute, wherever this one is."""
    for path in (os.path.realpath(sys.executable), "/usr/bin/python3", "/usr/local/bin/python3"):
        command = [path, "-I", "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        try:
            if (
                subprocess.run(command, user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", check=False).returncode
                == 0
            ):
                return path
        except (FileNotFoundError, PermissionError):
            continue
    return None


def pg_ctl() -> str | None:
    """Return the program that controls a PostgreSQL server; Debian keeps it out of the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    return shutil.which("pg_ctl") or (str(found[-1]) if found else None)


def alpine_images() -> list[Path]:
    directory = os.environ.get("CRATE_TEST_IMAGES")
    return sorted(Path(directory).glob("alpine-*.tar.gz")) if directory else []


_TABLE = pytest.StashKey[HostTable]()
_CACHE = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(name, ...): skip where the host lacks one of these (tests/conftest.py)")
    config.stash[_TABLE] = HostTable()
    # Looked up now: many a test sets another HOME.
    # A CI job may have been started with them ignored, as nohup does; what tests start would ignore them, too.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    config.stash[_CACHE] = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pytest-crate-tests"


def _demand(config: pytest.Config, *names: str) -> None:
    reason = config.stash[_TABLE].lacking(*names)
    if reason is not None:
        _lacks(reason)


def _lacks(reason: str) -> None:
    """Skip; where the host is meant to have everything, fail."""
    if os.environ.get("CRATE_CI_REQUIRE") == "1":
        pytest.fail(f"{reason} (CRATE_CI_REQUIRE=1)", pytrace=False)
    pytest.skip(reason)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        _demand(item.config, *mark.args)


@pytest.fixture(scope="session")
def needs(pytestconfig: pytest.Config) -> Callable[..., None]:
    """Skip in the midst of a test where the host lacks one of the named things; as the marker ``needs``."""
    return lambda *names: _demand(pytestconfig, *names)


@pytest.fixture(scope="session")
def interpreter_for_everyone(needs: Callable[..., None]) -> str:
    """An interpreter that any user may execute."""
    needs("root", "unprivileged user", "public python")
    return str(public_python())


@pytest.fixture(scope="session")
def packages_for_everyone() -> Iterator[Path]:
    """A directory that any user may read with what a run of pytest in crates imports: ours may be where only we may."""
    with tempfile.TemporaryDirectory(prefix=temporary_prefix("packages")) as name:
        directory = Path(name)
        directory.chmod(0o755)
        for distribution in "pytest pluggy psutil filelock iniconfig packaging pygments".split():
            for file in importlib.metadata.files(distribution) or ():
                if ".." not in file.parts and file.suffix != ".pyc":
                    (directory / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(file.locate(), directory / file)
        source = Path(pytest_crate.__file__).parent
        shutil.copytree(source, directory / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        yield directory


def temporary_prefix(what: str) -> str:
    """Return how the name of a temporary directory of the tests' own begins: with the process whose it is."""
    return f"pytest-crate-{os.getpid()}-{what}-"


# -- real root filesystems ---------------------------------------------------------------------------


@pytest.fixture(scope="session")
def alpine_image(needs: Callable[..., None]) -> Path:
    """A real Alpine root filesystem: musl and busybox, no Python."""
    needs("alpine")
    return alpine_images()[-1]


@pytest.fixture(scope="session")
def tests_cache(pytestconfig: pytest.Config) -> Path:
    """A directory in the user's cache for what is made once per machine."""
    cache = pytestconfig.stash[_CACHE]
    cache.mkdir(parents=True, exist_ok=True)
    return cache


@pytest.fixture(scope="session")
def debian_image(needs: Callable[..., None], tests_cache: Path) -> Path:
    """A real Debian root filesystem, made by mmdebstrap once per machine and kept in the user's cache."""
    suite, variant = "bookworm", "minbase"
    image = tests_cache / f"debian-{suite}-{variant}.tar"
    with filelock.FileLock(f"{image}.lock"):
        if not image.exists():
            needs("mmdebstrap")
            partial = image.with_suffix(".partial.tar")
            command = ["mmdebstrap", "--quiet", f"--variant={variant}", suite, str(partial)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
            if done.returncode != 0:
                partial.unlink(missing_ok=True)
                _lacks(f"mmdebstrap could not make an image: {done.stderr[-2000:]}")
            partial.rename(image)
    return image
