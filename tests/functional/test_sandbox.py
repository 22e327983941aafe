"""The crate_sandbox fixture as a test sees it: programs, files, processes, limits, errors."""

from __future__ import annotations

import pytest

from tests.inner import RunInner


def test_programs(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """run takes input, env, cwd, user, timeout, check and text, and gives what subprocess would."""
    pytester.makepyfile(
        """
        import os, subprocess, pytest
        from pytest_crate.errors import SandboxError
        from pytest_crate.sandbox.program import ProgramFailed

        def sh(box, script, **options): return box.run(["sh", "-c", script], **options)

        def test_result(crate_sandbox):
            done = sh(crate_sandbox, "echo out; echo err >&2; exit 3")
            assert (done.returncode, done.stdout, done.stderr, done.exceeded) == (3, "out\\n", "err\\n", ())
            assert done.args == ("sh", "-c", "echo out; echo err >&2; exit 3")
            assert sh(crate_sandbox, "kill -9 $$").returncode == -9
        def test_input(crate_sandbox):
            assert crate_sandbox.run(["cat"], input="text \\u2603").stdout == "text \\u2603"
            assert crate_sandbox.run(["cat"], input=b"\\xff\\r\\n", text=False).stdout == b"\\xff\\r\\n"
            assert crate_sandbox.run(["cat"]).stdout == ""
        def test_much(crate_sandbox):
            data = os.urandom(10 << 20)
            assert crate_sandbox.run(["cat"], input=data, text=False).stdout == data
            done = sh(crate_sandbox, "head -c 10485760 /dev/zero; head -c 10485760 /dev/zero >&2", text=False)
            assert (len(done.stdout), len(done.stderr)) == (10 << 20, 10 << 20)
            assert crate_sandbox.run(["true"], input=data).returncode == 0
        def test_env(crate_sandbox, monkeypatch):
            monkeypatch.setenv("OUTSIDE", "1")
            assert sh(crate_sandbox, "echo $A-$OUTSIDE", env={"A": "x"}).stdout == "x-1\\n"
            assert sh(crate_sandbox, "echo $A-$OUTSIDE", env={"OUTSIDE": None}).stdout == "-\\n"
        def test_cwd(crate_sandbox, tmp_path):
            assert crate_sandbox.run(["pwd"]).stdout.strip() == os.getcwd()
            assert crate_sandbox.run(["pwd"], cwd="/usr").stdout == "/usr\\n"
            assert crate_sandbox.run(["pwd"], cwd=tmp_path).stdout.strip() == str(tmp_path)
        def test_user(crate_sandbox):
            for user in ("nobody", 65534, "65534", "nobody:nogroup", "65534:65534"):
                if os.geteuid() == 0:
                    assert crate_sandbox.run(["id", "-u"], user=user).stdout == "65534\\n"
                else:  # whose crates on the host's root have no other user
                    with pytest.raises(SandboxError, match="its user namespace has no such id"):
                        crate_sandbox.run(["id", "-u"], user=user)
            assert crate_sandbox.run(["id", "-u"]).stdout == f"{os.getuid()}\\n"
        def test_timeout(crate_sandbox):
            done = sh(crate_sandbox, "echo begun; trap '' TERM; sleep 60", timeout=0.5)
            assert (done.returncode, done.stdout, done.exceeded) == (-9, "begun\\n", ("timeout",))
            assert crate_sandbox.run(["true"]).returncode == 0
        def test_check(crate_sandbox):
            with pytest.raises(ProgramFailed, match="(?s)exit status 4.*went wrong") as caught:
                sh(crate_sandbox, "echo went wrong >&2; exit 4", check=True)
            assert isinstance(caught.value, subprocess.CalledProcessError) and caught.value.run.returncode == 4
            assert sh(crate_sandbox, "exit 0", check=True).returncode == 0
        def test_limit_is_a_result(crate_sandbox_factory):
            box = crate_sandbox_factory(memory="32m")
            done = box.run(["python3", "-c", "bytearray(100 << 20)"])
            assert done.exceeded == ("memory",) and done.returncode == -9
            with pytest.raises(ProgramFailed, match="limits exceeded: memory"):
                box.run(["python3", "-c", "bytearray(100 << 20)"], check=True)
            assert box.run(["true"]).exceeded == ()
        def test_usage(crate_sandbox):
            done = sh(crate_sandbox, "head -c 30000000 /dev/zero | tail -c 25000000 | wc -c")
            assert done.usage.memory_peak_bytes > 20_000_000 and done.usage.pids_peak >= 3
            again = crate_sandbox.run(["true"])
            assert again.usage.memory_peak_bytes is None, "the peak did not rise"
            assert crate_sandbox.usage.memory_peak_bytes == done.usage.memory_peak_bytes
        """
    )
    run = run_inner()
    assert run.outcomes() == {"passed": 10}
    assert run.of("test_limit_is_a_result", "teardown")["crates"] == ["crate_sandbox[1]"]


def test_errors(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """What can't be started is an error that names program, directory or user, and the crate goes on."""
    pytester.makepyfile(
        """
        import os, re, subprocess, pytest
        from pytest_crate.errors import SandboxError, SpecError
        def test_errors(crate_sandbox):
            root = r"\\(the host's root\\)$"
            with pytest.raises(SandboxError, match="^run no_such_program: not found in the crate's PATH " + root):
                crate_sandbox.run(["no_such_program", "x"])
            with pytest.raises(SandboxError, match="^run /no/it: no such file in the crate " + root):
                crate_sandbox.run(["/no/it"])
            with pytest.raises(SandboxError, match="/etc/passwd.*Permission denied"):
                crate_sandbox.run(["/etc/passwd"])
            with pytest.raises(SandboxError, match="/no/such/dir"):
                crate_sandbox.run(["true"], cwd="/no/such/dir")
            with pytest.raises(SandboxError, match="no_such_user"):
                crate_sandbox.run(["true"], user="no_such_user")
            with pytest.raises(TypeError): crate_sandbox.run("true")
            with pytest.raises(TypeError): crate_sandbox.run([])
            with pytest.raises(TypeError, match="timeout must be a number of seconds or None, not '5'"):
                crate_sandbox.run(["touch", "/tmp/ran"], timeout="5")
            with pytest.raises(TypeError, match="the value of A must be a string or None, not 1"):
                crate_sandbox.run(["touch", "/tmp/ran"], env={"A": 1})
            with pytest.raises(ValueError, match="terminal=True wants a terminal as stdin"):
                crate_sandbox.popen(["touch", "/tmp/ran"], stdin=subprocess.DEVNULL, terminal=True)
            with pytest.raises(SandboxError, match=r"^open a file in the crate: /etc: Is a directory \\(errno 21\\)$"):
                crate_sandbox.read_text("/etc")
            with pytest.raises(SandboxError, match="/tmp/ran.*No such file"): crate_sandbox.read_text("/tmp/ran")
            assert crate_sandbox.run(["true"], timeout=1e12).returncode == 0
            assert crate_sandbox.popen(["true"]).wait(float("inf")) == 0
            assert crate_sandbox.run(["true"]).returncode == 0
            with pytest.raises(SandboxError, match="^ask the launcher: a message of [0-9]+ bytes is too long$"):
                crate_sandbox.run(["echo", *["x" * (1 << 20)] * 257])
            assert crate_sandbox.run(["echo", "x"]).stdout == "x\\n"
        def test_factory_errors(crate_sandbox_factory):
            with pytest.raises(SpecError, match="memroy"): crate_sandbox_factory(memroy="1m")
            with pytest.raises(SpecError, match="lots"): crate_sandbox_factory(memory="lots")
        @pytest.fixture
        def late(request): return request.getfixturevalue("crate_sandbox")
        def test_late(late): pass
        @pytest.mark.crate
        def test_late_inside(request): request.getfixturevalue("crate_sandbox")
        def test_after_close(crate_sandbox):
            crate_sandbox.close()
            with pytest.raises(SandboxError, match="closed"): crate_sandbox.run(["true"])
            with pytest.raises(SandboxError, match="closed"): crate_sandbox.read_text("/etc/hostname")
            with pytest.raises(SandboxError, match="closed"): crate_sandbox.root
            crate_sandbox._sandbox.init = os.getpid()  # the kernel has given the pid to another process
            assert crate_sandbox.processes() == []
        def test_an_inits_pid_is_anothers(crate_sandbox):
            program = crate_sandbox.popen(["sleep", "100"])
            crate_sandbox._sandbox.init = os.getpid()
            assert [each.pid for each in crate_sandbox.processes() if each.pid == program.pid] == [program.pid]
            assert os.getpid() not in [each.pid for each in crate_sandbox.processes()]
            assert os.getppid() not in [each.pid for each in crate_sandbox.processes()]
        @pytest.mark.parametrize("place, said", [
            ("/proc/1/mem", "read a file of the crate's: read(/tmp/result): Input/output error"),
            ("/proc/kmsg", "open a file in the crate: /tmp/result: it is no regular file"),
        ])
        def test_a_link_in_the_place_of_a_file(crate_sandbox, place, said):
            crate_sandbox.run(["ln", "-s", place, "/tmp/result"], check=True)
            with pytest.raises(SandboxError, match=re.escape(said)): crate_sandbox.read_text("/tmp/result")
        """
    )
    run = run_inner()
    assert run.outcomes() == {"passed": 6, "failed": 1, "errors": 1}, run.text
    assert "not with getfixturevalue" in run.of("test_late", "setup")["longrepr"]
    assert "crate_sandbox" in run.of("test_late_inside")["longrepr"]


def test_missing_program_in_an_image(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A program that an image lacks: the error names program and image."""
    (pytester.path / "rootfs" / "etc").mkdir(parents=True)
    (pytester.path / "rootfs" / "etc" / "passwd").write_text("app:x:1234:1234::/srv:/bin/sh\n")
    pytester.makepyprojecttoml('[tool.pytest-crate.images]\ntiny = "./rootfs"\n')
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.crate(image="tiny")
        def test_it(crate_sandbox):
            assert crate_sandbox.read_text("/etc/passwd").startswith("app:")
            crate_sandbox.run(["nginx", "-t"])
        """
    )
    run = run_inner("-o", "crate_image_store=store")
    shown = run.of("test_it")["longrepr"]
    assert "ProgramNotFound: run nginx: not found in the crate's PATH (image 'tiny')" in shown
    assert "program.py" not in shown, "our frames are no help to the test's author"
    assert "sandbox.py" not in shown
    assert 'crate_sandbox.run(["nginx", "-t"])' in shown


def test_a_terminal(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """With terminal=True a terminal given as stdin becomes the program's controlling one."""
    pytester.makepyfile(
        """
        import os
        from pytest_crate.sandbox.terminal import open_terminal
        def test_it(crate_sandbox):
            root = os.open(crate_sandbox.root, os.O_PATH)
            terminal = open_terminal(root)
            given = {"stdin": terminal.slave, "stdout": terminal.slave, "stderr": terminal.slave}
            shell = crate_sandbox.popen(["sh", "-c", "tty; echo told > /dev/tty"], terminal=True, **given)
            assert shell.wait(20) == 0
            shown = b""
            while not shown.endswith(b"told\\r\\n"):  # it comes in as many pieces as it was written in
                shown += os.read(terminal.master, 100)
            assert shown == b"/dev/pts/0\\r\\ntold\\r\\n"
            for descriptor in (root, terminal.master, terminal.slave): os.close(descriptor)
        """
    )
    assert run_inner().outcomes() == {"passed": 1}


def test_files_processes_and_daemons(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Files are written and read inside only; popen's programs and daemons are seen, and gone with the test."""
    pytester.makepyfile(
        """
        import os, signal, subprocess, time, psutil, pytest
        PIDS = []
        def test_files(crate_sandbox):
            crate_sandbox.write_text("/etc/written", "inside")
            crate_sandbox.write_bytes("/tmp/bytes", b"\\x00\\xff")
            assert crate_sandbox.run(["cat", "/etc/written"]).stdout == "inside"
            assert crate_sandbox.read_bytes("/tmp/bytes") == b"\\x00\\xff"
            assert not os.path.exists("/etc/written")
            assert (crate_sandbox.root / "etc/written").read_text() == "inside"
            crate_sandbox.run(["ln", "-s", "/etc/written", "/tmp/link"])
            assert crate_sandbox.read_text("/tmp/link") == "inside"
        def test_popen(crate_sandbox):
            program = crate_sandbox.popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert program.poll() is None
            program.stdin.write("line\\n"); program.stdin.flush()
            assert program.stdout.readline() == "line\\n"
            assert [each.name() for each in crate_sandbox.processes()] == ["cat"]
            program.terminate()
            assert program.wait(10) == -signal.SIGTERM and crate_sandbox.processes() == []
        @pytest.mark.parametrize("more", [None, b"more"])
        def test_nobody_reads(crate_sandbox, more):
            program = crate_sandbox.popen(["echo", "ended"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=False)
            program.stdin.write(b"in the buffer")
            program.wait(10)
            assert program.communicate(more) == (b"ended\\n", None)
        def test_stdio(crate_sandbox, capfd):
            assert crate_sandbox.popen(["sh", "-c", "echo out; echo err >&2"], stderr=subprocess.STDOUT).wait(10) == 0
            assert capfd.readouterr().out == "out\\nerr\\n"
        def test_daemon(crate_sandbox):
            done = crate_sandbox.run(["sh", "-c", "(setsid sleep 600 &) ; echo started"], timeout=20)
            assert done.stdout == "started\\n" and done.exceeded == ()
            PIDS.extend(each.pid for each in crate_sandbox.processes())
            assert len(PIDS) == 1
        def test_daemon_is_gone(): assert PIDS and not psutil.pid_exists(PIDS[0])
        def test_several(crate_sandbox, crate_sandbox_factory):
            other = crate_sandbox_factory(hostname="other", env={"A": "1"})
            assert [box.run(["uname", "-n"]).stdout for box in (crate_sandbox, other)] == ["crate\\n", "other\\n"]
            crate_sandbox.write_text("/tmp/x", ""); assert other.run(["ls", "/tmp/x"]).returncode != 0
        @pytest.fixture
        def server(crate_sandbox):
            crate_sandbox.write_text("/tmp/ready", "yes"); yield crate_sandbox
            assert crate_sandbox.run(["cat", "/tmp/ready"]).stdout == "yes"
        @pytest.mark.crate(memory="64m", timeout=30)
        def test_through_a_fixture(server): assert server.spec.memory_bytes == 64 << 20 and os.getpid() != 2
        """
    )
    run = run_inner()
    assert run.outcomes() == {"passed": 9}
    assert run.of("test_several", "teardown")["crates"] == ["crate_sandbox[1]", "crate_sandbox"]


def test_exceeded_limits_are_shown(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A failed test that drove a crate over its limit shows that crate's section with the end of its stderr."""
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.crate(memory="32m")
        def test_it(crate_sandbox):
            crate_sandbox.run(["sh", "-c", "echo last words >&2; exec python3 -c 'bytearray(100 << 20)'"], check=True)
        """
    )
    run = run_inner()
    assert run.outcomes() == {"failed": 1}
    sections = dict(run.of("test_it", "teardown")["sections"])
    assert "memory limit 32 MiB exceeded" in sections["Crate crate_sandbox"]
    assert "last words" in sections["Crate crate_sandbox"]
    assert "limits exceeded: memory" in run.text


def test_what_can_not_be_run(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Arguments, variables, input and timeouts that make no sense are errors before anything runs, never a status."""
    pytester.makepyfile(
        """
        import io, pytest
        from pytest_crate.errors import SandboxError

        WRONG = [
            (dict(argv="ls"), TypeError, "non-empty list"), (dict(argv=[]), TypeError, "non-empty list"),
            (dict(argv=[""]), SandboxError, "the program's name is empty"),
            (dict(argv=["a\\0b"]), ValueError, "null character"),
            (dict(argv=["touch", "/tmp/ran", "a\\0b"]), ValueError, "null character"),
            (dict(argv=[b"true"]), TypeError, "b'true' is none"),
            (dict(argv=["touch", "/tmp/ran"], cwd="/tmp\\0x"), ValueError, "cwd: a null character"),
            (dict(argv=["true"], env={"A=B": "x"}), ValueError, "A=B='x'"),
            (dict(argv=["true"], env={"": "x"}), ValueError, "can't be a variable"),
            (dict(argv=["true"], env={"A": "x\\0y"}), ValueError, "can't be a variable"),
            (dict(argv=["true"], input=3), TypeError, "input must be text or bytes, not 3"),
            (dict(argv=["true"], timeout=0), ValueError, "above 0"),
            (dict(argv=["true"], timeout=-1), ValueError, "above 0"),
            (dict(argv=["true"], timeout="1"), TypeError, "number of seconds"),
            (dict(argv=["true"], timeout=float("nan")), ValueError, "NaN"),
            (dict(argv=5), TypeError, "argv must be a non-empty list of strings, not 5"),
            (dict(argv=["true", 5]), TypeError, "argv must be a list of strings, and 5 is none"),
            (dict(argv=["true"], env=["A=1"]), TypeError, "env must be a dictionary of variables, not .'A=1'"),
            (dict(argv=["true"], cwd=3), TypeError, "cwd must be a string or a path of one, not 3"),
            (dict(argv=["true"], user=(1, 2)), TypeError, "user must be a name or an id, not .1, 2"),
            (dict(argv=["true"], user=-1), ValueError, "user must be an id from 0 to 4294967294, not -1"),
            (dict(argv=["true"], user=2**40), ValueError, "user must be an id from 0 to 4294967294, not 1099"),
        ]
        STREAMS = [
            ("x", TypeError, "stdin must be PIPE, DEVNULL, a file with a descriptor, a descriptor or None, not 'x'"),
            (io.StringIO(), TypeError, "stdin must be PIPE, .*StringIO"),
            (999, ValueError, "stdin: descriptor 999 is not open"),
        ]
        def test_it(crate_sandbox):
            for keys, kind, words in WRONG:
                with pytest.raises(kind, match=words):
                    crate_sandbox.run(**keys)
            for use in (crate_sandbox.read_bytes, lambda path: crate_sandbox.write_bytes(path, b"")):
                with pytest.raises(ValueError, match="path: a null character"):
                    use("/etc/hostname\\0x")
            for stdin, kind, words in STREAMS:
                with pytest.raises(kind, match=words):
                    crate_sandbox.popen(["true"], stdin=stdin)
            with pytest.raises(TypeError, match="path must be a string or a path of one, not 3"):
                crate_sandbox.read_text(3)
            crate_sandbox.write_text("/tmp/kept", "kept")
            with pytest.raises(TypeError, match="data must be bytes, not str: text is for write_text"):
                crate_sandbox.write_bytes("/tmp/kept", "text")
            with pytest.raises(TypeError, match="text must be a string, not NoneType: bytes are for write_bytes"):
                crate_sandbox.write_text("/tmp/kept", None)
            assert crate_sandbox.read_text("/tmp/kept") == "kept"
            assert crate_sandbox.read_bytes("/etc/hostname")
            assert crate_sandbox.usage.cpu_usage_usec == 0, "nothing has run"
            assert crate_sandbox.run(["cat"], input=bytearray(b"bytes"), text=False).stdout == b"bytes"
        """
    )
    assert run_inner().outcomes() == {"passed": 1}


def test_a_file_without_end(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A file of more than max_size is not read: pytest grows by at most 50 MiB."""
    pytester.makepyfile(
        """
        import re, pytest
        from pytest_crate import SandboxError

        def peak():
            return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) >> 10

        def test_sparse(crate_sandbox):
            crate_sandbox.run(["truncate", "-s", "10G", "/tmp/much"], check=True)
            before = peak()
            for read in crate_sandbox.read_bytes, crate_sandbox.read_text:
                with pytest.raises(SandboxError, match="/tmp/much.*: it has more than max_size=32 MiB"):
                    read("/tmp/much")
            assert peak() - before <= 50

        def test_sizes(crate_sandbox):
            crate_sandbox.write_bytes("/tmp/some", bytes(40 << 20))
            with pytest.raises(SandboxError, match="it has more than max_size="):
                crate_sandbox.read_bytes("/tmp/some", max_size=(40 << 20) - 1)
            for most in (40 << 20, "40m", None):
                assert len(crate_sandbox.read_bytes("/tmp/some", max_size=most)) == 40 << 20
            with pytest.raises(ValueError, match="max_size must be a size such as '64m', or None .*, not 'x'"):
                crate_sandbox.read_text("/tmp/some", max_size="x")

        def test_of_procfs(crate_sandbox):
            for most in "32m", None, "1g":
                assert crate_sandbox.read_text("/proc/sys/net/ipv4/ip_forward", max_size=most) in ("0\\n", "1\\n")
        """
    )
    run = run_inner()
    assert run.outcomes() == {"passed": 3}, run.text


def test_output_without_end(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A program that writes more than max_output is killed and named in an error; pytest grows by at most 50 MiB."""
    pytester.makepyfile(
        """
        import os, re, pytest
        from pytest_crate import OutputTooLong

        def peak():
            return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) >> 10

        def test_default(crate_sandbox):
            before = peak()
            with pytest.raises(OutputTooLong, match="run head: it wrote more than max_output=32 MiB and was killed"):
                crate_sandbox.run(["head", "-c", "1G", "/dev/zero"])
            assert peak() - before <= 50
            assert crate_sandbox.processes() == []
            assert crate_sandbox.run(["echo", "x"]).stdout == "x\\n"

        def test_both_streams_count(crate_sandbox):
            script = "head -c 600k /dev/zero; head -c 600k /dev/zero >&2; sleep 100"
            with pytest.raises(OutputTooLong, match="max_output=1 MiB") as caught:
                crate_sandbox.run(["sh", "-c", script], max_output="1m")
            assert caught.value.stderr == bytes(16 << 10)
            done = crate_sandbox.run(["sh", "-c", script.partition("; sleep")[0]], max_output="1200k")
            assert (len(done.stdout), len(done.stderr)) == (600 << 10, 600 << 10)

        def test_no_limit(crate_sandbox):
            assert len(crate_sandbox.run(["head", "-c", "40M", "/dev/zero"], max_output=None).stdout) == 40 << 20

        def test_what_is_no_size(crate_sandbox):
            with pytest.raises(ValueError, match="max_output must be a size such as '64m', or None .*, not 'x'"):
                crate_sandbox.run(["touch", "/tmp/ran"], max_output="x")
            assert crate_sandbox.run(["ls", "/tmp/ran"]).returncode != 0

        def test_communicate(crate_sandbox):
            with crate_sandbox.popen(["yes"], stdout=-1) as program, pytest.raises(OutputTooLong):
                program.communicate(max_output=1 << 20)
            assert program.returncode == -9
        """
    )
    run = run_inner()
    assert run.outcomes() == {"passed": 5}, run.text


def test_files_of_the_tests(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A program reads what is below pytest's basetemp, as it is now, and writes to it only where a mount lets it."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture(scope="session")
        def tool(tmp_path_factory):
            path = tmp_path_factory.mktemp("built") / "tool"
            path.write_text("ours")
            return path

        def test_reads(crate_sandbox, tmp_path):
            (tmp_path / "late").write_text("x")
            assert crate_sandbox.run(["cat", str(tmp_path / "late")], check=True).stdout == "x"
        def test_writes_nothing(crate_sandbox, tmp_path, tool):
            for path in (tool, tmp_path / "new", tmp_path.parent / "beside"):
                done = crate_sandbox.run(["sh", "-c", f"echo theirs > {path}"])
                assert done.returncode != 0 and "Read-only file system" in done.stderr
            assert tool.read_text() == "ours" and list(tmp_path.iterdir()) == []
        def test_writes_where_it_may(crate_sandbox_factory, tmp_path, tool):
            box = crate_sandbox_factory(mounts=[f"{tmp_path}:rw"])
            assert box.run(["sh", "-c", f"echo out > {tmp_path}/new"]).returncode == 0
            assert (tmp_path / "new").read_text() == "out\\n"
            assert box.run(["sh", "-c", f"echo theirs > {tool}"]).returncode != 0
        @pytest.mark.crate
        def test_body(tmp_path, tool):
            (tmp_path / "new").write_text("x")
        """
    )
    assert run_inner().outcomes() == {"passed": 4}


def test_the_next_tests_crate_is_begun(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """While a test drives its crate, or rides in it, the one that the next test will drive is made ready, and no other:
    a factory's would be a guess. One that drives several has the next test's made ready when it ends."""
    pytester.makepyfile(
        """
        import psutil, time, pytest

        def name_of(process):
            try:
                return process.name()
            except psutil.NoSuchProcess:  # such as those that bear inits
                return ""

        def await_inits(count):
            end = time.monotonic() + 30
            while sum(name_of(child) == "crate-init" for child in psutil.Process().children(recursive=True)) != count:
                assert time.monotonic() < end
                time.sleep(0.01)

        def test_before_one_that_drives(crate_sandbox):
            await_inits(2)
        def test_before_one_that_rides(crate_sandbox):
            await_inits(2)
        @pytest.mark.crate
        def test_in_between():
            pass
        def test_before_a_factory(crate_sandbox):
            await_inits(1)
        def test_that_makes_another(crate_sandbox_factory):
            await_inits(0)
            crate_sandbox_factory(hostname="another")
            crate_sandbox_factory(hostname="third")
            await_inits(2)
        def test_last(crate_sandbox):
            await_inits(1)
        """
    )
    assert run_inner().outcomes() == {"passed": 6}


def test_a_program_that_cannot_be_reaped(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A program that is kept as a zombie by one that traces it holds up neither timeout nor max_output: its crate ends.

    A killed program that nobody traces does not take its crate with it.
    """
    pytester.makefile(
        ".txt",
        program="""
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)  # PR_SET_PTRACER, PR_SET_PTRACER_ANY; fails without Yama
reading, writing = os.pipe()
traced = os.getpid()
if os.fork() == 0:
    os.setsid()
    if libc.ptrace(0x4206, traced, 0, 0) == 0:  # PTRACE_SEIZE
        os.write(writing, b"traced")
    while sys.argv[1:] and os.getppid() == traced: os.write(1, bytes(1000))
    while True: time.sleep(100)
assert os.read(reading, 100) == b"traced"
print("said", flush=True)
if sys.argv[1:]: time.sleep(100)
os._exit(7)
""",
    )
    pytester.makepyfile(
        """
        import time, pytest
        from pathlib import Path
        from pytest_crate.errors import SandboxError
        from pytest_crate.sandbox.program import OutputTooLong

        ARGV = ["python3", "-c", Path("program.txt").read_text()]

        @pytest.fixture(autouse=True)
        def in_time():
            began = time.monotonic()
            yield
            assert time.monotonic() - began < 20
        def test_timeout(crate_sandbox):
            done = crate_sandbox.run(ARGV, timeout=1)
            assert (done.returncode, done.stdout, done.exceeded) == (7, "said\\n", ("timeout",))
            with pytest.raises(SandboxError):
                crate_sandbox.run(["true"])
        def test_max_output(crate_sandbox):
            with pytest.raises(OutputTooLong):
                crate_sandbox.run([*ARGV, "much"], max_output="1m")
        def test_no_other(crate_sandbox):
            with pytest.raises(OutputTooLong):
                crate_sandbox.run(["cat", "/dev/zero"], max_output="1m")
            assert crate_sandbox.run(["sleep", "60"], timeout=0.2).exceeded == ("timeout",)
            assert crate_sandbox.run(["true"]).returncode == 0
        """
    )
    assert run_inner().outcomes() == {"passed": 3}
