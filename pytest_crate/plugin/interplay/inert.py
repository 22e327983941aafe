"""Files that a test has made are kept outside only where no later run would execute them."""

from __future__ import annotations

import importlib.machinery
from pathlib import Path

import pytest

_MODULES = (*importlib.machinery.all_suffixes(), ".pth")
# Where pytest looks for its configuration (its documentation, "Configuration file formats"); conftest is a module.
_CONFIGURATIONS = frozenset(
    ("pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml", "tox.ini", "setup.cfg", "pyproject.toml")
)


def verify_inert(item: pytest.Item, path: Path, content: bytes) -> None:
    """Verify that a file is nothing that Python imports, that pytest takes for tests, or that the system runs.

    :param path: where it is to be, by a test that has this content for it.
    :raises ValueError: it is.
    """
    name = path.name.lower()
    if name.endswith(_MODULES):
        raise ValueError(f"{path} would be a module of Python's: what a test makes is not kept where it could be run")
    if name in _CONFIGURATIONS:
        raise ValueError(f"{path} would be a configuration of pytest's: a test makes none")
    if path.is_file() and path.stat().st_mode & 0o111:
        raise ValueError(f"{path} is executable: a test doesn't change what it holds")
    verify_no_tests(item, path, content)


def verify_no_tests(item: pytest.Item, path: Path, content: bytes) -> None:
    """Verify that the next run would find no tests in a file, by pytest's and its plugins' own rules.

    :raises ValueError: it would.
    """
    if item.config.rootpath not in path.parents and item.path.parent not in path.parents:
        return  # reports may be kept anywhere
    doctest = item.config.pluginmanager.get_plugin("doctest")
    for collector in item.ihook.pytest_collect_file(file_path=path, parent=item.session):
        # test_it.txt, as file_regression has it for a test of that name, is a file of doctests: most often of none.
        of_text = type(collector) is getattr(doctest, "DoctestTextfile", None)
        if not of_text or ">>>" in content.decode(item.config.getini("doctest_encoding"), "replace"):
            raise ValueError(f"the next run would take {path} for tests: a test makes none")
