"""The programs that a crate's price is held against: other sandboxes, and the physical limit in C."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.commands import CommandFailed, run
from benchmarks.place import Place

_LIMIT_SOURCE = Path(__file__).parent / "limit.c"

# The least that a program can be: on an image without a C library it runs as well.
_TRUE_SOURCE = "int main(void) { return 0; }\n"

# What Debian calls the packages, with what of their libraries a minimal system lacks.
_DEBIAN: Mapping[str, tuple[str, ...]] = {
    "bwrap": ("bubblewrap",),
    "runc": ("runc",),
    "crun": ("crun", "libyajl2"),
}
_SEARCHED = ("usr/bin", "usr/sbin", "bin", "sbin")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """A command that runs ``true`` in a sandbox of its own.

    :ivar environ: variables that it needs.
    """

    command: Sequence[str]
    environ: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Programs:
    """Finds each program, on the machine or in a Debian package that is unpacked in the cache, not installed."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.absent: dict[str, str] = {}
        self.found: dict[str, Sandbox] = {}

    def look_for_all(self) -> None:
        """Try each once; what does not run here is absent, with the reason."""
        for name, prepare in (
            ("bwrap", self._bwrap),
            ("runc", lambda: self._oci("runc")),
            ("crun", lambda: self._oci("crun")),
            ("unshare", self._unshare),
            ("C limit", self._limit),
        ):
            try:
                sandbox = prepare()
                run(sandbox.command, environ=sandbox.environ, where=self.place.directory, seconds=60)
            except CommandFailed as error:
                self.absent[name] = str(error)
            else:
                self.found[name] = sandbox

    def static_true(self) -> Path:
        """Return a ``true`` that needs no other file.

        :raises CommandFailed: it can't be compiled here.
        """
        return self.place.compile(_TRUE_SOURCE, "true", "-static")

    def _bwrap(self) -> Sandbox:
        program, environ = self._program("bwrap")
        options = "--unshare-all --ro-bind / / --proc /proc --dev /dev --tmpfs /tmp"
        return Sandbox(command=[program, *options.split(), "true"], environ=environ)

    @staticmethod
    def _unshare() -> Sandbox:
        options = "--fork --pid --mount --net --uts --ipc --cgroup --mount-proc"
        return Sandbox(command=["unshare", *options.split(), "true"])

    def _oci(self, name: str) -> Sandbox:
        """Prepare a bundle of the OCI runtime specification: one program, the same limits as a crate's."""
        program, environ = self._program(name)
        bundle = self.place.directory / f"bundle-{name}"
        shutil.rmtree(bundle, ignore_errors=True)
        (bundle / "rootfs").mkdir(parents=True)
        shutil.copy(self.static_true(), bundle / "rootfs" / "true")
        run([program, "spec"], where=bundle, environ=environ)
        path = bundle / "config.json"
        config = json.loads(path.read_text())
        config["process"] |= {"terminal": False, "args": ["/true"]}
        config["linux"]["resources"] |= {
            "memory": {"limit": 256 << 20},
            "cpu": {"period": 100_000, "quota": 100_000 * (os.cpu_count() or 1)},
            "pids": {"limit": 128},
        }
        config["linux"]["cgroupsPath"] = f"/pytest-crate-bench-{name}"
        path.write_text(json.dumps(config))
        state = self.place.directory / f"state-{name}"
        command = [program, "--root", str(state), "run", "--bundle", str(bundle), f"pytest-crate-bench-{name}"]
        return Sandbox(command=command, environ=environ)

    def _limit(self) -> Sandbox:
        program = self.place.compile(_LIMIT_SOURCE.read_text(), "limit")
        return Sandbox(command=[str(program), "1", "true", *self.shown()])

    def shown(self) -> Sequence[str]:
        """Return what a crate shows of the places that it covers: pytest's basetemp, the environment, the project.

        The first is writable, as in a crate.
        """
        paths = ("basetemp", "shown-environment", "shown-project")
        for path in paths:
            (self.place.directory / path).mkdir(exist_ok=True)
        return [str(self.place.directory / path) for path in paths]

    def _program(self, name: str) -> tuple[str, Mapping[str, str]]:
        installed = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if installed:
            return installed, {}
        unpacked = self.place.directory / f"debian-{name}"
        if not unpacked.exists():
            self._unpack(name, unpacked)
        found = [unpacked / directory / name for directory in _SEARCHED if (unpacked / directory / name).exists()]
        if not found:
            raise CommandFailed(f"no {name} in its Debian package")
        libraries = ":".join(sorted({str(path.parent) for path in unpacked.glob("**/*.so.*")}))
        return str(found[0]), {"LD_LIBRARY_PATH": libraries} if libraries else {}

    def _unpack(self, name: str, unpacked: Path) -> None:
        self.place.say(f"fetching {name}")
        partial = self.place.directory / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            run(["apt-get", "download", *_DEBIAN[name]], where=partial, seconds=120)
            for package in partial.glob("*.deb"):
                run(["dpkg-deb", "-x", package, partial / "root"])
        except CommandFailed as error:
            lines = str(error).splitlines()
            raise CommandFailed(f"{name} is not installed, and can't be fetched: {lines[0]}: {lines[-1]}") from None
        (partial / "root").rename(unpacked)
