"""A program on its way into a crate, and what a hostile one that is there already can do to it."""

from __future__ import annotations

import ast
import os
import re
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_crate.kernel import calls, hierarchies

if TYPE_CHECKING:
    from tests.escape.conftest import RunHere

pytestmark = pytest.mark.needs("root", "overlay", "calls")

WATCHER = textwrap.dedent("""
    import ctypes, os, time
    trace = ctypes.CDLL(None, use_errno=True).ptrace
    last, end, caught = os.getpid(), time.monotonic() + 20, []
    print("ready", flush=True)
    while time.monotonic() < end and not os.path.exists("/tmp/over"):
        try:
            os.kill(last + 1, 0)
        except OSError:
            continue
        last += 1
        while (answer := trace(0x4206, last, 0, 0)) == -1 and ctypes.get_errno() != 3:  # PTRACE_SEIZE, ESRCH
            pass
        if answer == 0:
            try:
                caught.append(os.path.basename(os.readlink(f"/proc/{last}/exe")))
            except OSError as error:
                caught.append(str(error))
            os.waitpid(last, 0)  # its end, which its parent is told afterwards
    print(caught)
""")

# A PATH of places that aren't there keeps the second program for a while between its confinement and execve(2).
SOURCE = f"""
    import subprocess, sys
    import pytest

    @pytest.mark.crate
    def test_drives(crate_sandbox):
        watcher = crate_sandbox.popen([sys.executable, "-S", "-c", {WATCHER!r}], stdout=subprocess.PIPE)
        assert watcher.stdout.readline() == "ready\\n"
        long_way = {{"PATH": "/x:" * 10_000 + "/usr/bin:/bin"}}
        for _ in range(2):
            crate_sandbox.run(["sleep", "0.1"], env=long_way, timeout=20)
        crate_sandbox.run(["touch", "/tmp/over"])
        print("caught", watcher.communicate()[0])
"""


def caught_by_the_watcher(text: str) -> set[str]:
    """Return the programs that the watcher could attach to."""
    (listing,) = re.findall(r"^caught (\[.*\])$", text, re.MULTILINE)
    return set(ast.literal_eval(listing))


FORKED = "from pytest_crate.kernel import calls; calls.works = lambda: False"
"""Where there was no compiler, an entering process is a fork of the launcher's."""

WAYS = pytest.mark.parametrize(("without", "before"), [("", "memfd:calls"), (FORKED, "python")], ids=["born", "forked"])
"""How a program enters, and what is executed by the process that does so."""


@WAYS
def test_it_cannot_be_traced_before_it_runs(run_here: RunHere, without: str, before: str) -> None:
    """Its equals in the crate can't attach to it, nor open the host's program that it still runs, until it has
    become the program (CVE-2016-9962, CVE-2019-5736)."""
    caught = caught_by_the_watcher(run_here(SOURCE, without=without))
    assert "sleep" in caught  # what it may trace, the program itself, it catches
    assert not [name for name in caught if name.startswith(before)]


@WAYS
def test_without_being_hidden_it_can(run_here: RunHere, without: str, before: str) -> None:
    """Without that protection the same watcher catches it while it still runs the host's program."""
    unhidden = "from pytest_crate.sandbox import child; child.hide = lambda **_: None"
    caught = caught_by_the_watcher(run_here(SOURCE, without=f"{without or 'pass'}; {unhidden}"))
    assert [name for name in caught if name.startswith(before)]


LOOKER = textwrap.dedent("""
    import os, sys, time
    def text(pid, name):
        with open(f"/proc/{pid}/{name}") as file:
            return file.read()
    last, end, seen = os.getpid(), time.monotonic() + 20, {"looked": 0}
    print("ready", flush=True)
    while time.monotonic() < end and not os.path.exists("/tmp/over"):
        try:
            os.kill(last + 1, 0)
        except OSError:
            continue
        last += 1
        try:
            seen["mounts"] = text(last, "mountinfo") != text("self", "mountinfo") or seen.get("mounts", False)
            seen["network"] = sys.argv[1] in text(last, "net/unix") or seen.get("network", False)
            seen["looked"] += 1
        except OSError:
            pass  # it has ended
    print("seen", seen, flush=True)
""")

