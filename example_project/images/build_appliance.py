"""Build the image "appliance": a root filesystem with a few of the host's own programs."""

from __future__ import annotations

import filecmp
import io
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

IMAGE = Path(__file__).with_name("appliance.tar")
PROGRAMS = ("sh", "cat", "ls", "sleep", "uname")
FILES = {
    "etc/os-release": 'NAME="Logbook Appliance"\nID=appliance\nVERSION_ID=1\n',
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": "root:x:0:\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/logbook.conf": "[summary]\ntop = 1\n",
}


def shared_libraries(program: str) -> list[str]:
    """Return the libraries, and the dynamic linker, that ldd(1) names; none for a static program."""
    completed = subprocess.run(["ldd", program], stdout=subprocess.PIPE, text=True, check=False)
    return re.findall(r"(/\S+) \(0x", completed.stdout)


def contents() -> dict[str, bytes]:
    """Return the image's files by their path in it."""
    files = {path: text.encode() for path, text in FILES.items()}
    for name in PROGRAMS:
        program = shutil.which(name)
        if program is None:
            raise SystemExit(f"{name}: not found in PATH")
        files[f"bin/{name}"] = Path(program).read_bytes()
        for library in shared_libraries(program):
            files[library.lstrip("/")] = Path(library).read_bytes()
    return files


def build(image: Path) -> None:
    """Write the image. The same host gives the same bytes; then the file stays as it is, and is extracted only once."""
    files = contents()
    directories = {"dev", "proc", "sys", "tmp", "root", "run", "var/tmp"}
    directories |= {str(parent) for path in [*files, "var/tmp"] for parent in Path(path).parents} - {"."}
    partial = image.with_name(f"{image.name}.{os.getpid()}")
    with tarfile.open(partial, "w") as archive:
        for directory in sorted(directories):
            member = tarfile.TarInfo(directory)
            member.type = tarfile.DIRTYPE
            member.mode = 0o1777 if directory in ("tmp", "var/tmp") else 0o755
            archive.addfile(member)
        for path, data in sorted(files.items()):
            member = tarfile.TarInfo(path)
            member.size = len(data)
            member.mode = 0o644 if path.startswith("etc/") else 0o755
            archive.addfile(member, io.BytesIO(data))
    if image.exists() and filecmp.cmp(partial, image, shallow=False):
        partial.unlink()
    else:
        partial.replace(image)


if __name__ == "__main__":
    build(IMAGE)
