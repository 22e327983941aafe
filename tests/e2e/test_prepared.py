"""A crate that is begun ahead of its time is used only if it is what is asked for."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from pytest_crate.sandbox import host_view, rootfs
from pytest_crate.sandbox.crate_sandbox import CrateSandbox
from pytest_crate.sandbox.design import Order
from pytest_crate.sandbox.mounts import Operation
from pytest_crate.sandbox.sandbox import Engine, Sandbox
from pytest_crate.spec import CrateSpec, Layer, build_spec
from tests.leftovers import leftover_cgroups

if TYPE_CHECKING:
    from tests.e2e.conftest import RunCrated

pytestmark = pytest.mark.needs("root", "overlay")


def spec_of(**keys: object) -> CrateSpec:
    return build_spec([Layer(origin="test", values=keys)])


def plan(spec: CrateSpec, engine: Engine) -> tuple[Operation, ...]:
    view = host_view.program_view("/", rootless=engine.enforcement.rootless, environ=os.environ)
    return rootfs.plan_root(spec, view, rootfs=None)


def crates() -> set[str]:
    """Return the names of crates that have a control group."""
    return {path.name for run in leftover_cgroups() for path in Path(run).iterdir() if path.is_dir()}


def await_crates(before: set[str], count: int) -> set[str]:
    """Wait until there are so many crates more than before; return their names."""
    end = time.monotonic() + 30
    while len(found := crates() - before) != count:
        assert time.monotonic() < end, found
        time.sleep(0.01)
    return found


def name_of(process: psutil.Process) -> str:
    """Return a process's name; an empty one if it has ended meanwhile, as those do that bear inits."""
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def await_ready() -> None:
    """Wait until the crate that was begun is whole: its init then closes every descriptor."""
    end = time.monotonic() + 30
    while True:
        inits = [child.pid for child in psutil.Process().children(recursive=True) if name_of(child) == "crate-init"]
        if inits and not os.listdir(f"/proc/{inits[0]}/fd"):
            return
        assert time.monotonic() < end
        time.sleep(0.01)


def run(sandbox: Sandbox, spec: CrateSpec, *argv: str) -> str:
    crate = CrateSandbox(sandbox, spec, name="crate")
    try:
        return str(crate.run(argv, check=True, cwd="/").stdout)
    finally:
        crate.close()


def test_it_is_handed_out(engine: Engine) -> None:
    """The crate asked for is the one prepared, and none is made besides; without another, the next is a new one."""
    spec = spec_of(hostname="ahead")
    operations = plan(spec, engine)
    before = crates()
    engine.prepare(spec, operations)
    engine.prepare(spec, operations)
    (name,) = await_crates(before, 1)
    sandbox = engine.create(spec, operations)
    assert crates() - before == {name}
    assert run(sandbox, spec, "uname", "-n") == "ahead\n"
    await_crates(before, 0)
    again = engine.create(spec, operations)
    assert crates() - before not in ({name}, set())
    again.close()


def test_several_are_handed_out(engine: Engine) -> None:
    """One after the other, each once; of those that are left none is used for something else."""
    spec, other = spec_of(hostname="ahead"), spec_of(hostname="other")
    before = crates()
    engine.prepare(spec, plan(spec, engine), count=3)
    engine.prepare(spec, plan(spec, engine), count=3)
    ahead = await_crates(before, 3)
    for left in (2, 1):
        sandbox = engine.create(spec, plan(spec, engine))
        assert crates() - before == ahead
        assert run(sandbox, spec, "hostname") == "ahead\n"
        ahead = await_crates(before, left)
    assert run(engine.create(other, plan(other, engine)), other, "hostname") == "other\n"
    await_crates(before, 0)


def test_another_is_asked_for(engine: Engine) -> None:
    """A crate that is not what is asked for is removed."""
    first, second = spec_of(hostname="first"), spec_of(hostname="second", pids=7)
    before = crates()
    engine.prepare(first, plan(first, engine))
    (name,) = await_crates(before, 1)
    sandbox = engine.create(second, plan(second, engine))
    assert name not in crates() - before
    assert run(sandbox, second, "uname", "-n") == "second\n"
    await_crates(before, 0)
    engine.prepare(first, plan(first, engine))
    engine.prepare(second, plan(second, engine))
    # Requests are met in their order: the first one's crate is gone.
    sandbox = engine.create(second, plan(second, engine))
    assert len(crates() - before) == 1
    sandbox.close()