LOOKED_THROUGH = f"""
    import os, socket, subprocess, sys
    import pytest

    DECOY = f"pytest-crate-decoy-{{os.getpid()}}"
    listening = socket.socket(socket.AF_UNIX)
    listening.bind("\\0" + DECOY)  # in the host's network namespace
    LOOKER = [sys.executable, "-S", "-c", {LOOKER!r}, DECOY]

    @pytest.mark.crate
    def test_program(crate_sandbox):
        looker = crate_sandbox.popen(LOOKER, stdout=subprocess.PIPE)
        assert looker.stdout.readline() == "ready\\n"
        for _ in range(2):
            crate_sandbox.run(["true"])
        crate_sandbox.run(["touch", "/tmp/over"])
        print(looker.communicate()[0])
"""

SLOWLY = """
from pytest_crate.kernel import libc, namespaces
from pytest_crate.sandbox import child
enter, take = child.enter, namespaces.NamespaceHandles.enter
def slowly(entry, *args, call=libc.syscall, **keywords):
    call("wait", "ppoll", None, 0, libc.Words((0, 300_000_000)), None, 0)
    enter(entry, *args, call=call, **keywords)
child.enter = slowly
"""
"""Who enters takes its time when it has been born."""

HALF_BORN = f"""
{SLOWLY}
def late(entry, *args, call=libc.syscall, **keywords):
    slowly(entry, *args, call=call, **keywords)
    take(entry.namespaces, call=call)
child.enter = late
namespaces.NamespaceHandles.enter = lambda *_, **__: None
"""

HALF_FORKED = f"""
{SLOWLY}
bear = namespaces._bear_sibling
def late(handles, *args):
    joined = bear(handles, *args)
    time.sleep(0.3)
    take(handles)
    return joined
import time
namespaces._bear_sibling = late
namespaces.NamespaceHandles.enter = lambda *_, **__: None
"""


def seen_through_it(printed: str) -> dict[str, int]:
    (seen,) = re.findall(r"^seen (.+)$", printed, re.MULTILINE)
    return dict(ast.literal_eval(seen))


@WAYS
def test_nothing_of_the_hosts_is_seen_through_it(run_here: RunHere, without: str, before: str) -> None:
    """What /proc shows of a process to those who may not trace it, its network and its mounts, are the crate's from
    when it can be seen there at all."""
    printed = run_here(LOOKED_THROUGH, without=f"{without or 'pass'}\n{SLOWLY}")
    seen = seen_through_it(printed)
    assert seen.pop("looked") >= 2, printed
    assert seen == {"mounts": False, "network": False}


@pytest.mark.parametrize("without", [HALF_BORN, f"{FORKED}\n{HALF_FORKED}"], ids=["born", "forked"])
def test_half_inside_it_shows_the_hosts(run_here: RunHere, without: str) -> None:
    """Born in the crate's PID namespace alone, it shows both."""
    seen = seen_through_it(run_here(LOOKED_THROUGH, without=without))
    assert seen.pop("looked") >= 2
    assert seen == {"mounts": True, "network": True}


KEEPER = textwrap.dedent("""
    import os, time
    def lives(pid):
        try:
            os.kill(pid, 0)
        except OSError:
            return False
        return True
    last, end, kept = os.getpid(), time.monotonic() + 40, None
    print("ready", flush=True)
    while time.monotonic() < end and kept is None:
        # Some come and go while others have the processor.
        last, before = next(filter(lives, range(last + 1, last + 50)), last), last
        while last != before:
            try:
                found = os.open(f"/proc/{last}/exe", os.O_RDONLY)
            except PermissionError:
                continue  # it is hidden yet
            except OSError:
                break  # it has ended
            name = os.readlink(f"/proc/self/fd/{found}")
            if "calls" in name:
                kept = name
                os.chmod(f"/proc/self/fd/{found}", 0o4777)
            break
    print("kept", kept)
""")

