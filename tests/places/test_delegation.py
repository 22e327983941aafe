"""What a run does with control groups of version 2 that are not its own: nothing that stays."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Mapping
from typing import Any

import pytest

from tests.guest.image import USER, VENV
from tests.guest.machine import Guest
from tests.places.place import PROJECT

SCOPE = "systemd-run --user --scope --quiet --property=Delegate=yes"
PYTEST = f"{VENV}/bin/python -B -m pytest -p no:cacheprovider"
TESTS = """
    import pathlib, pytest

    def test_outside():
        print("pytest is in", pathlib.Path("/proc/self/cgroup").read_text().strip())

    @pytest.mark.crate(memory="64m", cpus=0.5, pids=20)
    def test_modest():
        pass

    @pytest.mark.crate(memory="64m")
    def test_too_much():
        bytearray(200 << 20)
"""
MODEST = "1 failed, 2 passed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """What a script printed, and the reports that it left."""

    output: str
    reports: Mapping[str, Any]


@pytest.fixture
def seen(guest: Guest, request: pytest.FixtureRequest) -> Any:
    """Run a script as the user, in a directory with the tests; afterwards no control group of ours may be left."""
    directory = f"/home/{USER}/{request.node.name.partition('[')[0]}"

    def run(script: str, *, user: str = USER) -> Seen:
        guest.run(f"rm -rf {directory}; mkdir {directory}", user=USER)
        guest.run(f"cat >{directory}/test_it.py", user=USER, stdin=textwrap.dedent(TESTS).encode())
        done = guest.run(f"cd {directory}; {textwrap.dedent(script)}", user=user)
        print(done.stdout, done.stderr)
        found = guest.run(f"cd {directory}; tail -v -n +1 *.json 2>/dev/null", user=USER).stdout
        reports = {}
        for part in found.split("==> ")[1:]:
            name, _, text = part.partition(" <==\n")
            reports[name] = json.loads(text)
        # systemd removes a scope when it has seen that it is empty.
        left = guest.run(
            "for i in 1 2 3 4 5 6 7 8 9 10; do find /sys/fs/cgroup -name 'pytest-crate*' >/tmp/left; "
            "[ -s /tmp/left ] || break; sleep 1; done; cat /tmp/left"
        )
        assert left.stdout == ""
        return Seen(output=done.stdout, reports=reports)

    return run


@pytest.mark.long
def test_pytest_stays_where_it_is(seen: Any) -> None:
    """Where its own manager started pytest, a scope is asked for, and pytest itself is not moved."""
    found = seen(
        f"systemd-run --user --wait --pipe --quiet --collect --unit=own-job --working-directory=$PWD {PYTEST} -s"
    )
    assert "cgroup v2 (systemd scope), rootless" in found.output
    assert "app.slice/own-job.service\n" in found.output
    assert MODEST in found.output


@pytest.mark.long
def test_a_login_session_is_left_by_pytest(seen: Any) -> None:
    """Of a login session, which is root's, pytest is moved into the scope: its children could not enter it else."""
    found = seen(f"{PYTEST} -s")
    assert "cgroup v2 (systemd scope), rootless" in found.output
    assert ".scope/pytest-crate-processes\n" in found.output
    assert MODEST in found.output


def test_two_runs_in_one_delegated_scope(seen: Any) -> None:
    """Two runs share the leaf; the shell that started them is back in the scope itself when both have ended, and its
    controllers are off again."""
    found = seen(f"""
        {SCOPE} bash -c '
            {PYTEST} --basetemp=one --crate-report=one.json >one.txt 2>&1 & first=$!
            {PYTEST} --basetemp=two --crate-report=two.json >two.txt 2>&1 & second=$!
            wait $first $second
            cat one.txt two.txt
            own=/sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)
            echo "shell is in $own"
            echo "controllers: [$(cat $own/cgroup.subtree_control)]"
            find $own -mindepth 1 -type d
        '
    """)
    assert found.output.count("cgroup v2 (delegated cgroup), rootless") == 2
    assert found.output.count(MODEST) == 2
    assert "controllers: []\n" in found.output
    assert "pytest-crate-processes" not in found.output
    assert set(found.reports) == {"one.json", "two.json"}


@pytest.mark.long
def test_workers(seen: Any) -> None:
    """Each xdist worker has control groups of its own."""
    found = seen(f"{PYTEST} -n 2 --crate-report=crates.json")
    assert MODEST in found.output
    tests = {test["nodeid"]: test for test in found.reports["crates.json"]["tests"]}
    assert tests["test_it.py::test_too_much"]["crates"][0]["exceeded"] == ["memory"]


@pytest.mark.parametrize("prefix", ["", pytest.param(SCOPE, marks=pytest.mark.long)], ids=["session", "delegated"])
def test_killed_runs_leave_nothing(seen: Any, prefix: str) -> None:
    """After SIGKILL of pytest nothing is left, wherever the control groups were."""
    script = f"""
        cat >test_it.py <<'END'
        import os, signal, pytest

        @pytest.mark.crate(memory="64m")
        def test_modest():
            pass

        def test_kill():
            os.kill(os.getpid(), signal.SIGKILL)
        END
        sed -i 's/^        //' test_it.py
        {prefix} {PYTEST}; echo "status $?"
        sleep 3
    """
    assert "status 137" in seen(script).output


