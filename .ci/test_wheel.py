"""What an installed wheel must offer, run in an environment that can't see the source tree."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import json
import socket
import sysconfig
from pathlib import Path

import pytest

import pytest_crate
from pytest_crate.kernel import calls


def test_it_is_the_installed_package():
    """The package comes from site-packages, with its types."""
    package = Path(pytest_crate.__file__).parent
    assert package.parent == Path(sysconfig.get_path("platlib"))
    assert (package / "py.typed").is_file()
    assert importlib.metadata.version("pytest-crate-sandbox") == pytest_crate.__version__


def test_the_schema_is_in_the_wheel():
    """The JSON Schema of the report is shipped, and is JSON."""
    schema = importlib.resources.files("pytest_crate.report") / "schema-1.json"
    assert json.loads(schema.read_text())["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_the_compiled_program_is_in_the_wheel():
    """What carries out tables of system calls is shipped, and runs."""
    assert calls.works()


@pytest.mark.crate(memory="64m", hostname="wheel")
def test_a_crate():
    """A marked test runs in a crate."""
    assert socket.gethostname() == "wheel"


def test_a_sandbox(crate_sandbox):
    """The fixture runs a program."""
    assert crate_sandbox.run(["echo", "hello"]).stdout == "hello\n"
