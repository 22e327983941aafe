"""What processes of the run's hold, and others do not."""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_crate.sandbox import holders


@contextmanager
def _child(source: str, *arguments: str | Path, apart: bool = False) -> Iterator[None]:
    """Run Python in a child, or in a process that is no descendant, until the end of the block."""
    wait = "import os, sys\nprint(flush=True)\nsys.stdin.read()\n"
    source += "\n" + wait
    if apart:
        source = f"import os\nif os.fork(): os._exit(0)\nos.setsid()\n{source}"
    command = [sys.executable, "-c", source, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        if apart:
            process.wait()
        yield
        process.stdin.close()


OPEN = "import sys; file = open(sys.argv[1], 'w')"
HERE = "import os, sys; os.chdir(sys.argv[1])"
MAPPED = (
    "import mmap, os, sys; fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT); os.ftruncate(fd, 9); "
    "file = mmap.mmap(fd, 9); os.close(fd)"
)
BOUND = "import socket, sys; it = socket.socket(1); it.bind(sys.argv[1])"
BOUND_HERE = "import os, socket, sys; os.chdir(sys.argv[1]); it = socket.socket(1); it.bind('s')"


@pytest.mark.parametrize(
    ("source", "within"),
    [(OPEN, "file"), (HERE, ""), (MAPPED, "file"), (BOUND, "file")],
    ids="open cwd mapped bound".split(),
)
def test_a_child_holds_it(tmp_path: Path, source: str, within: str) -> None:
    """What a child has open, mapped, or is in, is held, and so is the directory just above it; nothing beside it."""
    directories = [str(tmp_path / name) for name in ("held", "beside")]
    for directory in directories:
        os.mkdir(directory)
    with _child(source, tmp_path / "held" / within):
        assert holders.held(directories) == {directories[0]}
        assert holders.held([str(tmp_path.parent)]) == set()
    assert holders.held(directories) == set()


@pytest.mark.parametrize("source", [OPEN, MAPPED], ids=["open", "mapped"])
def test_a_stranger_does_not(tmp_path: Path, source: str) -> None:
    """A process that is no descendant of this one, of the same user."""
    with _child(source, tmp_path / "file", apart=True):
        assert holders.held([str(tmp_path), str(tmp_path / "file")]) == set()


def test_this_process_holds_it(tmp_path: Path) -> None:
    """What is mapped though it has been closed."""
    with (tmp_path / "file").open("w+b") as file:
        file.truncate(9)
        mapped = mmap.mmap(file.fileno(), 9)
    assert holders.held([str(tmp_path / "file")]) == {str(tmp_path / "file")}
    mapped.close()
    assert holders.held([str(tmp_path / "file")]) == set()


def test_a_name_is_not_enough(tmp_path: Path) -> None:
    """What a child has open has been removed, and somebody else has made another of that name."""
    place = tmp_path / "file"
    with _child(OPEN, place):
        place.rename(tmp_path / "aside")
        place.touch()
        assert holders.held([str(place)]) == set()


@pytest.mark.needs("root")
def test_names_of_another_root_are_not_enough(tmp_path: Path) -> None:
    """A process with mounts of its own, as one in a crate, can have any name at all open: it holds nothing."""
    command = ["unshare", "--mount", "sleep", "60"]
    (tmp_path / "place").mkdir()
    with subprocess.Popen(command, cwd=tmp_path / "place") as process:
        while Path(f"/proc/{process.pid}/comm").read_text(encoding="ascii") != "sleep\n":
            os.sched_yield()
        assert holders.held([str(tmp_path / "place")]) == set()
        process.kill()


def test_bound_sockets(tmp_path: Path) -> None:
    """A child's by its relative name, this process' own by a name through a link; not a stranger's."""
    for name in ("child", "own", "stranger"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("own")
    with (
        _child(BOUND_HERE, tmp_path / "child"),
        _child(BOUND_HERE, tmp_path / "stranger", apart=True),
        socket.socket(socket.AF_UNIX) as own,
    ):
        own.bind(str(tmp_path / "link" / "s"))
        found = {path for path in holders.bound_sockets() if path.startswith(str(tmp_path))}
        assert found == {str(tmp_path / "child" / "s"), str(tmp_path / "own" / "s")}


def test_a_strangers_name_is_no_line_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One with line breaks is nobody's but the stranger's, and gives a socket of the run's no other name; that one is
    then taken for none, for which name is the true one can't be told."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as own, socket.socket(socket.AF_UNIX) as whole:
        own.bind("own")
        whole.bind("whole")
        names = ["a\nb c d e f g h i", f"b\n0: 2 0 0 1 1 {os.fstat(own.fileno()).st_ino} f"]
        with _child(BOUND, names[0], apart=True), _child(BOUND, names[1], apart=True):
            found = {path for path in holders.bound_sockets() if path.startswith(str(tmp_path))}
    assert found == {str(tmp_path / "whole")}
