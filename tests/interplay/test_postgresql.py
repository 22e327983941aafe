"""pytest-postgresql: one real server outside, reached from crates without network by its unix socket."""

from __future__ import annotations

import pytest

from tests.conftest import pg_ctl
from tests.inner import BothWays, RunInner

pytestmark = pytest.mark.needs("postgresql")

# PostgreSQL's programs refuse to be root: they get another user, and directories of its own.
CONFTEST = """
import os, pathlib, pwd, shutil, tempfile
import pytest
from pytest_postgresql import factories

PG_CTL = {pg_ctl!r}

def load(**connection):
    import psycopg
    with psycopg.connect(**connection) as link:
        link.execute("create table notes (text text)")
        link.execute("insert into notes values ('loaded')")

# As wider fixtures make directories: in /tmp, where each crate has them.
place = tempfile.mkdtemp(prefix="pg")
control = pathlib.Path(place, "pg_ctl")
if os.geteuid() == 0:
    os.chown(place, *pwd.getpwnam("postgres")[2:4])
    control.write_text(
        "#!/bin/sh\\n"
        "# The data directory's parents are root's own.\\n"
        f'cd / && exec setpriv --reuid=postgres --regid=postgres --clear-groups {{PG_CTL}} "$@"\\n'
    )
    control.chmod(0o755)
else:
    control.symlink_to(PG_CTL)

@pytest.fixture(scope="session")
def tmp_path_factory(tmp_path_factory):
    class Factory:
        getbasetemp = tmp_path_factory.getbasetemp
        def mktemp(self, name):
            made = pathlib.Path(tempfile.mkdtemp(dir=place))
            os.chown(made, *os.stat(place)[4:6])
            return made
    return Factory()

# Started and waited for by TCP; used by its socket.
postgresql_proc = factories.postgresql_proc(executable=str(control), unixsocketdir=place, port=None)
postgresql_noproc = factories.postgresql_noproc(host=place, depends_on="postgresql_proc", load=[load])
postgresql = factories.postgresql("postgresql_noproc")

def pytest_unconfigure(): shutil.rmtree(place)
"""

SUITE = """
import os, socket
import pytest

def texts(link): return sorted(row[0] for row in link.execute("select text from notes").fetchall())

def test_writes(postgresql):
    postgresql.execute("insert into notes values ('own')")
    postgresql.commit()
    assert texts(postgresql) == ["loaded", "own"]
@pytest.mark.parametrize("number", range(2))
def test_sees_nothing_of_it(postgresql, number): assert texts(postgresql) == ["loaded"]
def test_fails(postgresql): assert texts(postgresql) == []
@pytest.mark.parametrize("number", range(2))
def test_one_server(postgresql, number, tmp_path_factory):
    started = tmp_path_factory.getbasetemp() / "started"
    (when,) = postgresql.execute("select pg_postmaster_start_time()::text").fetchone()
    if number: assert started.read_text() == when
    else: started.write_text(when)
"""

INSIDE = """
import socket
def test_no_network(postgresql):
    assert [name for _, name in socket.if_nameindex()] == ["lo"]
    assert postgresql.execute("select 1").fetchone() == (1,)
"""


def test_postgresql(pytester: pytest.Pytester, both_ways: BothWays, run_inner: RunInner) -> None:
    """Databases made from its template for each test, by connections through the socket of a session-wide server."""
    pytester.makeconftest(CONFTEST.format(pg_ctl=pg_ctl()))
    pytester.makepyfile(test_notes=SUITE)
    run = both_ways("-rA", plugins=["pytest_postgresql"])
    assert run.outcomes() == {"passed": 5, "failed": 1}
    pytester.makepyfile(test_notes=INSIDE)
    inside = run_inner("--crate-all", plugins=["pytest_postgresql"], way="crated")
    assert inside.outcomes() == {"passed": 1}
