"""What a crate may write to on the host can't lead the mounts of another crate to the rest of the host."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import temporary_prefix

pytestmark = pytest.mark.needs("root", "overlay")

WAYS = {
    "the next test's marker": """
        import pytest

        @pytest.mark.crate(mounts=["shared:/shared:rw"])
        def test_replaces(crate_sandbox):
            crate_sandbox.run(["sh", "-c", "rm -r /shared/in; ln -s {target} /shared/in"], check=True)

        @pytest.mark.crate(mounts=["shared/in:/data:rw"])
        def test_mounts():
            open("/data/file", "w").close()
    """,
    "a body's, before the next test's marker": """
        import os, shutil, pytest

        @pytest.mark.crate(mounts=["shared:/shared:rw"])
        def test_replaces():
            shutil.rmtree("/shared/in")
            os.symlink("{target}", "/shared/in")

        @pytest.mark.crate(mounts=["shared/in/deeper:/data:rw"])
        def test_mounts(crate_sandbox):
            crate_sandbox.run(["touch", "/data/file"], check=True)
    """,
    "a crate by hand": """
        import pytest

        def test_mounts(crate_sandbox_factory, request):
            shared = request.path.parent / "shared"
            crate = crate_sandbox_factory(mounts=[f"{{shared}}:/shared:rw"])
            crate.run(["sh", "-c", "rm -r /shared/in; ln -s {target} /shared/in"], check=True)
            crate_sandbox_factory(mounts=[f"{{shared}}/in:/data:rw"]).run(["touch", "/data/file"], check=True)
    """,
}


@pytest.mark.parametrize("target", ["../victim", "{victim}", "../shared/other"], ids=["upwards", "absolute", "within"])
@pytest.mark.parametrize("way", WAYS)
def test_a_link_in_what_is_shared(
    pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, target: str
) -> None:
    """A program, or a body, puts a symbolic link in the place of what another crate is to show: if it leads out of the
    directory that was shared, that crate is refused, with the reason.

    The control: where it leads to another place in that directory, it is followed.
    """
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    victim, other = pytester.path / "victim", pytester.path / "shared" / "other"
    for directory in (victim, other, pytester.path / "shared" / "in"):
        (directory / "deeper").mkdir(parents=True)
    pytester.makeini("[pytest]\n")
    pytester.makepyfile(WAYS[way].format(target=target.format(victim=victim)))
    report = tmp_path / "report.json"
    result = pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "-p", "no:hypothesispytest", f"--crate-report={report}"
    )
    written = [str(path.relative_to(pytester.path)) for path in pytester.path.rglob("file")]
    assert os.path.islink(pytester.path / "shared" / "in")
    if target == "../shared/other":
        assert result.ret == 0
        assert written == ["shared/other/deeper/file" if "body" in way else "shared/other/file"]
    else:
        assert written == []
        assert result.ret == 1
        told = f"a symbolic link in {pytester.path}/shared, where crates may write, leads to {victim}"
        assert told in result.stdout.str()
    outcomes = [test["outcome"] for test in json.loads(report.read_text())["tests"]]
    assert "passed" in outcomes or way == "a crate by hand"


@pytest.mark.parametrize("target", ["../victim", "{victim}", "other"], ids=["upwards", "absolute", "within"])
def test_a_link_in_the_place_of_an_image(
    pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """A program puts a symbolic link in the place of an image in a directory that was shared: no crate shows what it
    leads to outside of that directory.

    The control: where it leads to another place in there, that one is the image.
    """
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    victim, other = pytester.path / "victim", pytester.path / "shared" / "other"
    for directory in (victim, other, pytester.path / "shared" / "image"):
        (directory / "usr").mkdir(parents=True)
        (directory / "secret").write_text(f"of {directory.name}")
    pytester.makeini("[pytest]\n")
    pytester.makepyfile(
        f"""
        import pytest

        @pytest.mark.crate(mounts=["shared:/shared:rw"])
        def test_replaces(crate_sandbox):
            target = {target.format(victim=victim)!r}
            crate_sandbox.run(["sh", "-c", f"rm -r /shared/image; ln -s {{target}} /shared/image"], check=True)

        @pytest.mark.crate(image="./shared/image")
        def test_shows(crate_sandbox):
            print("shown:", crate_sandbox.read_text("/secret"))
        """
    )
    text = pytester.runpytest_subprocess("-rP", "-p", "no:cacheprovider", "-p", "no:hypothesispytest").stdout.str()
    assert os.path.islink(pytester.path / "shared" / "image")
    if target == "other":
        assert "shown: of other" in text
    else:
        assert "shown:" not in text
        assert f"a symbolic link in {pytester.path}/shared, where crates may write, leads to {victim}" in text


REPLACED_BEFORE = """
import os
from pytest_crate.sandbox.sandbox import Engine
create = Engine.create
def replaced_before(engine, spec, operations, **keys):
    if spec.image is not None:
        os.rename({image!r}, {image!r} + ".old")
        os.symlink({target!r}, {image!r})
    return create(engine, spec, operations, **keys)