@pytest.mark.long
@pytest.mark.parametrize(
    ("parent", "message"),
    [
        ("/nowhere", "the configured cgroup '/nowhere' does not exist"),
        ("/system.slice", "the cgroup is not delegated to this user (/sys/fs/cgroup/system.slice)"),
        ("/user.slice/user-1000.slice/user@1000.service/init.scope", "nobody but root may move processes"),
    ],
)
def test_configured_parent_that_is_none(seen: Any, parent: str, message: str) -> None:
    """One that isn't there ends the run at its start; one that can't be used is the reason why limits are refused."""
    found = seen(f"{PYTEST} -o crate_cgroup_parent={parent} 2>&1")
    assert message in found.output
    assert "passed" not in found.output.replace("1 passed", "")


@pytest.mark.long
def test_a_limit_beyond_the_outer_one(seen: Any) -> None:
    """More than the scope around pytest allows is refused, with both numbers."""
    found = seen(f"{SCOPE} --property=MemoryMax=60M --property=TasksMax=200 {PYTEST} -k modest")
    assert "64 MiB is asked for, and /sys/fs/cgroup/" in found.output
    assert "memory.max around it allows 60 MiB" in found.output
    assert "1 error" in found.output


VANISHING = """
    import os, pathlib, pytest

    def own():
        # Not systemd's scope around it, in which pytest may be.
        found = pathlib.Path("/sys/fs/cgroup").rglob("pytest-crate-[0-9]*")
        return [path for path in found if path.is_dir() and path.suffix != ".scope"]

    @pytest.mark.crate(memory="64m")
    def test_before():
        pass

    def test_vanishes():
        for path in own():
            for leaf in path.iterdir():
                if leaf.is_dir():
                    leaf.rmdir()
            path.rmdir()

    @pytest.mark.crate(memory="64m")
    def test_after():
        open("ran", "w")

    def test_plain():
        assert not os.path.exists("ran") and own() == []
"""


@pytest.mark.parametrize("prefix", ["", pytest.param(SCOPE, marks=pytest.mark.long)], ids=["session", "delegated"])
def test_the_runs_own_vanishes(seen: Any, prefix: str) -> None:
    """A crate after that is refused with the path that isn't there; other tests run, and nothing is left."""
    found = seen(f"""
        cat >test_it.py <<'END'\n{textwrap.dedent(VANISHING)}\nEND
        {prefix} {PYTEST} -p no:rerunfailures
    """)
    assert "somebody has removed the run's own, /sys/fs/cgroup/" in found.output
    assert "3 passed, 1 error" in found.output


BORN = """
    import os, pathlib, re, threading, pytest

    SEEN = []
    os.register_at_fork(after_in_child=lambda: SEEN.append(pathlib.Path("/proc/self/cgroup").read_text().strip()))

    def born_in_the_crates():
        # Where this process was when the fork had just returned in it; a helper's fork comes before.
        assert pathlib.Path("/proc/self/cgroup").read_text() == "0::/\\n"
        return re.search(r"/pytest-crate-\\d+-\\d+-\\d+/\\d+$", SEEN[-1]) is not None

    @pytest.mark.crate(memory="64m")
    def test_alone():
        assert born_in_the_crates()

    @pytest.mark.crate(memory="64m")
    def test_too_much():
        bytearray(200 << 20)

    def test_thread():
        threading.Thread(target=threading.Event().wait, daemon=True).start()

    @pytest.mark.crate(memory="64m")
    def test_among_threads():
        # An ordinary user's is forked by a process that has one thread, having been forked by the C library.
        assert born_in_the_crates() == (os.getuid() != 0)

    @pytest.mark.crate(memory="64m")
    def test_too_much_among_threads():
        bytearray(200 << 20)
"""


@pytest.mark.parametrize("user", [USER, pytest.param("root", marks=pytest.mark.long)])
def test_a_body_is_born_in_its_cgroup(seen: Any, user: str) -> None:
    """It is there from its first instruction; where root's pytest has other threads it is moved. It is held there."""
    found = seen(
        f"""
        cat >test_it.py <<'END'\n{textwrap.dedent(BORN)}\nEND
        {PYTEST} -p no:rerunfailures
    """,
        user=user,
    )
    assert "2 failed, 3 passed" in found.output
    assert found.output.count("memory limit 64 MiB exceeded") >= 2


RANGE = """
    import os, pathlib, subprocess, pytest

    @pytest.mark.crate(image="./image.tar")
    def test_root(tmp_path):
        (tmp_path / "file").write_text("")
        os.chown(tmp_path / "file", 5, 6)
        assert (os.getuid(), (tmp_path / "file").stat().st_uid) == (0, 5)

    @pytest.mark.crate(image="./image.tar", user="daemon", memory="64m")
    def test_daemon():
        assert (os.getresuid(), os.getgroups()) == ((1, 1, 1), [1])

    @pytest.mark.crate(image="./image.tar", user="daemon", memory="64m")
    def test_too_much():
        bytearray(200 << 20)
"""


def test_a_range_of_ids(seen: Any, guest: Guest) -> None:
    """With systemd and cgroup v2 an image's crate has the users that Debian gives to its users by default."""
    guest.run(f"cat >/home/{USER}/place_image.py", user=USER, stdin=(PROJECT / "conftest.py").read_bytes())
    found = seen(f"""
        cat >test_it.py <<'END'\n{textwrap.dedent(RANGE)}\nEND
        cp ~/place_image.py conftest.py
        {PYTEST} -o crate_id_map=range --basetemp=base -o tmp_path_retention_policy=all
        find base -name file -user {USER}
        {VENV}/bin/python -B -m pytest_crate.cli doctor | grep "id range"
    """)
    assert "1 failed, 2 passed" in found.output
    assert "memory limit 64 MiB exceeded" in found.output
    assert "/file\n" in found.output
    assert "ok        id range" in found.output