NAMED_BY_A_LINK = f"""
    import subprocess, sys
    import pytest

    @pytest.mark.crate
    def test_drives(crate_sandbox):
        keeper = crate_sandbox.popen([sys.executable, "-S", "-c", {KEEPER!r}], stdout=subprocess.PIPE)
        assert keeper.stdout.readline() == "ready\\n"
        crate_sandbox.run(["ln", "-s", "/proc/self/exe", "/tmp/program"], check=True)
        while keeper.poll() is None:
            crate_sandbox.run(["/tmp/program"])
        print(keeper.communicate()[0])
"""


def test_the_program_that_enters_is_nothing_of_the_hosts(run_here: RunHere, tmp_path: Path) -> None:
    """What is executed may be a link to /proc/self/exe, which is then in the crate's hands: it is a copy, and the
    host's file keeps its mode (CVE-2019-5736)."""
    program = tmp_path / "calls"
    shutil.copy(calls.PROGRAM, program)
    program.chmod(0o755)
    printed = run_here(
        NAMED_BY_A_LINK, without=f"from pytest_crate.kernel import calls; calls.PROGRAM = {str(program)!r}"
    )
    assert "kept /memfd:calls (deleted)" in printed, printed
    assert program.stat().st_mode & 0o7777 == 0o755


LED_ASTRAY = """
    import pytest
    from pytest_crate import SandboxError

    @pytest.mark.crate
    def test_drives(crate_sandbox, crate_sandbox_factory):
        other = crate_sandbox_factory()
        crate_sandbox.run(["sh", "-c", "for n in $(seq 0 63); do ln -s /proc/self/fd/$n /tmp/to-$n; done"], check=True)
        entered = []
        for number in range(64):
            try:
                crate_sandbox.run(["true"], cwd=f"/tmp/to-{number}")
            except SandboxError as error:
                assert error.errno in (2, 20), error  # it isn't there, or is no directory
            else:
                entered.append(number)
        print("entered", entered)
"""


@pytest.fixture
def born_in_cgroup() -> Iterator[list[str]]:
    """Options with which programs are born in their control groups: of version 2, also where that has no limits."""
    mounts = hierarchies.parse_mountinfo(Path("/proc/self/mountinfo").read_text())
    second = [mount.point for mount in mounts if mount.version == 2]
    if not second or not any(mount.version == 1 for mount in mounts):
        yield []
        return
    directory = Path(second[0], f"pytest-crate-test-{os.getpid()}")
    directory.mkdir()
    yield ["-o", f"crate_cgroup_parent={directory}"]
    directory.rmdir()


@pytest.mark.parametrize("without", ["", FORKED], ids=["born", "forked"])
def test_its_directory_leads_nowhere_else(run_here: RunHere, born_in_cgroup: list[str], without: str) -> None:
    """A working directory that is a link to one of its descriptors, be it of its control group's or of another crate's
    root, leads nowhere: it has none of a directory by then (CVE-2024-21626)."""
    printed = run_here(LED_ASTRAY, without=without, args=born_in_cgroup)
    assert "entered []" in printed, printed


BODY_LED_ASTRAY = """
    import os
    import pytest

    @pytest.fixture(scope="module")
    def elsewhere(tmp_path_factory):
        # A wider fixture's: a body has it, too. An image's /there is a link to it.
        there = os.open(tmp_path_factory.mktemp("there"), os.O_PATH | os.O_DIRECTORY)
        os.dup2(there, 60)
        yield
        os.close(60)

    @pytest.fixture(scope="module", autouse=True)
    def link(elsewhere, pytestconfig):
        os.symlink("/proc/self/fd/60", pytestconfig.rootpath / "there")

    @pytest.mark.crate(workdir="WORKDIR")
    def test_body():
        print("in", os.getcwd())
"""