def test_two_at_once(engine: Engine) -> None:
    """Of two that are begun before either is ready, each is what it was asked to be."""
    specs = [spec_of(hostname=name) for name in ("first", "second")]
    designs = [Order.of(spec, plan(spec, engine)) for spec in specs]
    channel = engine._start()  # noqa: SLF001
    numbers = [engine._begin(channel, design) for design in designs]  # noqa: SLF001
    for number, spec in zip(numbers, specs, strict=True):
        answer, descriptors = engine._answer_of(number, set())  # noqa: SLF001
        for descriptor in descriptors:
            os.close(descriptor)
        command = ["nsenter", "--uts", "--target", str(answer["init"]), "hostname"]
        assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == f"{spec.hostname}\n"
        engine._discard(number)  # noqa: SLF001


def test_a_source_is_replaced(engine: Engine, tmp_path: Path) -> None:
    """Where another file has taken the place of one that the crate shows, a new crate shows the new one."""
    shown = tmp_path / "shown"
    shown.write_text("old")
    spec = spec_of(mounts=[f"{shown}:/shown"])
    engine.prepare(spec, plan(spec, engine))
    await_ready()
    (tmp_path / "other").write_text("new")
    (tmp_path / "other").rename(shown)
    assert run(engine.create(spec, plan(spec, engine)), spec, "cat", "/shown") == "new"


def test_its_time_begins_when_it_is_asked_for(engine: Engine) -> None:
    """A crate that was begun long before has the whole of its timeout left."""
    spec = spec_of(timeout=3)
    operations = plan(spec, engine)
    engine.prepare(spec, operations)
    await_ready()
    time.sleep(3.2)
    sandbox = engine.create(spec, operations, timed=True)
    assert run(sandbox, spec, "echo", "in time") == "in time\n"
    assert not sandbox.watch().timed_out


def test_one_that_fails(engine: Engine, tmp_path: Path) -> None:
    """What can't be prepared says nothing; asked for, it says why."""
    spec = spec_of(tmpfs="4k")
    engine.prepare(spec, plan(spec, engine))
    with pytest.raises(Exception, match="tmpfs=4 KiB is too small"):
        engine.create(spec, plan(spec, engine))
    assert run(engine.create(spec_of(), plan(spec_of(), engine)), spec_of(), "echo", "on") == "on\n"


def test_a_server_that_is_started_anew(run_crated: RunCrated) -> None:
    """A module's server on a unix socket of the same path as the module's before: each test reaches its own."""
    result = run_crated(
        """
        import os, socket, threading
        import pytest

        @pytest.fixture(scope="class")
        def server(request):
            path = f"/tmp/pytest-crate-test-{os.getpid()}.socket"
            listening = socket.socket(socket.AF_UNIX)
            listening.bind(path)
            listening.listen()
            def serve():
                while True:
                    try:
                        peer, _ = listening.accept()
                    except OSError:
                        return
                    peer.sendall(request.cls.__name__.encode())
                    peer.close()
            thread = threading.Thread(target=serve)
            thread.start()
            yield path
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()
            listening.close()
            os.unlink(path)

        class Reaches:
            @pytest.mark.parametrize("number", range(3))
            def test_it(self, server, number):
                with socket.socket(socket.AF_UNIX) as peer:
                    peer.connect(server)
                    assert peer.recv(100).decode() == type(self).__name__

        class TestOne(Reaches): pass
        class TestTwo(Reaches): pass
        """,
        "--crate-all",
    )
    assert result.result.parseoutcomes()["passed"] == 6


def test_how_many_are_prepared(run_crated: RunCrated) -> None:
    """While a program runs, the crates of the two tests after it are begun if both want one like it."""
    result = run_crated(
        """
        import os, time
        import psutil
        import pytest

        def name_of(process):
            try:
                return process.name()
            except psutil.NoSuchProcess:
                return ""

        def crates():
            return sum(name_of(each) == "crate-init" for each in psutil.Process().children(recursive=True))

        def expect(count):
            end = time.monotonic() + 30
            while crates() != count:
                assert time.monotonic() < end, crates()
                time.sleep(0.01)

        def test_first_of_three(crate_sandbox): expect(3)
        def test_second_of_three(crate_sandbox): expect(2)
        def test_last_of_three(crate_sandbox): expect(2)
        @pytest.mark.crate(hostname="other")
        def test_of_another_spec(crate_sandbox): expect(2)
        @pytest.mark.crate
        def test_of_a_body(): pass
        def test_without_one_after(crate_sandbox): expect(1)
        """
    )
    assert result.result.parseoutcomes()["passed"] == 6
