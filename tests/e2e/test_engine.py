"""What holds for the crates of one launcher: pids used again, threads, forks, signals, and descriptors that run out."""

from __future__ import annotations

import fcntl
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_crate.errors import SandboxError
from pytest_crate.sandbox import host_view, rootfs, wire
from pytest_crate.sandbox.crate_sandbox import CrateSandbox
from pytest_crate.sandbox.program import CratePopen
from pytest_crate.sandbox.sandbox import Engine, LauncherEnded, Sandbox, _signals_held
from pytest_crate.spec import Layer, build_spec

SPEC = build_spec([Layer(origin="test", values={})])

pytestmark = pytest.mark.needs("root", "overlay")

PIDS_AGAIN = """
import subprocess, sys, time

sys.path.insert(0, sys.argv[1])
from pytest_crate.sandbox.sandbox import Engine
from tests.e2e.test_engine import crate_of

def start(box, *argv):
    return box.popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

engine = Engine()
one, other = crate_of(engine), crate_of(engine)
early = start(one, "true")
early.wait()
for before in (1, 2):  # a program is born by itself, or by a first process
    with open("/proc/sys/kernel/ns_last_pid", "w") as file:
        file.write(str(early.pid - before))
    late = start(other, "sleep", "20")
    if late.pid == early.pid:
        break
    late.kill()
    late.wait()
assert late.pid == early.pid
begun = time.monotonic()
one.close()
other.run(["true"], check=True)
assert time.monotonic() - begun < 15
assert late.poll() is None
other.close()
engine.close()
"""


def sandbox_of(engine: Engine) -> Sandbox:
    """Make a crate on the host's root."""
    view = host_view.program_view("/", rootless=engine.enforcement.rootless, environ=os.environ)
    return engine.create(SPEC, rootfs.plan_root(SPEC, view, rootfs=None))


def crate_of(engine: Engine) -> CrateSandbox:
    """Make a crate on the host's root, to run programs in."""
    return CrateSandbox(sandbox_of(engine), SPEC, name="crate")


def start(crate: CrateSandbox, *argv: str) -> CratePopen:
    null = subprocess.DEVNULL
    return crate.popen(argv, stdin=null, stdout=null, stderr=null, cwd="/")


def launcher_of(engine: Engine) -> psutil.Process:
    (found,) = [child for child in psutil.Process().children() if child.name() == "crate-launcher"]
    return found


def descriptors(process: str = "self") -> int:
    return len(os.listdir(f"/proc/{process}/fd"))


def test_the_time_of_a_crate_that_has_ended(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it comes, before the crate is removed, it is nobody's: the launcher and its other crates go on."""
    sandbox, other = sandbox_of(engine), crate_of(engine)
    crate = CrateSandbox(sandbox, SPEC, name="crate")
    start(crate, "sleep", "100")
    tell = engine.tell

    def tell_late(message: Mapping[str, object], *, launcher: int) -> None:
        time.sleep(1)
        tell(message, launcher=launcher)

    sandbox.set_deadline(time.monotonic() + 0.7)
    monkeypatch.setattr(engine, "tell", tell_late)
    assert crate.close().exceeded == ()
    assert other.run(["echo", "here"], cwd="/").stdout == "here\n"
    other.close()


def test_a_pid_that_is_used_again(tmp_path: Path) -> None:
    """A crate that is closed does not wait for another's program, with the pid that one of its own had."""
    script = tmp_path / "script.py"
    script.write_text(PIDS_AGAIN)
    project = Path(__file__).parents[2]
    subprocess.run(
        ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, str(script), str(project)],
        check=True,
        cwd=project,
        timeout=60,
    )


