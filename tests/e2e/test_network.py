"""A new network namespace: its own loopback, and nothing of the host's."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_crate.errors import SandboxError
from pytest_crate.kernel import libc
from pytest_crate.kernel.capabilities import set_capabilities
from pytest_crate.kernel.network import add_addresses, allow_low_ports, loopback_up

if TYPE_CHECKING:
    from tests.e2e.conftest import RunCrated

pytestmark = [
    pytest.mark.needs("root"),
    # A fork with threads about, as in a worker of pytest-xdist, warns since Python 3.12; the children here are simple.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

LOW_PORTS = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")


def in_child(work: Callable[[], object]) -> Any:
    """Return what the work returns in a forked child, as JSON brings it; fail with its traceback."""
    receiving, sending = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = {"value": work()}
        except Exception:  # noqa: BLE001  (whatever it is, the parent shall show it)
            answer = {"error": traceback.format_exc()}
        os.write(sending, json.dumps(answer).encode())
        os._exit(0)
    os.close(sending)
    with open(receiving, "rb") as file:
        received = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert received, f"the child ended without an answer: {status}"
    answer = json.loads(received)
    assert "value" in answer, answer["error"]
    return answer["value"]


def round_trip(family: int, address: str) -> str:
    """Return what a client gets from a server that listens on an address in this process."""
    with socket.create_server((address, 0), family=family) as server:
        server.settimeout(10)

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"hello from " + address.encode())

        thread = threading.Thread(target=serve)
        thread.start()
        with socket.create_connection(server.getsockname()[:2], timeout=10) as client:
            answer = client.makefile().read()
        thread.join()
    return answer


def connect_error(address: tuple[str, int]) -> int:
    """Return the errno of connecting to an address, 0 for success."""
    with socket.socket() as client:
        client.settimeout(10)
        return client.connect_ex(address)


def bind_error(port: int) -> int:
    """Return the errno of listening on a port of 127.0.0.1, 0 for success."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        return error.errno or -1
    return 0


def interfaces() -> list[str]:
    """Return the names in /proc/net/dev, which shows the reader's network namespace."""
    lines = Path("/proc/self/net/dev").read_text(encoding="ascii").splitlines()[2:]
    return [line.split(":")[0].strip() for line in lines]


def test_loopback_serves_ipv4_and_ipv6() -> None:
    """In a new namespace, servers on 127.0.0.1 and ::1 are out of reach before and reached after, and lo is alone."""

    def work() -> object:
        libc.unshare("test", libc.CLONE_NEWNET)
        before = connect_error(("127.0.0.1", 9))
        loopback_up()
        return [
            before,
            connect_error(("127.0.0.1", 9)),
            round_trip(socket.AF_INET, "127.0.0.1"),
            round_trip(socket.AF_INET6, "::1"),
            interfaces(),
        ]

    assert in_child(work) == [
        errno.ENETUNREACH, errno.ECONNREFUSED, "hello from 127.0.0.1", "hello from ::1", ["lo"]
    ]  # fmt: skip


def test_the_hosts_server_is_unreachable() -> None:
    """A server on the host's loopback, reached by a child of the host's network, isn't there in a new one."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()

        def isolated() -> object:
            libc.unshare("test", libc.CLONE_NEWNET)
            loopback_up()
            return [connect_error(address), connect_error(("192.0.2.1", 80))]

        assert in_child(lambda: connect_error(address)) == 0
        assert in_child(isolated) == [errno.ECONNREFUSED, errno.ENETUNREACH]


def test_loopback_without_the_right_to_it() -> None:
    """A process without CAP_NET_ADMIN gets an error that names the step, not a network that is silently down."""

    def work() -> object:
        libc.unshare("test", libc.CLONE_NEWNET)
        set_capabilities(0)
        try:
            loopback_up()
        except SandboxError as error:
            return [error.step, error.errno]
        return None

    assert in_child(work) == ["bring the loopback interface up", errno.EPERM]


def test_low_ports_of_the_crate_only() -> None:
    """A user without capabilities can bind port 80 afterwards, in that namespace alone."""

    def work() -> object:
        libc.unshare("test", libc.CLONE_NEWNET)
        loopback_up()
        before = in_child(unprivileged)
        allow_low_ports()
        return [before, in_child(unprivileged)]

    def unprivileged() -> object:
        set_capabilities(0)
        return bind_error(80)

    host = LOW_PORTS.read_text(encoding="ascii")
    before, after = in_child(work)
    assert (before, after) == (errno.EACCES, 0)
    assert LOW_PORTS.read_text(encoding="ascii") == host


def configured(family: int, address: str) -> list[str]:
    """Return what an address resolves to for a client that asks for configured families only."""
    try:
        found = socket.getaddrinfo(address, 80, family, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG)
    except socket.gaierror as error:
        return [str(error.args[1])]
    return [str(address[0]) for *_, address in found]


def test_addresses_for_resolvers() -> None:
    """Only with addresses besides 127.0.0.1 and ::1 does AI_ADDRCONFIG find either; both work as before."""

    def work() -> object:
        libc.unshare("test", libc.CLONE_NEWNET)
        loopback_up()
        before = [configured(socket.AF_INET, "127.0.0.1"), configured(socket.AF_INET6, "::1")]
        add_addresses()
        return [
            before,
            [configured(socket.AF_INET, "127.0.0.1"), configured(socket.AF_INET6, "::1")],
            round_trip(socket.AF_INET, "127.0.0.1"),
            round_trip(socket.AF_INET6, "::1"),
            interfaces(),
        ]

    unknown = ["Name or service not known"]
    assert in_child(work) == [
        *([unknown, unknown], [["127.0.0.1"], ["::1"]]),
        *("hello from 127.0.0.1", "hello from ::1", ["lo"]),
    ]


def test_no_addresses_without_a_loopback_interface() -> None:
    """Without the right to change the network, the error names the call."""

    def work() -> object:
        libc.unshare("test", libc.CLONE_NEWNET)
        loopback_up()
        set_capabilities(0)
        try:
            add_addresses()
        except SandboxError as error:
            return [error.syscall, error.path, error.errno]
        return None

    assert in_child(work) == ["netlink", "RTM_NEWADDR lo 127.0.0.2", errno.EPERM]


@pytest.mark.needs("overlay")
def test_resolvers_in_a_crate(run_crated: RunCrated) -> None:
    """In a crate, a client that asks for configured families only finds both loopback addresses."""
    run = run_crated("""
        import socket, sys
        import pytest

        ASK = (
            "import socket; print([socket.getaddrinfo(host, 80, family, flags=socket.AI_ADDRCONFIG)[0][4][0]"
            " for host, family in (('127.0.0.1', socket.AF_INET), ('::1', socket.AF_INET6))])"
        )

        @pytest.mark.crate
        def test_body(capsys):
            exec(ASK)
            assert capsys.readouterr().out == "['127.0.0.1', '::1']\\n"

        @pytest.mark.crate
        def test_program(crate_sandbox):
            assert crate_sandbox.run([sys.executable, "-c", ASK], check=True).stdout == "['127.0.0.1', '::1']\\n"
    """)
    assert run.all_passed()
