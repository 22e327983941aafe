"""An image whose directories are symbolic links can't lead what a crate mounts or writes to the host."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.needs("root", "overlay")

# Where a crate mounts, or writes, while it is made; and the CVE of a runtime that was led astray there.
PLACES = {
    "dev": "CVE-2026-41579, CVE-2026-47766",
    "dev/null": "CVE-2025-31133",
    "dev/pts": "CVE-2025-52565",
    "dev/console": "CVE-2025-52565",
    "dev/shm": "CVE-2025-52565",
    "proc": "CVE-2019-19921, CVE-2025-52881",
    "sys": "CVE-2025-52881",
    "etc": "the host's name is written there",
    "etc/hosts": "the host's name is written there",
    "data": "CVE-2021-30465: a mount of the marker's",
    "home": "a parent of such a mount",
}
BODY = """
    import os, stat
    import pytest

    @pytest.mark.crate(image="./image.tar", mounts=[{mounts!r}, {deeper!r}])
    def test_body():
        assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
        assert os.listdir("/proc/self/fd")
        assert open("/data/given").read() == "given"
        assert open("/home/deeper/given").read() == "given"
        for path in ("/dev/made", "/etc/made", "/dev/shm/made"):
            try:
                open(path, "w").close()
            except OSError:
                pass  # it may be read-only, or lead nowhere
"""


def make_image(path: Path, place: str, target: str) -> None:
    """Make an image with one symbolic link among its directories."""
    with tarfile.open(path, "w") as archive:
        for name in ("dev", "proc", "sys", "etc", "tmp", "usr", "data", "home"):
            if name != place:
                member = tarfile.TarInfo(name)
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(member)
        link = tarfile.TarInfo(place)
        link.type, link.linkname = tarfile.SYMTYPE, target
        archive.addfile(link, io.BytesIO())


@pytest.mark.parametrize("upwards", [False, True], ids=["absolute", "upwards"])
@pytest.mark.parametrize("place", PLACES)
def test_a_link_in_an_image(
    pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, upwards: bool
) -> None:
    """Whatever of an image's places is a link to the host's: nothing is mounted or written there.

    The control: by its path alone, as string, the place is the host's.
    """
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "own").write_text("untouched")
    given = tmp_path / "given"
    given.mkdir()
    (given / "given").write_text("given")
    target = victim / "own" if place in ("dev/null", "dev/console", "etc/hosts") else victim
    make_image(pytester.path / "image.tar", place, f"{'../' * 40}{str(target)[1:]}" if upwards else str(target))
    store = tmp_path / "store"
    pytester.makeini(f"[pytest]\ncrate_image_store = {store}\n")
    mounts, deeper = f"{given}:/data", f"{given}:/home/deeper"
    pytester.makepyfile(BODY.format(mounts=mounts, deeper=deeper))
    before = Path("/proc/self/mountinfo").read_text()
    report = tmp_path / "report.json"
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", f"--crate-report={report}")
    assert os.listdir(victim) == ["own"]
    assert (victim / "own").read_text() == "untouched"
    assert Path("/proc/self/mountinfo").read_text() == before
    (test,) = json.loads(report.read_text())["tests"]
    assert (test["outcome"], len(test["crates"])) == ("passed", 1), result.stdout.str()
    (link,) = (path for path in store.rglob(os.path.basename(place)) if path.is_symlink())
    assert str(link).endswith(f"/{place}")
    assert os.path.realpath(link) == str(target)
