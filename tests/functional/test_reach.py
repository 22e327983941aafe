"""A test that fails because it reaches out of its crate is told so in one line; nothing else about it changes."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.inner import BothWays, InnerRun, RunInner

NO_NETWORK = "this crate has no network; network='host' opens it"


def _crate_section(run: InnerRun, name: str, when: str = "call") -> list[str]:
    """Return the texts of the sections on a test's crate."""
    return [text for title, text in run.of(name, when)["sections"] if title == "Crate"]


@pytest.fixture
def host_server() -> Iterator[int]:
    """A server on the host's loopback interface; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def host_file() -> Iterator[Path]:
    """A file in /tmp that is none of the inner run's."""
    path = Path(f"/var/tmp/crate-reach-{os.getpid()}")
    path.write_text("of the host")
    yield path
    path.unlink()


def test_network(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A name that can't be looked up, or an address without a route, is a network that isn't there."""
    pytester.makepyfile(
        """
        import asyncio, pytest, socket

        def test_name(): socket.getaddrinfo("crate.invalid", 80)

        def test_address(): socket.create_connection(("192.0.2.1", 80), timeout=5)

        def test_wrapped():
            try:
                socket.create_connection(("192.0.2.1", 80), timeout=5)
            except OSError as error:
                raise RuntimeError("service down") from error

        def test_group():
            async def connect(): await asyncio.open_connection("192.0.2.1", 80)
            async def both():
                async with asyncio.TaskGroup() as group:
                    group.create_task(connect())
            asyncio.run(both())

        @pytest.fixture
        def service(): socket.create_connection(("192.0.2.1", 80), timeout=5)

        def test_fixture(service): pass

        @pytest.fixture
        def leaving():
            yield
            socket.create_connection(("192.0.2.1", 80), timeout=5)

        def test_teardown(leaving): pass

        def test_other(): raise OSError(9, "not of the network")
        """
    )
    run = run_inner("--crate-all")
    for name in ("name", "address", "wrapped", "group"):
        assert _crate_section(run, f"test_{name}") == [NO_NETWORK]
    assert _crate_section(run, "test_fixture", "setup") == [NO_NETWORK]
    assert _crate_section(run, "test_teardown", "teardown") == [NO_NETWORK]
    assert _crate_section(run, "test_other") == []
    assert NO_NETWORK in run.text


@pytest.mark.skipif(pytest.version_tuple < (9,), reason="subtests came with pytest 9")
def test_network_in_a_subtest(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A subtest's failure is told of where it is reported."""
    pytester.makepyfile(
        """
        import socket

        def test_it(subtests):
            with subtests.test("inner"): socket.create_connection(("192.0.2.1", 80), timeout=5)
        """
    )
    run = run_inner("--crate-all")
    (inner,) = [report for report in run.reports if report["kind"] == "SubtestReport"]
    assert ["Crate", NO_NETWORK] in inner["sections"]


def test_open_network_is_not_missed(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """With the host's network nothing is said of a network."""
    pytester.makepyfile("def test_it(): import errno; raise OSError(errno.ENETUNREACH, 'of its own')")
    assert _crate_section(run_inner("--crate-all"), "test_it") == [NO_NETWORK]
    assert _crate_section(run_inner("--crate-all", "--crate-network=host"), "test_it") == []


def test_a_server_of_the_host(pytester: pytest.Pytester, run_inner: RunInner, host_server: int) -> None:
    """A refused connection is the crate's doing only where somebody listens on the host."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    pytester.makepyfile(
        f"""
        import asyncio, socket

        def test_open(): socket.create_connection(("127.0.0.1", {host_server}))
        def test_async(): asyncio.run(asyncio.open_connection("127.0.0.1", {host_server}))
        def test_closed(): socket.create_connection(("127.0.0.1", {closed}))
        """
    )
    run = run_inner("--crate-all")
    line = (
        f"port {host_server} is open on the host; this crate has a network of its own; network='host' opens the host's"
    )
    assert _crate_section(run, "test_open") == [line]
    assert _crate_section(run, "test_async") == [line]
    assert _crate_section(run, "test_closed") == []


def test_a_hidden_file(pytester: pytest.Pytester, run_inner: RunInner, host_file: Path, tmp_path: Path) -> None:
    """A file that is missing in the crate alone is named, with the mount that opens it, and the mount does."""
    (tmp_path / "home" / "settings").write_text("of the user")
    pytester.makepyfile(
        here="",
        test_it=f"""
        import os, pathlib, subprocess

        def test_file(): open({str(host_file)!r})
        def test_program(): subprocess.run([{str(host_file)!r}])
        def test_home(): (pathlib.Path.home() / "settings").read_text()
        def test_missing(): open("/var/tmp/crate-reach-nowhere")
        def test_removed():
            os.unlink("here.py")
            open("here.py")
        """,
    )
    run = run_inner("--crate-all")
    line = f"{host_file} is there on the host, and hidden in this crate; mounts={[str(host_file)]!r} opens it"
    assert _crate_section(run, "test_file") == [line]
    assert _crate_section(run, "test_program") == [line]
    assert _crate_section(run, "test_home") == [line.replace(str(host_file), str(tmp_path / "home" / "settings"))]
    assert _crate_section(run, "test_missing") == []
    assert _crate_section(run, "test_removed") == []
    assert run_inner("--crate-all", f"--crate-mount={host_file}", "-k", "test_file").outcomes()["passed"] == 1


def test_nothing_else_changes(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """Outcomes and texts of such failures are those of a plain run; what is expected to fail is told nothing."""
    pytester.makepyfile(
        """
        import errno, pytest

        class Odd(OSError):
            filename = property(lambda self: 1 / 0)
            errno = errno.ENOENT

        @pytest.mark.xfail
        def test_expected(): raise OSError(errno.ENETUNREACH, "unreachable")

        def test_odd(): raise Odd()

        def test_file(): open("/nowhere/at/all")
        """
    )
    run = both_ways()
    assert run.outcomes() == {"failed": 2, "xfailed": 1}
    assert NO_NETWORK not in run.text