@pytest.mark.parametrize(
    "wait",
    [lambda program: program.wait(10), lambda program: program.communicate(timeout=10)],
    ids=["wait", "communicate"],
)
def test_threads_that_wait_for_one_program(engine: Engine, wait: Callable[[CratePopen], object]) -> None:
    """Each is told of its end, and none of another end than it had."""
    crate = crate_of(engine)
    for _ in range(40):
        program = start(crate, "sh", "-c", "exit 3")
        failed: list[BaseException] = []

        def watch(program: CratePopen = program, failed: list[BaseException] = failed) -> None:
            try:
                while program.poll() is None:
                    pass
                wait(program)
            except BaseException as error:  # noqa: BLE001 - a thread's own end would only be a warning
                failed.append(error)

        def wait_only(program: CratePopen = program, failed: list[BaseException] = failed) -> None:
            try:
                wait(program)
            except BaseException as error:  # noqa: BLE001 - likewise
                failed.append(error)

        threads = [threading.Thread(target=work) for work in (watch, wait_only, wait_only, wait_only)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (failed, program.returncode, program.exit.code) == ([], 3, 3)
    crate.close()


def test_a_time_beyond_all_numbers(engine: Engine) -> None:
    """It is refused as what it is, and the program is left alone."""
    crate = crate_of(engine)
    program = start(crate, "sleep", "100")
    with pytest.raises(OverflowError):
        program.communicate(timeout=10**400)
    assert program.poll() is None
    crate.close()


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"cwd": "/etc\0/x"}, ValueError, "cwd: a null character"),
        ({"cwd": b"/etc"}, TypeError, "cwd must be a string"),
        ({"cwd": "/\ud800"}, ValueError, r"cwd: '/\\ud800' can't be written as utf-8: surrogates not allowed"),
        ({"env": {"A": "\ud800"}}, ValueError, "env: .*surrogates not allowed"),
        ({"stdout": subprocess.STDOUT}, ValueError, "only stderr can be where stdout is"),
    ],
)
def test_what_is_no_path_or_text(engine: Engine, options: dict[str, Any], error: type[Exception], reason: str) -> None:
    """It is refused in the test's own terms, before anything is asked of the launcher, which lives on."""
    crate = crate_of(engine)
    with pytest.raises(error, match=reason):
        crate.popen(["true"], **options)
    with pytest.raises(ValueError, match=r"argv: .*surrogates not allowed"):
        crate.run(["echo", "\ud800"])
    with pytest.raises(ValueError, match="input: can't be written as utf-8"):
        crate.run(["cat"], input="\ud800")
    with pytest.raises(ValueError, match="path: a null character"):
        crate.read_bytes("/etc/passwd\0.txt")
    assert crate.run(["printf", "%s", "\udcff"], cwd="/", text=False).stdout == b"\xff"
    crate.close()


def test_a_stream_that_pytest_has_not(engine: Engine) -> None:
    """What can't be inherited, for it is closed here, is named."""
    crate = crate_of(engine)
    kept = os.dup(0)
    os.close(0)
    try:
        with pytest.raises(ValueError, match="stdin: descriptor 0 is not open"):
            crate.popen(["true"])
    finally:
        os.dup2(kept, 0)
        os.close(kept)
    crate.close()


def test_a_file_that_does_not_fit(engine: Engine) -> None:
    """What could not be written whole is an error of the engine's, that names the file."""
    spec = build_spec([Layer(origin="test", values={"tmpfs": "4m"})])
    view = host_view.program_view("/", rootless=engine.enforcement.rootless, environ=os.environ)
    crate = CrateSandbox(engine.create(spec, rootfs.plan_root(spec, view, rootfs=None)), spec, name="crate")
    for count in (16 << 20, 1):  # at once, and when the file is closed
        with pytest.raises(SandboxError, match=r"write\(/tmp/full\d+\): No space left on device"):
            crate.write_bytes(f"/tmp/full{count}", bytes(count))
    crate.close()


@pytest.mark.parametrize("held", [False, True], ids=["", "while another thread asks"])
@pytest.mark.parametrize("what", ["runs a program", "makes a crate"])
def test_a_fork_of_the_test(engine: Engine, what: str, *, held: bool) -> None:
    """It is told that the crate is not its own; the test's requests are answered as ever."""
    crate = crate_of(engine)
    reading, writing = os.pipe()
    lock = engine._lock  # noqa: SLF001 - as another thread would
    if held:
        lock.acquire()
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(20)
            crate.run(["true"], cwd="/") if what == "runs a program" else crate_of(engine)
        except SandboxError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    if held:
        lock.release()
    another = crate_of(engine)
    assert another.run(["echo", "here"], cwd="/").stdout == "here\n"
    another.close()
    for number in range(10):
        assert crate.run(["echo", str(number)], cwd="/").stdout == f"{number}\n"
    os.waitpid(pid, 0)
    with open(reading) as told:
        assert "the crate belongs to the process that this one was forked from" in told.read()
    assert crate.run(["echo", "again"], cwd="/").stdout == "again\n"
    crate.close()


