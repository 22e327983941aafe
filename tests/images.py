"""Small images that tests make: some directories, and the libraries of an interpreter that is to run there."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

_SHOW_LIBRARIES = """
import importlib, sys
importlib.import_module(sys.argv[1])
print(*sorted({line.split()[-1] for line in open("/proc/self/maps") if ".so" in line}), sep="\\n")
"""


def libraries_of(python: str, directory: Path, module: str) -> list[str]:
    """Return the shared libraries that an interpreter takes to import a module, and its dynamic linker's name.

    On an image crates add them for an interpreter outside of ``/usr``; the system's own needs them in the image.
    """
    command = [python, "-c", _SHOW_LIBRARIES, module]
    listing = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=True).stdout
    return [path for path in listing.split() if path.startswith("/usr/lib")]


def make_image(path: Path, *members: tarfile.TarInfo, libraries: Sequence[str] = ()) -> None:
    """Make a small image: some directories, and what else is given."""
    with tarfile.open(path, "w") as archive:
        for library in libraries:
            archive.add(library)
            # The names by which programs ask for it.
            for link in Path(library).parent.glob(f"{Path(library).name.partition('.so')[0]}.so*"):
                if link.is_symlink() and str(link.resolve()) == library:
                    archive.add(link)
        if libraries:
            for name in ("lib", "lib64"):
                archive.add(f"/{name}", recursive=False)
            for linker in Path("/lib64").glob("ld-linux*"):
                archive.add(linker, f"usr/lib64/{linker.name}")
        for name in ("etc", "usr", "usr/bin", "tmp", "home"):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(directory)
        for member in members:
            archive.addfile(member, io.BytesIO(b"") if member.isfile() else None)
