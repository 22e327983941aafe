from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pytest_crate.plugin import measured
from pytest_crate.plugin.imports import MOST_MODULES, preload
from pytest_crate.report.hints import preload_hints

WATCH = """
import sys, threading, traceback
sys.path.insert(0, sys.argv[1])
from pytest_crate.plugin.imports import ImportTimes
times = ImportTimes()
if sys.argv[2] == "measured":
    times.start()
"""


def _run(tmp_path: Path, program: str, how: str = "measured", **modules: str) -> str:
    """Run a program in whose process imports are measured; return what it prints."""
    for name, source in modules.items():
        tmp_path.joinpath(f"{name}.py").write_text(source)
    command = [sys.executable, "-c", WATCH + program, str(tmp_path), how]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2]).stdout


def test_preload_names_what_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that is not there, or that raises, is named with its error; one that is there is imported."""
    monkeypatch.syspath_prepend(tmp_path)
    tmp_path.joinpath("crate_raises.py").write_text("raise RuntimeError('no')\n")
    tmp_path.joinpath("crate_good.py").write_text("")
    with pytest.raises(
        pytest.UsageError, match=r"crate_preload: 'crate_absent' can't be imported: ModuleNotFoundError"
    ):
        preload(["crate_good", "crate_absent"])
    assert sys.modules.pop("crate_good").__name__ == "crate_good"
    with pytest.raises(pytest.UsageError, match=r"'crate_raises' can't be imported: RuntimeError: no"):
        preload(["crate_raises"])


def test_times_of_outermost_imports(tmp_path: Path) -> None:
    """What was asked for is measured with what it imports; what is there already, or fails, or is cheap, is not."""
    printed = _run(
        tmp_path,
        """
import slow, quick, sys
from pytest_crate.plugin import imports
imports._LEAST_USEC = 50_000  # where much else runs, an empty module takes more than the least that counts
try: import broken
except ValueError: pass
import slow
taken = times.take()
__import__("importlib").reload(slow)
print(list(taken), 100_000 <= taken["slow"] < 10_000_000, times.take())
""",
        slow="import inner, time; time.sleep(0.1)",
        inner="import time; time.sleep(0.1)",
        quick="",
        broken="import time; time.sleep(0.1); raise ValueError",
    )
    assert printed == "['slow'] True {}\n"


def test_other_threads_are_not_measured(tmp_path: Path) -> None:
    """An import in another thread works, and is nobody's cost."""
    program = "thread = threading.Thread(target=lambda: __import__('slow')); thread.start(); thread.join()\n"
    assert _run(
        tmp_path, program + "print('slow' in sys.modules, times.take())", slow="import time; time.sleep(0.1)"
    ) == ("True {}\n")


@pytest.mark.parametrize("way", ["exec(f'import {name}')", "importlib.import_module(name)", "__import__(name)"])
def test_tracebacks_are_as_ever(tmp_path: Path, way: str) -> None:
    """A failed import has the frames in its traceback, Python's own machinery's, that it has where nobody measures."""
    program = f"""
import importlib
for name in ("absent", "broken", "around"):
    try:
        {way}
    except Exception as error:
        print([frame.name for frame in traceback.extract_tb(error.__traceback__)])
"""
    modules = {"broken": "raise ValueError", "around": "import broken"}
    printed = _run(tmp_path, program, **modules)
    assert printed == _run(tmp_path, program, "as it is", **modules)
    assert printed.count("\n") == 3


def test_names_that_are_no_identifiers(tmp_path: Path) -> None:
    """Of a module with any other name the import is measured, and told of if the name can be printed as one word."""
    names = ["of-file17-0-0", "two words", "\x1b[31m"]
    printed = _run(
        tmp_path,
        f"""
import importlib
from pytest_crate.plugin import imports, measured
imports._LEAST_USEC = 0
times.take()
for name in {names}:
    importlib.import_module(name)
print(list(measured.checked_imports(times.take())))
""",
        **dict.fromkeys(names, ""),
    )
    assert printed == "['of-file17-0-0']\n"


@pytest.mark.parametrize(
    "told",
    [
        None,
        [],
        {"": 1},
        {"a b": 1},
        {"a\n": 1},
        {"\x1b[2J": 1},
        {"a": -1},
        {"a": True},
        {"a": "1"},
        {f"m{n}": 1 for n in range(MOST_MODULES + 1)},
    ],
)
def test_forged_imports(told: object) -> None:
    """What is no list of imports is refused."""
    with pytest.raises(ValueError, match="no figure"):
        measured.checked_imports(told)


def test_forged_steps() -> None:
    """A step that there isn't is refused; those that there are are taken."""
    with pytest.raises(ValueError, match="no figure"):
        measured.checked_steps({"\x1b[2J": 1})
    assert measured.checked_steps({"call": 5}) == {"call": 5}


def test_hints() -> None:
    """A module is hinted at if it would save a second or more in three crates or more; the dearest comes first."""
    imports = (
        [{"numpy": 212_000, "cheap": 2_000, "dear": 900_000}] * 3 + [{"numpy": 210_000}] * 38 + [{"once": 9_000_000}]
    )
    assert [str(hint) for hint in preload_hints(imports)] == [
        "hint: 41 crates imported numpy, 210 ms each; crate_preload = numpy imports it once",
        "hint: 3 crates imported dear, 900 ms each; crate_preload = dear imports it once",
    ]
    assert preload_hints(imports)[0].to_json() == {
        "kind": "preload",
        "module": "numpy",
        "crates": 41,
        "import_usec": 210_000,
    }
    assert preload_hints([]) == []
