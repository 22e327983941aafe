"""The table of other people's test suites: what each is, how it is run, and which differences are known, and why."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """One project's tests, as they lie in its source distribution.

    :ivar name: the project's, on PyPI.
    :ivar requirements: what its tests need besides the project itself, :data:`PYTEST` and pytest-xdist.
    :ivar args: what pytest is given.
    :ivar without: directories of the source that would be imported in place of what is installed.
    :ivar part: why ``args`` choose a part of the tests, if they do.
    :ivar on_workers: it is so long that it is run on two workers only.
    :ivar short: it is run by ``tox -e parity-short``, too.
    :ivar allowed: differences that remain, each a pattern that matches a test's whole id, and its reason.
    """

    name: str
    version: str
    requirements: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    part: str = ""
    on_workers: bool = False
    short: bool = False
    allowed: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def reason(self, test: str) -> str | None:
        """Return the reason why a test may differ; None if it may not."""
        return next((reason for pattern, reason in self.allowed.items() if re.fullmatch(pattern, test)), None)


PYTEST = "pytest==9.2.0"
XDIST = "pytest-xdist==3.8.0"

_HOST = "it has the host's name from its import, and a crate has one of its own"
_PIDS = "it has a process's id from outside, of an import or a class's set-up, and a crate counts its own"

_KILLED = "it has what its child had printed until it was killed, more or less of it"


def _of(module: str, test: str) -> str:
    """Return the pattern for a test of a module, as its node id and as JUnit XML have it."""
    return rf"tests[./]{module}(\.py::|::|\.){test}"


SUITES = (
    Suite(name="itsdangerous", version="2.2.0", requirements=("freezegun==1.5.5",), short=True),
    Suite(name="pluggy", version="1.7.0", args=("testing",), short=True),
    Suite(name="pytest-mock", version="3.17.0", requirements=("pytest-asyncio==1.5.0",), short=True),
    Suite(name="click", version="8.5.1"),
    Suite(name="attrs", version="26.1.0", requirements=("cloudpickle", "hypothesis", "pympler")),
    Suite(
        name="filelock",
        version="4.0.0",
        requirements=("pytest-asyncio", "pytest-mock", "pytest-timeout", "virtualenv"),
        allowed={
            _of(
                "test_soft_stale",
                r"test_(lock_writes_pid_and_hostname|recycled_pid_marker_self_heals|short_writes_still_.*|stale_lock_.*)",
            ): _HOST,
            _of("test_soft_stale", r"test_is_lock_held_by_us\[same_pid\]"): _PIDS,
            _of("test_async_filelock", r"test_wait_message_logged\[.*"): "a fifth of a second is all it has",
        },
    ),
    Suite(
        name="psutil",
        version="7.2.2",
        requirements=("psleak", "pytest-instafail", "setuptools"),
        # Its own settings leave out JUnit XML, and have one that this pytest refuses.
        args=(
            *("-c", "/dev/null", "--rootdir", ".", "tests"),
            # Its pool of processes is terminated as soon as all processes have been looked at: at once where these are
            # few. Its handler of SIGTERM then raises in a worker that is just being forked, Python ignores that, and
            # the worker stays: without crates, too, such a pool hangs by its hundredth time.
            "--deselect=tests/test_process_all.py::TestFetchAllProcesses::test_all",
        ),
        part="all but one test, whose pool of processes hangs now and then, without crates, too",
        without=("psutil",),
        allowed={
            _of("test_linux", "TestProcessAgainstStatus::.*"): _PIDS,
            _of("test_posix", "TestProcess::.*"): _PIDS,
            _of(
                "test_memleaks", "Test(ProcessObject|TerminatedProcess)Leaks::test_(cpu_affinity|nice|rlimit)_set"
            ): _PIDS,
            _of(
                "test_process", "TestProcess::test_(children_duplicates|parents)"
            ): "in a crate the tree of processes begins at init",
            _of(
                "test_scripts", "TestSetupScript::test_invocation"
            ): "fails plain, too, with what other tests have imported",
            _of("test_linux", "TestSystemVirtualMemoryAgainstVmstat::test_free"): "it measures the host's memory twice",
            # And prints that it tries again, plain and in crates.
            _of(
                "test_linux", "TestProcess::test_parse_smaps_vs_memory_maps"
            ): "it measures twice the memory of a process that has just begun",
            _of(
                "test_linux", "TestSystemNetIfAddrs::test_ips"
            ): "a crate's loopback has a second address, for `AI_ADDRCONFIG`",
            # Ten interpreters that fail by an import, as one outside the environment has no psutil: of their tracebacks
            # there are none to ten, plain and in crates, by how busy the machine is.
            _of("test_connections", "TestSystemWideConnections::test_multi_sockets_procs"): _KILLED,
            _of("test_process", "TestProcess::test_long_cmdline"): _KILLED,
            _of("test_sudo", "TestUpdatedSystemTime::.*"): "skipped: a crate may not set the clock",
            _of("test_linux", "TestRootFsDeviceFinder::.*"): "a crate's root is an overlay, no device",
            _of("test_system", "TestDiskAPIs::test_disk_partitions"): "it looks at mounts, and a crate has its own",
        },
    ),
    Suite(
        name="anyio",
        version="4.16.0",
        requirements=(
            *("blockbuster", "coverage", "exceptiongroup", "psutil", "pytest-mock", "pytest-timeout"),
            *("trio", "trustme", "truststore", "uvloop"),
        ),
        args=(
            *("tests/streams", "tests/test_fileio.py", "tests/test_pytest_plugin.py", "tests/test_signals.py"),
            *("tests/test_subprocesses.py", "tests/test_tempfile.py", "tests/test_to_process.py"),
        ),
        part="what touches files, processes, signals, loopback sockets and pytest",
        allowed={
            _of("test_fileio", r"TestPath::test_is_block_device.*"): "skipped: a crate's /dev has no disk",
            # asyncio's "Unknown child process": who closes a transport polls the process that a thread waits for.
            # Of sixty repetitions seven or more logged it plain, and nine in crates.
            _of(
                "test_to_process", r"test_stderr_flood\[asyncio\]"
            ): "asyncio logs which of two has waited for a process, by who was first",
            # asyncio's "Task exception was never retrieved", of a pytest that it starts: without crates, too, it is
            # there or not by how many objects that pytest makes, with a period of 700 (gc.get_threshold).
            _of(
                "test_pytest_plugin", r"test_keyboardinterrupt_during_test\[asyncio\]"
            ): "what a process prints at its end, by when its garbage is collected",
        },
    ),
    Suite(
        name="sortedcontainers",
        version="2.4.0",
        args=("--doctest-modules", "sortedcontainers"),
        part="the source distribution has no other tests than the examples in docstrings",
    ),
    Suite(
        name="waitress",
        version="3.0.2",
        # Its own settings want coverage measured.
        args=("-o", "addopts="),
        allowed={
            r"tests/test_server\.py::TestWSGIServer::test_readable_maplen_toggles_connection_overflow": (
                "its log has an INFO line only because a test of the runner left the logger's level at that"
            ),
            r"tests/test_wasyncore\.py::TestAPI_\w+::test_quick_connect": (
                "its log has what its two threads came to, more or less of it from run to run"
            ),
        },
    ),
    Suite(name="ptyprocess", version="0.7.0"),
    Suite(name="h11", version="0.16.0", args=("h11",)),
    Suite(name="python-dotenv", version="1.2.4", requirements=("click", "ipython", "sh")),
    Suite(name="platformdirs", version="4.5.0", requirements=("appdirs", "pytest-mock")),
    Suite(name="jinja2", version="3.1.6", requirements=("trio",)),
    Suite(name="freezegun", version="1.5.5"),
    Suite(
        name="structlog",
        version="26.1.0",
        requirements=("pytest-asyncio", "pytest-randomly", "simplejson", "time-machine", "twisted", "rich"),
        # In one order, so that the runs are comparable.
        args=("-p", "no:randomly"),
    ),
    Suite(
        name="uvicorn",
        version="0.54.0",
        requirements=(*("a2wsgi", "cryptography", "httpx2", "pytest-mock", "trustme", "uvicorn[standard]", "wsproto"),),
        # They want another plugin's marker.
        args=("--ignore=tests/benchmarks",),
        allowed={
            r"tests/protocols/test_http\.py::test_request_logging\[.*": (
                "it prints only because a test before it has left its loggers handlers"
            ),
            _of("supervisors[./]test_multiprocess", r"test_multiprocess_sig\w+"): (
                "its thread prints its last line after the test's end, or before"
            ),
            _of("supervisors[./]test_multiprocess", "test_multiprocess_worker_dies_on_startup"): (
                "a worker, a new interpreter, that needs more than five seconds is killed as hung and begun anew, and "
                "it has ten in all: with a delay of six it fails plain, too"
            ),
        },
    ),
    Suite(name="cachetools", version="8.0.2"),
    Suite(
        name="responses",
        version="0.26.3",
        requirements=("pytest-asyncio", "pytest-httpserver", "tomli-w"),
        args=("responses",),
    ),
    Suite(
        name="marshmallow",
        version="4.4.0",
        requirements=("simplejson",),
        args=(
            "tests",
            "--deselect=tests/test_deserialization.py::TestFieldDeserialization::test_invalid_datetime_deserialization",
        ),
        part="all but a test whose parameters' names have the time in them",
    ),
    Suite(
        name="pytest",
        version="9.2.0",
        requirements=("argcomplete", "attrs", "hypothesis", "mock", "pexpect", "requests", "setuptools", "xmlschema"),
        args=("testing",),
        on_workers=True,
        allowed={
            r"testing/(_py/test_local\.py::TestUnicode|code/test_excinfo\.py::TestExceptionInfoFormatter)::.*": (
                "it shows paths from the directory that a test before it has gone to"
            ),
            r"testing/(code/test_excinfo\.py::test_match_raises_error|python/collect\.py::TestTracebackCutting::.*)": (
                "it shows the number of a descriptor, and others are open"
            ),
            r"testing/test_junitxml\.py::test_record_fixtures_xunit2\[.*": (
                "it shows the line of a file that a test before it has had by that name"
            ),
            r"testing/test_terminal\.py::.*::test_verbose_reporting_xdist": "a rule as wide as the time in it",
        },
    ),
)
