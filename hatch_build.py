"""Builds the package: where there is a C compiler, with the program that carries out tables of system calls.

Without it the package works all the same, and is slower: docs/benchmarks.md.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = "pytest_crate/kernel/calls.c"
PROGRAM = "pytest_crate/kernel/calls"
# Those whose system calls calls.c can make.
MACHINES = ("x86_64", "aarch64")
# No C library, so that one program runs with every one.
OPTIONS = (
    "-std=c11 -Os -Wall -Wextra -ffreestanding -fno-builtin -fno-stack-protector -fno-asynchronous-unwind-tables "
    "-fcf-protection=none -nostdlib -static -no-pie -Wl,-z,noexecstack -Wl,--build-id=none -s"
).split()


class Hook(BuildHookInterface[Any]):
    """What hatchling calls before it makes a wheel, or an editable one."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the program, and name the machine that the wheel is then for."""
        if self.target_name != "wheel":
            return
        # An editable package is where its source is.
        program = Path(self.root, "" if version == "editable" else "build", PROGRAM)
        why = self._compile(program)
        if why:
            self.app.display_warning(f"pytest-crate is built without {PROGRAM}, and slower for it: {why}")
            return
        if version != "editable":
            build_data["force_include"][str(program)] = PROGRAM
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-manylinux_2_17_{platform.machine()}.musllinux_1_1_{platform.machine()}"

    def _compile(self, program: Path) -> str:
        """Compile it; return why it can't be."""
        if platform.system() != "Linux" or platform.machine() not in MACHINES:
            return f"it is not written for {platform.system()} on {platform.machine()}"
        compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            return "there is no C compiler; apt-get install gcc"
        program.parent.mkdir(parents=True, exist_ok=True)
        fresh = program.with_name(f"calls-{os.getpid()}")  # another build may be at work beside this one
        command = [*compiler.split(), *OPTIONS, "-o", str(fresh), str(Path(self.root, SOURCE))]
        try:
            subprocess.run(command, capture_output=True, text=True, check=True)
            fresh.replace(program)
        except subprocess.CalledProcessError as error:
            return f"{' '.join(command)} said: {error.stderr.strip()}"
        except OSError as error:
            return str(error)
        finally:
            fresh.unlink(missing_ok=True)
        return ""