KILLED_IN_A_REQUEST = """
import os, signal, sys, time

sys.path.insert(0, sys.argv[1])
from pytest_crate.sandbox.sandbox import Engine
from tests.e2e.test_engine import crate_of, launcher_of, start

engine = Engine()
start(crate_of(engine), "sleep", "100")
launcher = launcher_of(engine).pid
if os.fork() == 0:  # a worker of multiprocessing's has the launcher's socket, too
    sys.stdin.read()
    os._exit(0)
os.kill(launcher, signal.SIGSTOP)  # it is busy
print(launcher, flush=True)
engine.ask({"request": "signal", "much": "x" * (4 << 20)}, launcher=launcher)
"""


def test_pytest_is_killed_in_the_midst_of_a_request(tmp_path: Path) -> None:
    """The launcher ends, and its crates, though a fork of pytest's that lives on keeps their socket open."""
    script = tmp_path / "script.py"
    script.write_text(KILLED_IN_A_REQUEST)
    project = Path(__file__).parents[2]
    command = [sys.executable, str(script), str(project)]
    with subprocess.Popen(command, cwd=project, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as killed:
        assert killed.stdout is not None
        launcher = psutil.Process(int(killed.stdout.readline()))
        while psutil.Process(killed.pid).status() != psutil.STATUS_SLEEPING:
            time.sleep(0.01)  # it does when it has sent as much as there is room for
        killed.kill()
        killed.wait()
        launcher.resume()
        _, alive = psutil.wait_procs([launcher, *launcher.children()], timeout=10)
        assert not alive


def test_a_handler_that_raises_when_a_request_is_sent(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer is not taken for the next one's. A mask doesn't keep the signal from pytest's other threads."""
    crate = crate_of(engine)
    send = wire.send_frame

    def send_and_raise(*args: object) -> None:
        send(*args)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(wire, "send_frame", send_and_raise)
        with pytest.raises(KeyboardInterrupt):
            start(crate, "true")
    with pytest.raises(LauncherEnded):
        start(crate, "true")
    with pytest.raises(LauncherEnded):
        crate.close()
    another = crate_of(engine)
    assert another.run(["echo", "here"], cwd="/").stdout == "here\n"
    another.close()


def test_a_handler_that_raises_when_the_launcher_is_started(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """That one is given up: the next use starts another, and knows what enforces crates."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(wire, "receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            print(engine.enforcement)
    crate = crate_of(engine)
    assert crate.run(["echo", "here"], cwd="/").stdout == "here\n"
    crate.close()


def test_a_signal_that_is_held_while_a_crate_is_made(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its handler raises, nobody gets the crate, and nothing of it is left."""

    class Alarm(Exception):
        pass

    def ring(*_: object) -> None:
        raise Alarm

    crate_of(engine).close()
    before, answer_of = descriptors(), engine._answer_of  # noqa: SLF001 - in the midst of it

    def answered(number: int, mask: set[int]) -> object:
        answer = answer_of(number, mask)
        signal.pthread_kill(threading.get_ident(), signal.SIGALRM)  # another thread would not hold it
        return answer

    handler = signal.signal(signal.SIGALRM, ring)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(engine, "_answer_of", answered)
            with pytest.raises(Alarm):
                crate_of(engine)
    finally:
        signal.signal(signal.SIGALRM, handler)
    assert descriptors() == before
    launcher = launcher_of(engine)
    start(another := crate_of(engine), "true")  # what is asked after the removal is answered after it
    inits = [child.name() for child in launcher.children() if child.name() == "crate-init"]
    another.close()
    assert len(inits) == 1


def test_a_signal_that_has_come_before_signals_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its handler raises when they are held already: then they are let go, and the next Ctrl-C, or alarm, comes."""
    mask = signal.pthread_sigmask
    held: list[set[int]] = []

    def mask_and_raise(how: int, signals: Iterable[int]) -> set[int]:
        before = mask(how, signals)
        if how == signal.SIG_BLOCK and signals and not held:
            held.append({*mask(signal.SIG_BLOCK, ())})
            raise KeyboardInterrupt  # as _signal.pthread_sigmask() does after the call (signalmodule.c)
        return {*before}

    before = mask(signal.SIG_BLOCK, ())
    with monkeypatch.context() as patch:
        patch.setattr(signal, "pthread_sigmask", mask_and_raise)
        with pytest.raises(KeyboardInterrupt), _signals_held():
            raise AssertionError
    assert held[0] > before
    assert mask(signal.SIG_SETMASK, before) == before


def test_what_was_used_is_known_where_the_launcher_dies_at_the_very_end(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has been read by then."""
    sandbox = sandbox_of(engine)
    assert CrateSandbox(sandbox, SPEC, name="crate").run(["true"], cwd="/").returncode == 0
    tell = engine.tell

    def tell_nobody(message: Mapping[str, object], *, launcher: int) -> None:
        launcher_of(engine).kill()
        psutil.Process(launcher).wait()
        tell(message, launcher=launcher)

    monkeypatch.setattr(engine, "tell", tell_nobody)
    assert sandbox.close().memory_peak_bytes


def test_many_programs_on_pytests_own_streams(engine: Engine) -> None:
    """What is kept of each stream until the crate's end does not grow with the number of programs."""
    crate = crate_of(engine)
    before = descriptors()
    for _ in range(20):
        with crate.popen(["true"], cwd="/"):
            pass
    assert descriptors() <= before + 3
    crate.close()
    assert descriptors() < before


def test_flags_that_an_earlier_program_has_set(engine: Engine, tmp_path: Path) -> None:
    """What is set back is what was there before the first program, and nothing is once the crate is closed."""
    with (tmp_path / "output").open("w") as output:
        saved = os.dup(1)
        os.dup2(output.fileno(), 1)
        try:
            crate = crate_of(engine)
            script = (
                "import fcntl, os, time; fcntl.fcntl(1, fcntl.F_SETFL, os.O_NONBLOCK); os.close(0); time.sleep(100)"
            )
            hostile = crate.popen([sys.executable, "-S", "-c", script], cwd="/", stdin=subprocess.PIPE)
            assert hostile.stdin is not None
            poll = select.poll()
            poll.register(hostile.stdin, 0)
            assert poll.poll(30_000)  # nobody is at its other end any more
            assert fcntl.fcntl(1, fcntl.F_GETFL) & os.O_NONBLOCK
            later = crate.popen(["true"], cwd="/")
            crate.close()
            assert not fcntl.fcntl(1, fcntl.F_GETFL) & os.O_NONBLOCK
            fcntl.fcntl(1, fcntl.F_SETFL, os.O_NONBLOCK)
            later.close()
            hostile.close()
            assert fcntl.fcntl(1, fcntl.F_GETFL) & os.O_NONBLOCK
        finally:
            os.dup2(saved, 1)
            os.close(saved)


def test_a_launcher_with_too_many_open_files(engine: Engine) -> None:
    """It says so, and its crates live on."""
    crate = crate_of(engine)
    running = start(crate, "sleep", "100")
    running.send_signal(0)  # when that is answered, what came with the request before is closed
    launcher = launcher_of(engine)
    limits = launcher.rlimit(resource.RLIMIT_NOFILE)
    most = descriptors(str(launcher.pid)) + 2
    launcher.rlimit(resource.RLIMIT_NOFILE, (most, limits[1]))
    before = descriptors()
    for _ in range(3):
        with pytest.raises(SandboxError, match=r"too many files open.*ulimit -n"):
            start(crate, "true")
    assert (descriptors(), descriptors(str(launcher.pid))) == (before, most - 2)
    launcher.rlimit(resource.RLIMIT_NOFILE, limits)
    assert running.poll() is None
    assert crate.run(["echo", "here"], cwd="/").stdout == "here\n"
    crate.close()
