"""Where benchmarks are run: environments with the peers, other people's tests and generated ones, kept in a cache."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.commands import CommandFailed, run

CHECKOUT = Path(__file__).parents[1]
_PLUGINS = Path(__file__).parent / "plugins"

PYTEST = "pytest==9.2.0"
# The newest that both peers work on: on 9.2 pytest-forked 1.7.5 and pytest-isolate 0.0.17 fail every test.
PEERS_PYTEST = "pytest==9.1.1"
FORKED = "pytest-forked==1.7.5"
ISOLATE = "pytest-isolate==0.0.17"
XDIST = "pytest-xdist==3.8.0"

SUITES: Mapping[str, tuple[str, ...]] = {
    "click": ("click==8.5.1",),
    "itsdangerous": ("itsdangerous==2.2.0", "freezegun"),
    "jinja2": ("jinja2==3.1.6", "trio"),
}
"""Suites of other people's, each with what its tests need; the first is the project."""


class Place:
    """A directory in the user's cache.

    :ivar say: tells the user what takes its time.
    """

    def __init__(self, directory: Path, say: Callable[[str], None]) -> None:
        self.directory = directory
        self.say = say
        directory.mkdir(parents=True, exist_ok=True)

    # -- environments ----------------------------------------------------------------------------

    @functools.cached_property
    def wheel(self) -> Path:
        """The wheel of this checkout, as it is now."""
        self.say("building the wheel")
        directory = self.directory / "wheel"
        shutil.rmtree(directory, ignore_errors=True)
        _pip(sys.executable, "wheel", "--no-deps", "-w", str(directory), str(CHECKOUT))
        (wheel,) = directory.glob("*.whl")
        return wheel

    @functools.cached_property
    def current(self) -> Path:
        """An interpreter with the newest pytest, the plugin and what the suites need."""
        return self._environment("current", PYTEST, XDIST, *_requirements(), plugin=True)

    @functools.cached_property
    def peers(self) -> Path:
        """The same with the newest pytest that the fork plugins work on, and these."""
        return self._environment("peers", PEERS_PYTEST, FORKED, ISOLATE, *_requirements(), plugin=True)

    @functools.cached_property
    def only_plugin(self) -> Path:
        """An interpreter with pytest and the plugin, and nothing else."""
        return self._environment("only-plugin", PYTEST, plugin=True)

    @functools.cached_property
    def bare(self) -> Path:
        """An interpreter with pytest alone."""
        return self._environment("bare", PYTEST, plugin=False)

    def _environment(self, name: str, *requirements: str, plugin: bool) -> Path:
        directory = self.directory / f"venv-{name}"
        python = directory / "bin" / "python"
        told = json.dumps([sys.version, sys.base_prefix, requirements])
        if _noted(directory, "installed") != told:
            self.say(f"installing {', '.join(requirements)}")
            shutil.rmtree(directory, ignore_errors=True)
            run([sys.executable, "-m", "venv", directory])
            _pip(python, "install", *requirements, *([str(self.wheel)] if plugin else []))
            _note(directory, "installed", told)
        if plugin:
            digest = hashlib.sha256(self.wheel.read_bytes()).hexdigest()
            if _noted(directory, "wheel") != digest:
                self.say(f"installing the wheel into venv-{name}")
                _pip(python, "install", "--no-deps", "--force-reinstall", str(self.wheel))
                _note(directory, "wheel", digest)
        (packages,) = directory.glob("lib/python*/site-packages")
        for module in _PLUGINS.glob("bench_*.py"):
            # Unchanged ones stay, so that their byte code does.
            if not (packages / module.name).exists() or (packages / module.name).read_text() != module.read_text():
                shutil.copy(module, packages)
        return python

    # -- tests -----------------------------------------------------------------------------------

    def suite(self, name: str) -> Path:
        """Return the directory of a project's source distribution, with its tests."""
        version = SUITES[name][0].partition("==")[2]
        directory = self.directory / f"suite-{name}-{version}"
        if not directory.exists():
            self.say(f"fetching {name} {version}")
            partial = self.directory / "partial"
            shutil.rmtree(partial, ignore_errors=True)
            # pip's only way to get a source distribution asks its build for the metadata; nothing is built.
            _pip(sys.executable, "download", "--no-deps", f"--no-binary={name}", "-d", str(partial), SUITES[name][0])
            (archive,) = partial.glob("*.tar.gz")
            with tarfile.open(archive) as tar:
                tar.extractall(partial / "source", filter="tar")
            (root,) = (partial / "source").iterdir()
            root.rename(directory)
            shutil.rmtree(partial)
        return directory

    def project(self, name: str, files: Mapping[str, str]) -> Path:
        """Return the directory of a generated project with these files, and an empty ini file."""
        directory = self.directory / f"project-{name}"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        for path, text in {"pytest.ini": "[pytest]\n", **files}.items():
            (directory / path).write_text(text)
        return directory

    def compile(self, source: str, name: str, *options: str) -> Path:
        """Compile a C program.

        :param source: its text.
        :raises CommandFailed: there is no C compiler, or it refuses.
        """
        directory = self.directory / "compiled"
        directory.mkdir(exist_ok=True)
        path, program = directory / f"{name}.c", directory / name
        told = json.dumps([source, options])
        if not program.exists() or _noted(directory, name) != told:
            path.write_text(source)
            run(["cc", "-O2", *options, "-o", program, path])
            _note(directory, name, told)
        return program


def default_cache(environ: Mapping[str, str]) -> Path:
    """Return the directory that everything is kept in between runs."""
    return Path(environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pytest-crate-benchmarks"


def _requirements() -> Sequence[str]:
    return [requirement for requirements in SUITES.values() for requirement in requirements]


def _pip(python: str | Path, *args: str) -> None:
    run([python, "-m", "pip", "--disable-pip-version-check", "-q", *args])


def _noted(directory: Path, name: str) -> str | None:
    path = directory / f"{name}.noted"
    return path.read_text() if path.exists() else None


def _note(directory: Path, name: str, text: str) -> None:
    (directory / f"{name}.noted").write_text(text)


__all__ = ["CHECKOUT", "CommandFailed", "Place", "default_cache"]
