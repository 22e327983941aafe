"""An image of the place's own programs, and a file that nothing in a crate may change."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CONTENT = "as it was\n"


def _libraries(program: str) -> list[str]:
    listed = subprocess.run(["ldd", program], stdout=subprocess.PIPE, text=True, check=False)
    return re.findall(r"(/\S+) \(0x", listed.stdout)


def _build_image(path: Path) -> None:
    files = {
        "etc/os-release": b"ID=place\n",
        "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1::/:/bin/sh\n",
        "etc/group": b"root:x:0:\ndaemon:x:1:\n",
    }
    for name in ("sh", "cat", "id"):
        program = shutil.which(name)
        assert program is not None
        for file in (program, *_libraries(program)):
            files[f"bin/{name}" if file == program else file.lstrip("/")] = Path(file).read_bytes()
    with tarfile.open(path, "w") as archive:
        for directory in ("proc", "dev", "sys", "tmp", "root"):
            member = tarfile.TarInfo(directory)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(member)
        for file, data in sorted(files.items()):
            member = tarfile.TarInfo(file)
            member.size, member.mode = len(data), 0o755
            archive.addfile(member, io.BytesIO(data))


def pytest_configure(config: pytest.Config) -> None:
    """Build the image before markers name it."""
    _build_image(HERE / "image.tar")
    (HERE / "kept.txt").write_text(CONTENT)


@pytest.fixture(scope="session", autouse=True)
def untouched() -> Iterator[None]:
    """What crates wrote into the project must not be there at the end."""
    yield
    assert (HERE / "kept.txt").read_text() == CONTENT
    assert not (HERE / "new.txt").exists()
