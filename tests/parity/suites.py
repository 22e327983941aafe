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
    :ivar env: variables that its tests need.
    :ivar without: directories of the source that would be imported in place of what is installed.
    :ivar part: why ``args`` choose a part of the tests, if they do.
    :ivar short: it is run by ``tox -e parity-short``, too.
    :ivar allowed: differences that remain, each a pattern that matches a test's whole id, and its reason.
    """

    name: str
    version: str
    requirements: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    without: tuple[str, ...] = ()
    part: str = ""
    short: bool = False
    allowed: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def reason(self, test: str) -> str | None:
        """Return the reason why a test may differ; None if it may not."""
        return next((reason for pattern, reason in self.allowed.items() if re.fullmatch(pattern, test)), None)


PYTEST = "pytest==9.2.0"
XDIST = "pytest-xdist==3.8.0"

SUITES = (
    Suite(name="itsdangerous", version="2.2.0", requirements=("freezegun==1.5.5",), short=True),
    Suite(name="pluggy", version="1.7.0", args=("testing",), short=True),
    Suite(name="pytest-mock", version="3.17.0", requirements=("pytest-asyncio==1.5.0",), short=True),
    Suite(
        name="psutil",
        version="7.2.2",
        requirements=("setuptools", "pytest-instafail"),
        # Its own settings leave JUnit XML out.
        args=("-o", "addopts="),
        without=("psutil",),
    ),
    Suite(
        name="anyio",
        version="4.16.0",
        requirements=(
            *("blockbuster", "coverage", "exceptiongroup", "psutil", "pytest-mock", "pytest-timeout"),
            *("trio", "trustme", "truststore", "uvloop"),
        ),
    ),
    Suite(name="waitress", version="3.0.2", args=("-o", "addopts=")),
    Suite(
        name="watchdog", version="7.1.0", requirements=("flaky", "pytest-cov", "pytest-timeout", "pyyaml", "eventlet")
    ),
    Suite(name="click", version="8.5.1"),
    Suite(
        name="tornado",
        version="6.6.1",
        args=("-o", "python_files=*_test.py", "tornado/test"),
    ),
    Suite(
        name="uvicorn",
        version="0.54.0",
        requirements=(*("uvicorn[standard]", "a2wsgi", "cryptography", "httpx2", "pytest-mock", "trustme", "wsproto"),),
    ),
    Suite(
        name="filelock", version="4.0.0", requirements=("pytest-asyncio", "pytest-mock", "pytest-timeout", "virtualenv")
    ),
    Suite(name="pexpect", version="4.9.0", requirements=("ptyprocess", "pytest-timeout")),
    Suite(name="pyfakefs", version="6.3.2", requirements=()),
    Suite(name="freezegun", version="1.5.5"),
    Suite(name="attrs", version="26.1.0", requirements=("cloudpickle", "hypothesis", "pympler")),
    Suite(
        name="werkzeug",
        version="3.1.9",
        requirements=("cffi", "cryptography", "ephemeral-port-reserve", "pytest-timeout", "watchdog"),
    ),
    Suite(name="joblib", version="1.6.0", requirements=("threadpoolctl", "psutil"), args=("joblib",)),
    Suite(name="pytest-xdist", version="3.8.0", requirements=("filelock", "psutil", "setproctitle"), args=("testing",)),
    Suite(name="execnet", version="2.1.2", requirements=("pytest-timeout",), args=("testing",)),
    Suite(
        name="starlette",
        version="1.10.0",
        requirements=("starlette[full]", "httpx2[zstd]", "blockbuster", "trio", "opentelemetry-sdk"),
    ),
    Suite(
        name="httpx",
        version="0.28.1",
        requirements=(
            "httpx[brotli,cli,http2,socks,zstd]",
            "chardet",
            "cryptography",
            "trio",
            "trio-typing",
            "trustme",
            "uvicorn",
        ),
    ),
    Suite(name="jinja2", version="3.1.6", requirements=("trio",)),
    Suite(
        name="trio",
        version="0.35.0",
        requirements=("astor", "async-generator", "jedi", "pyopenssl", "trustme"),
        args=("--pyargs", "trio"),
    ),
    Suite(name="pytest-asyncio", version="1.5.0", requirements=("hypothesis",), args=("tests",)),
    Suite(name="marshmallow", version="4.4.0", requirements=("simplejson",)),
    Suite(name="h11", version="0.16.0", args=("h11",)),
    Suite(name="sh", version="2.4.0", args=("tests/sh_test.py",)),
    Suite(name="ptyprocess", version="0.7.0"),
    Suite(
        name="cheroot",
        version="11.1.2",
        requirements=(
            "jaraco.test",
            "portend",
            "pyopenssl",
            "requests",
            "requests-toolbelt",
            "requests-unixsocket",
            "trustme",
            "urllib3",
        ),
    ),
    Suite(name="python-dotenv", version="1.2.4", requirements=("click", "ipython", "sh")),
    Suite(name="platformdirs", version="4.5.0", requirements=("appdirs", "pytest-mock")),
    Suite(name="packaging", version="26.4", requirements=("hypothesis", "pretend", "tomli-w")),
    Suite(name="hypothesis", version="6.150.0", args=("tests",)),
)
