"""What Pythons differ in, between 3.11 and the newest, makes no difference to a test in a crate."""

from __future__ import annotations

import sys

import pytest

from tests.inner import BothWays


def test_a_thread_of_pytest_s_own(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """A thread that a wider fixture keeps running is no warning at the fork (Python 3.12), and is not in the crate."""
    pytester.makeconftest(
        """
        import threading, pytest
        @pytest.fixture(scope="session", autouse=True)
        def background():
            end = threading.Event()
            thread = threading.Thread(target=end.wait)
            thread.start()
            yield thread
            end.set()
            thread.join()
        """
    )
    pytester.makepyfile("def test_it(): pass\ndef test_again(background): assert background is not None")
    assert both_ways("-Werror").outcomes() == {"passed": 2}


def test_multiprocessing(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """Every way to start a process works in a body, the default one too, which Python 3.14 has changed."""
    pytester.makepyfile(
        work="""
        def square(number): return number ** 2
        def put(queue): queue.put("done")
        """,
        test_processes="""
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor
        import pytest, work

        @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver", None])
        def test_start(method):
            context = multiprocessing.get_context(method)
            queue = context.Queue()
            process = context.Process(target=work.put, args=(queue,))
            process.start()
            assert queue.get(timeout=60) == "done"
            process.join()
            assert process.exitcode == 0
            queue.close()
            queue.join_thread()

        def test_pool():
            with ProcessPoolExecutor(max_workers=2, mp_context=multiprocessing.get_context("spawn")) as pool:
                assert list(pool.map(work.square, range(4))) == [0, 1, 4, 9]
        """,
    )
    # A body is alone in its process; pytest itself may have threads, of which os.fork warns.
    assert both_ways("-Werror", "-Wignore:This process:DeprecationWarning").outcomes() == {"passed": 5}


@pytest.mark.skipif(sys.version_info < (3, 14), reason="Python 3.14 has interpreters, and takes annotations later")
def test_new_in_python_3_14(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """Interpreters of a body's own, annotations that name what is missing, and the standard library's zstd."""
    pytester.makepyfile(
        """
        import annotationlib
        from compression import zstd
        from concurrent import interpreters
        from concurrent.futures import InterpreterPoolExecutor

        def test_interpreter():
            interpreter = interpreters.create()
            assert interpreter.call(divmod, 7, 2) == (3, 1)
            interpreter.close()

        def test_pool():
            with InterpreterPoolExecutor(max_workers=2) as pool:
                assert list(pool.map(abs, [-1, -2])) == [1, 2]

        def test_annotations():
            def function(argument: missing): ...
            forward = annotationlib.get_annotations(function, format=annotationlib.Format.FORWARDREF)
            assert forward["argument"].__forward_arg__ == "missing"

        def test_fixture_with_annotations(tmp_path: "missing"): assert tmp_path.is_dir()

        def test_zstd(): assert zstd.decompress(zstd.compress(b"text")) == b"text"
        """
    )
    assert both_ways("-Werror").outcomes() == {"passed": 5}
