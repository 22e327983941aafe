"""pytest's own fixtures work inside a crate as they do outside."""

from __future__ import annotations

import pytest

from tests.inner import BothWays, RunInner


def test_builtin_fixtures(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """capsys, capfd, caplog, monkeypatch, tmp_path, cache, pytestconfig, request and the like do their work."""
    pytester.makepyfile(
        """
        import logging, os, subprocess, sys, pytest
        def test_capsys(capsys):
            print("out"); print("err", file=sys.stderr)
            assert capsys.readouterr() == ("out\\n", "err\\n")
            with capsys.disabled(): pass
            print("left over")
        def test_capfd(capfd):
            subprocess.run(["echo", "out"]); os.write(2, b"err")
            assert capfd.readouterr() == ("out\\n", "err")
        def test_capfdbinary(capfdbinary): os.write(1, b"\\xff"); assert capfdbinary.readouterr().out == b"\\xff"
        def test_capteesys(capteesys): print("both"); assert capteesys.readouterr().out == "both\\n"
        def test_child_output(): subprocess.run(["sh", "-c", "echo out; echo err >&2"]); assert 0
        def test_caplog(caplog):
            caplog.set_level(logging.DEBUG); logging.debug("seen")
            assert caplog.messages == ["seen"] and caplog.get_records("setup") == []
            assert 0
        def test_monkeypatch(monkeypatch, tmp_path):
            monkeypatch.setenv("A", "1"); monkeypatch.chdir(tmp_path); monkeypatch.setattr(os, "name", "other")
            assert os.environ["A"] == "1" and os.getcwd() == str(tmp_path)
        def test_tmp_path(tmp_path, tmp_path_factory, request):
            (tmp_path / "file").write_text("kept"); assert tmp_path.name == "test_tmp_path0"
            other = tmp_path_factory.mktemp("other"); assert other.parent == tmp_path_factory.getbasetemp()
        @pytest.fixture(scope="session")
        def shared(tmp_path_factory):
            path = tmp_path_factory.mktemp("shared"); (path / "f").write_text("from session"); return path
        def test_shared(shared): assert (shared / "f").read_text() == "from session"; (shared / "g").touch()
        def test_shared_again(shared): assert (shared / "g").exists()
        def test_request(request, pytestconfig):
            assert request.config is pytestconfig and request.node.name == "test_request"
            assert request.getfixturevalue("tmp_path").is_dir()
        def test_stdin():
            with pytest.raises(OSError): input()
        @pytest.mark.usefixtures("monkeypatch")
        def test_doctest_namespace(doctest_namespace): pass
        def test_tmpdir_again(tmp_path): assert not list(tmp_path.iterdir())
        """
    )
    run = both_ways("-rA", "-v")
    assert run.outcomes() == {"passed": 12, "failed": 2}


def test_class_scope_without_a_class(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """A class-scoped fixture of tests in no class is set up and torn down around each of them, outside."""
    pytester.makepyfile(
        """
        import os, pytest
        steps, pid = [], os.getpid()
        @pytest.fixture(scope="class")
        def wide(request):
            steps.append(f"up {request.node.name}")
            yield len(steps)
            assert os.getpid() == pid
            steps.append(f"down {request.node.name}")
        @pytest.fixture(scope="class")
        def fails_late(): yield; raise ValueError("late")
        def test_one(wide): assert steps == ["up test_one"]
        def test_two(wide): assert steps == ["up test_one", "down test_one", "up test_two"]
        class TestClass:
            def test_three(self, wide): assert steps[3:] == ["down test_two", "up TestClass"]
            def test_four(self, wide): assert steps[3:] == ["down test_two", "up TestClass"]
        def test_five(wide, fails_late): assert steps[5:] == ["down TestClass", "up test_five"]
        def test_six(): assert steps[7:] == ["down test_five"]
        """
    )
    run = both_ways("--setup-show")
    assert run.outcomes() == {"passed": 6, "errors": 1}


def test_failures_of_pytests_own(pytester: pytest.Pytester, both_ways: BothWays) -> None:
    """Where only pytest's own frames are on a traceback, the plugin's are no more to be seen than those."""
    # pytest 9.0 raises for these fixtures what elsewhere has no traceback. It shows its frames around it, those of
    # Function.setup among them, which a wider fixture has not; the native style shows ours, too.
    raised = pytest.version_tuple[:2] == (9, 0)
    module = "function" if raised else "module"
    pytester.makepyfile(
        f"""
        import pytest
        @pytest.fixture
        async def own(): yield 1
        @pytest.fixture(scope="{module}")
        async def wide(): yield 1
        def test_own(own): pass
        def test_wide(wide): pass
        def test_missing(no_such_fixture): pass
        @pytest.fixture(scope="module")
        def scope(own): pass
        def test_scope(scope): pass
        """
    )
    for style in ("auto", "short") if raised else ("auto", "short", "native"):
        both_ways(f"--tb={style}", printed=False)


def test_tmp_path_is_kept_on_the_host(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """tmp_path is below one basetemp, on the host, also by pytest's numbered default; failed tests' are kept."""
    pytester.makepyfile(
        """
        def test_passes(tmp_path): (tmp_path / "file").write_text("one")
        def test_fails(tmp_path): (tmp_path / "file").write_text("two"); assert 0
        """
    )
    base = pytester.path / "base"
    run_inner("--crate-all", f"--basetemp={base}", "-o", "tmp_path_retention_policy=failed")
    assert [path.relative_to(base).as_posix() for path in base.rglob("file")] == ["test_fails0/file"]
    assert (base / "test_fails0" / "file").read_text() == "two"


def test_what_the_project_gets_during_the_run(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """A file that a session fixture writes into the project, and a module imported late, are seen by later bodies."""
    pytester.makepyfile(
        """
        import pathlib, sys, pytest
        @pytest.fixture(scope="module")
        def generated():
            pathlib.Path("generated_module.py").write_text("VALUE = 7"); sys.path.insert(0, ".")
            yield
            sys.path.remove(".")
        def test_before(): assert not pathlib.Path("generated_module.py").exists()
        def test_imports(generated):
            import generated_module
            assert generated_module.VALUE == 7
        """
    )
    assert run_inner("--crate-all").outcomes() == {"passed": 2}


def test_project_in_a_home_directory(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """Where the project's root is $HOME itself, its files are seen and its hidden ones are not."""
    (pytester.path / ".secret").write_text("x")
    pytester.makepyfile(
        """
        import os
        def test_it(): assert os.path.exists(os.environ["HOME"] + "/test_project_in_a_home_directory.py")
        def test_secret(): assert not os.path.exists(os.environ["HOME"] + "/.secret")
        """
    )
    assert run_inner("--crate-all", env={"HOME": str(pytester.path)}).outcomes() == {"passed": 2}


def test_project_in_a_home_directory_that_the_run_has_made(pytester: pytest.Pytester, run_inner: RunInner) -> None:
    """The same where all that is in a temporary directory is shown because a wider fixture has put something there."""
    pytester.makeconftest(
        """
        import os, pathlib, tempfile, pytest
        @pytest.fixture(scope="session", autouse=True)
        def wide():
            place = pathlib.Path(tempfile.mkdtemp(dir="/tmp"))
            with pytest.MonkeyPatch.context() as patch:
                (place / "home").mkdir()
                (place / "home" / ".secret").touch()
                (place / "beside").touch()
                patch.setenv("HOME", str(place / "home"))
                patch.syspath_prepend(str(place / "home" / "lib"))
                (place / "home" / "lib").mkdir()
                (place / "home" / "lib" / "late.py").touch()
                yield place
            for path in sorted(place.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            place.rmdir()
        """
    )
    pytester.makepyfile(
        """
        import os
        def test_it(wide):
            import late
            assert (wide / "beside").exists()
            assert not (wide / "home" / ".secret").exists()
        """
    )
    run = run_inner("--crate-all")
    assert run.outcomes() == {"passed": 1}, run.text