Engine.create = replaced_before
"""

NO_OVERLAY = """
import dataclasses
from pytest_crate.sandbox.sandbox import Engine
found = Engine.enforcement.fget
Engine.enforcement = property(lambda engine: dataclasses.replace(found(engine), overlay=False))
"""


@pytest.mark.parametrize("target", ["../victim", "other"], ids=["upwards", "within"])
@pytest.mark.parametrize("shown", ["", NO_OVERLAY], ids=["laid over", "copied"])
def test_an_image_that_is_replaced_while_a_crate_is_made(
    pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, shown: str
) -> None:
    """A program that still runs puts the link there when another crate has been planned, and is not made yet."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for directory in (pytester.path / "victim", pytester.path / "shared" / "other", pytester.path / "shared" / "image"):
        (directory / "usr").mkdir(parents=True)
        (directory / "secret").write_text(f"of {directory.name}")
    pytester.makeini("[pytest]\n")
    image = str(pytester.path / "shared" / "image")
    pytester.makeconftest(shown + REPLACED_BEFORE.format(image=image, target=target))
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.crate(mounts=["shared:/shared:rw"])
        def test_could_replace(crate_sandbox): pass

        @pytest.mark.crate(image="./shared/image")
        def test_shows(crate_sandbox):
            print("shown:", crate_sandbox.read_text("/secret"))
        """
    )
    text = pytester.runpytest_subprocess("-rP", "-p", "no:cacheprovider", "-p", "no:hypothesispytest").stdout.str()
    if target == "other":
        assert "shown: of other" in text
    else:
        assert "shown:" not in text
        assert (
            f"a symbolic link in {pytester.path}/shared, where crates may write, leads to {pytester.path}/victim"
            in text
        )


REPLACED_ENTRY_BEFORE = """
import os
from pytest_crate.sandbox.sandbox import Engine
create = Engine.create
def replaced_before(engine, spec, operations, **keys):
    if not spec.mounts:
        os.rename(os.environ["PLACE"], os.environ["PLACE"] + ".old")
        os.symlink({target!r}, os.environ["PLACE"])
    return create(engine, spec, operations, **keys)
Engine.create = replaced_before
"""

SEES = {
    "a directory": "os.listdir(path)",
    "a socket": "socket.socket(socket.AF_UNIX).connect(str(path / 's'))",
}


@pytest.mark.parametrize("target", ["upwards", "within"])
@pytest.mark.parametrize("what", SEES)
@pytest.mark.parametrize("shown", ["laid over", "read-only", "on an image"])
def test_an_entry_of_tmp_that_is_replaced_while_a_crate_is_made(
    pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, what: str, shown: str
) -> None:
    """A program puts the link in the place of what a wider fixture has made in /tmp, in a directory that was shared:
    no crate shows the files, or lets reach the servers, that it leads to outside of that directory."""
    (tmp_path / "home").mkdir()
    (tmp_path / "image" / "usr").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with ExitStack() as undo:
        shared, victim = (
            undo.enter_context(tempfile.TemporaryDirectory(prefix=temporary_prefix(name), dir="/tmp"))
            for name in ("shared", "victim")
        )
        server = undo.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(f"{victim}/s")
        server.listen()
        link = f"../{os.path.basename(victim)}" if target == "upwards" else "other"
        overlay = NO_OVERLAY if shown == "read-only" else ""
        pytester.makeconftest(overlay + REPLACED_ENTRY_BEFORE.format(target=link))
        if what == "a socket":
            os.rmdir(shared)  # the fixture makes it: what is shown is the whole of it, and each socket for itself
        pytester.makepyfile(
            f"""
            import os, socket, pytest

            @pytest.fixture(scope="session")
            def place():
                os.makedirs("{shared}", exist_ok=True)
                with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as other:
                    for each, name in ((server, "place"), (other, "other")):
                        os.mkdir(f"{shared}/{{name}}")
                        each.bind(f"{shared}/{{name}}/s")
                        each.listen()
                    yield "{shared}/place"

            def test_it(place, crate_sandbox_factory, monkeypatch):
                monkeypatch.setenv("PLACE", place)
                crate_sandbox_factory(mounts=["{shared}:/shared:rw"])
                crate = crate_sandbox_factory(image={str(tmp_path / "image") if shown == "on an image" else None!r})
                path = crate.root / place[1:]
                print("shown:", {SEES[what]})
            """
        )
        text = pytester.runpytest_subprocess("-rP", "-p", "no:cacheprovider", "-p", "no:hypothesispytest").stdout.str()
    if target == "within":
        assert "shown:" in text
    else:
        assert "shown:" not in text
        assert f"a symbolic link in {shared}, where crates may write, leads to {victim}" in text


SHOWS_BASETEMP = {
    "a body": "def test_it(): print('shown:', os.listdir(os.environ['PLACE']))",
    "a program": "def test_it(crate_sandbox): print('shown:', crate_sandbox.run(['ls', os.environ['PLACE']]).stdout)",
}


@pytest.mark.parametrize("target", ["upwards", "within"])
@pytest.mark.parametrize("who", SHOWS_BASETEMP)
def test_the_base_temporary_directory_is_replaced_while_a_crate_is_made(
    pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, who: str
) -> None:
    """The same of pytest's base temporary directory, which bodies may write to, in a directory that was shared."""
    shared, victim = tmp_path / "shared", tmp_path / "victim"
    for directory in (tmp_path / "home", shared / "other", victim):
        directory.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PLACE", str(shared / "place"))
    pytester.makeconftest(REPLACED_ENTRY_BEFORE.format(target="../victim" if target == "upwards" else "other"))
    pytester.makepyfile(f"""
        import os, pytest

        def test_lends(crate_sandbox_factory, tmp_path):
            crate_sandbox_factory(mounts=["{shared}:/shared:rw"])

        @pytest.mark.crate
        {SHOWS_BASETEMP[who]}
    """)
    options = (f"--basetemp={shared}/place", "-p", "no:cacheprovider", "-p", "no:hypothesispytest")
    text = pytester.runpytest_subprocess("-rP", *options).stdout.str()
    if target == "within":
        assert "shown:" in text
    else:
        assert "shown:" not in text
        assert f"a symbolic link in {shared}, where crates may write, leads to {victim}" in text
