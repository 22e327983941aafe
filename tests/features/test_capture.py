"""What tests print is captured, shown and handed to fixtures as without crates."""

from __future__ import annotations

import pytest

from tests.inner import BothWays, RunInner


@pytest.mark.parametrize("mode", ["fd", "sys", "tee-sys", "no"])
def test_modes(pytester: pytest.Pytester, both_ways: BothWays, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """Under each mode, what Python, descriptors and child processes write goes where it goes in a plain run."""
    # What goes past Python's own buffer to a pipe comes before what is in it, in a plain run: at the end of the run.
    # A crate's is written out with each phase.
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    pytester.makepyfile(
        """
        import os, subprocess, sys, pytest
        @pytest.fixture
        def speaks():
            print("fixture up"); os.write(1, b"fd up\\n")
            yield
            print("fixture down", file=sys.stderr); os.write(2, b"fd down\\n")
        def test_all(speaks):
            print("python out", flush=True); print("python err", file=sys.stderr, flush=True)
            os.write(1, b"fd out\\n"); os.write(2, b"fd err\\n")
            subprocess.run(["sh", "-c", "echo child out; echo child err >&2"])
        def test_fails(speaks): print("before"); assert 0
        def test_half_a_line(): sys.stdout.write("no newline")
        def test_bytes(capfd): os.write(1, b"\\xff\\xfe\\n")
        def test_unflushed(): sys.stdout.write("late"); sys.stderr.write("late too")
        """
    )
    both_ways("-rA", f"--capture={mode}")


def test_fixtures(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """capsys, capfd, their binary and teeing kin: what was said in a fixture, in between, and when disabled."""
    pytester.makepyfile(
        """
        import os, sys, pytest
        KINDS = ["capsys", "capfd", "capsysbinary", "capfdbinary", "capteesys"]
        @pytest.fixture(params=KINDS)
        def cap(request): return request.getfixturevalue(request.param)
        @pytest.fixture
        def speaks(cap): print("up"); yield; print("down"); print("down too", file=sys.stderr)
        def test_reads(cap, speaks, request):
            print("out"); print("err", file=sys.stderr)
            out, err = cap.readouterr()
            if isinstance(out, bytes): out, err = out.decode(), err.decode()
            assert (out, err) == ("up\\nout\\n", "err\\n")
            with cap.disabled(): print("shown", request.node.name, flush=True)
            print("left over")
        def test_fails(cap, speaks): print("in the report"); assert 0
        def test_two(capsys, request):
            with pytest.raises(Exception, match="cannot use|same time"): request.getfixturevalue("capfd")
        """
    )
    run = both_ways("-rA", "-v")
    assert run.outcomes() == {"passed": 6, "failed": 5}
    assert run.text.count("shown test_reads") == 5


@pytest.mark.parametrize("mode", ["fd", "sys", "no"])
def test_standard_input(pytester: pytest.Pytester, both_ways: BothWays, mode: str) -> None:
    """Reading standard input raises the same error in the same words; without capture it is at its end."""
    pytester.makepyfile(
        """
        import sys, pytest
        def test_input(): input()
        def test_read(): sys.stdin.read()
        def test_buffer(): sys.stdin.buffer.read(1)
        def test_replaced(monkeypatch):
            import io
            monkeypatch.setattr("sys.stdin", io.StringIO("typed")); assert input() == "typed"
        """
    )
    run = both_ways("-v", f"--capture={mode}")
    assert run.of("test_replaced")["outcome"] == "passed"
    if mode != "no":
        assert "reading from stdin while output is captured" in run.of("test_input")["longrepr"]


def test_buffers(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Uncaptured output to a pipe: what was printed in a phase comes before what a later one writes past the buffer."""
    pytester.makepyfile(
        """
        import os, pytest
        @pytest.fixture
        def prints(): print("through the buffer")
        def test_it(prints): os.write(1, b"past the buffer\\n")
        """
    )
    places = [
        [run_inner(*args, "-s").text.index(words) for words in ("through the buffer", "past the buffer")]
        for args in ((), ("--crate-all",))
    ]
    assert [through < past for through, past in places] == [False, True]


def test_turns_at_the_terminal(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """What gets past the capture, in whatever way, comes after what pytest prints of the phase before."""
    pytester.makeconftest(
        """
        import sys, pytest
        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_makereport(item, call):
            report = yield
            print(f"<made {call.when}>", end="", flush=True)
            return report
        """
    )
    pytester.makepyfile(
        """
        import os, sys, pytest
        @pytest.fixture
        def loud(capsys, request):
            with capsys.disabled(): print("<up>", end="", flush=True)
            yield
            with capsys.disabled(): print("<down>", end="", flush=True)
        @pytest.fixture
        def suspends(request):
            yield
            manager = request.config.pluginmanager.getplugin("capturemanager")
            manager.suspend_global_capture(in_=True)
            sys.stdout.write("<suspended>"); sys.stdout.flush()
            manager.resume_global_capture()
        @pytest.fixture
        def reports(request):
            yield
            writer = request.config.get_terminal_writer()
            writer.write("<writer>"); writer.flush()
        def test_disabled(loud): pass
        def test_suspended(suspends): pass
        def test_writer(reports): pass
        """
    )
    run = both_ways("-v")
    line = next(line for line in run.text.splitlines() if "::test_disabled" in line)
    assert line.index("PASSED") < line.index("<down>")


@pytest.mark.parametrize("mode", ["fd", "sys", "tee-sys"])
def test_output_of_wider_fixtures(pytester: pytest.Pytester, both_ways: BothWays, mode: str) -> None:
    """What a wider fixture prints while it is set up is the first test's, once; so is what its thread says later."""
    pytester.makepyfile(
        """
        import logging, os, sys, threading, pytest
        @pytest.fixture(scope="module")
        def server():
            print("module up"); logging.warning("module up")
            asked, answered = os.pipe(), os.pipe()
            def serve():
                while os.read(asked[0], 1) == b"?":
                    print("thread answers", file=sys.stderr, flush=True)
                    logging.warning("thread answers")
                    os.write(answered[1], b"!")
            thread = threading.Thread(target=serve)
            thread.start()
            def ask():
                os.write(asked[1], b"?")
                assert os.read(answered[0], 1) == b"!"
            yield [ask]
            os.write(asked[1], b".")
            thread.join()
            print("module down")
        def test_first(server): print("first"); logging.error("first"); server[0](); raise SystemError
        def test_second(server): print("second"); server[0](); raise SystemError
        @pytest.fixture
        def asks(server): server[0](); yield; server[0]()
        def test_around(asks): pass
        """
    )
    run = both_ways("--tb=line", "-rA", f"--capture={mode}")
    around = dict(run.of("::test_around", "teardown")["sections"])
    assert {title for title, text in around.items() if text == "thread answers\n"} == {
        "Captured stderr setup",
        "Captured stderr teardown",
    }
    sections = dict(run.of("::test_first")["sections"])
    assert sections["Captured stdout setup"] == "module up\n"
    assert sections["Captured stderr call"] == "thread answers\n"
    assert [line.split()[-1] for line in sections["Captured log call"].splitlines()] == ["first", "answers"]


def test_output_of_wider_fixtures_that_is_shown_as_well(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """With tee-sys, too, what a wider fixture prints is in the first test's section, and there only once."""
    pytester.makepyfile(
        """
        import pytest
        @pytest.fixture(scope="module")
        def wide(): print("module up"); yield; print("module down")
        def test_first(wide): print("first"); raise SystemError
        def test_second(wide): print("second"); raise SystemError
        """
    )
    run = both_ways("--tb=line", "-rA", "--capture=tee-sys")
    assert dict(run.of("::test_first")["sections"])["Captured stdout setup"] == "module up\n"