def test_a_bodys_directory_leads_nowhere_else(run_here: RunHere, pytester: pytest.Pytester) -> None:
    """A working directory that is a link to one of pytest's descriptors is refused to a body, whoever made the link."""
    printed = run_here(BODY_LED_ASTRAY.replace("WORKDIR", str(pytester.path / "there")))
    assert "enter the working directory: " in printed, printed
    assert "1 error" in printed, printed


STOPPER = textwrap.dedent("""
    import os, signal, sys, time
    last, end, number = os.getpid(), time.monotonic() + 60, int(sys.argv[1])
    print("ready", flush=True)
    while time.monotonic() < end:
        try:
            os.kill(last + 1, number)
        except OSError:
            continue
        if sys.argv[2] == "once":
            last += 1
""")

STOPPED = f"""
    import contextlib, subprocess, sys, time
    import pytest
    from pytest_crate import SandboxError

    @pytest.mark.crate
    def test_drives(crate_sandbox, crate_sandbox_factory):
        other = crate_sandbox_factory(timeout=3)
        sleeping = other.popen(["sleep", "100"])
        stopper = crate_sandbox.popen([sys.executable, "-S", "-c", {STOPPER!r}, "19", "always"], stdout=subprocess.PIPE)
        assert stopper.stdout.readline() == "ready\\n"
        began = time.monotonic()
        with EXPECTED:
            crate_sandbox.run(["sleep", "0.1"], env={{"PATH": "/x:" * 20_000 + "/usr/bin:/bin"}}, timeout=15)
        assert time.monotonic() - began < 20
        assert sleeping.wait(5) == -9 and other.close().exceeded == ("timeout",)
        stopper.kill()
        assert crate_sandbox_factory().run(["echo", "x"]).stdout == "x\\n"

    @pytest.mark.crate
    @pytest.mark.parametrize("number, code", [(19, 0), (9, -9)])
    def test_once(crate_sandbox, number, code):
        command = [sys.executable, "-S", "-c", {STOPPER!r}, str(number), "once"]
        stopper = crate_sandbox.popen(command, stdout=subprocess.PIPE)
        assert stopper.stdout.readline() == "ready\\n"
        done = crate_sandbox.run(["sleep", "0.01"], env={{"PATH": "/x:" * 20_000 + "/usr/bin:/bin"}}, timeout=20)
        assert done.returncode == code
"""


@pytest.mark.parametrize(
    ("without", "expected"),
    [
        # Who is fast has entered by then, or is stopped as a program.
        ("", "contextlib.suppress(SandboxError, subprocess.TimeoutExpired)"),
        (FORKED, "pytest.raises(SandboxError, match='a process in the crate stops it')"),
    ],
    ids=["born", "forked"],
)
def test_it_cannot_be_held_up_for_long(run_here: RunHere, without: str, expected: str) -> None:
    """A program that stops whoever enters its crate gets them refused, within seconds, and no other crate waits; one
    signal is survived, or is the program's end."""
    printed = run_here(STOPPED.replace("EXPECTED", expected), without=without)
    assert "3 passed" in printed, printed


SLOW = """
from pytest_crate.kernel import libc
from pytest_crate.sandbox import init
prepare = init.prepare_base
def wait_first(size_bytes, *, call):
    call("wait", "ppoll", None, 0, libc.Words((4, 0)), None, 0)
    prepare(size_bytes, call=call)
init.prepare_base = wait_first
"""

TIMED = """
    import subprocess, threading, time

    def test_drives(crate_sandbox_factory):
        ended = []
        def wait(program):
            program.stdout.read()
            ended.append(time.monotonic())

        sleeping = crate_sandbox_factory(timeout=1).popen(["sleep", "100"], stdout=subprocess.PIPE)
        thread = threading.Thread(target=wait, args=[sleeping])
        thread.start()
        crate_sandbox_factory()
        made = time.monotonic()
        thread.join()
        print("ended", made - ended[0] > 1)
"""


def test_an_init_that_is_slow_holds_no_other_crate_up(run_here: RunHere) -> None:
    """While the launcher waits for an init to get ready, the time of the other crates runs."""
    printed = run_here(TIMED, without=SLOW)
    assert "ended True" in printed, printed
