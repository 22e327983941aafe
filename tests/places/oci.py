"""Runs a command in a container that runc makes of this machine's own files: ENGINE KIND COMMAND..."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# What the engine proposes; with one capability more; with nothing of /proc and /sys masked, either; with all.
KINDS = ("default", "setfcap", "unmasked", "privileged")


def configuration(engine: str, kind: str, rootfs: Path, command: list[str]) -> dict[str, object]:
    """Return what the engine's own ``spec`` proposes, with the machine's files; more than that only for other kinds."""
    with tempfile.TemporaryDirectory() as bundle:
        subprocess.run([engine, "spec"], cwd=bundle, check=True)
        config = json.loads(Path(bundle, "config.json").read_text())
    config["root"] = {"path": str(rootfs), "readonly": True}
    process = config["process"]
    process.update(args=command, cwd=os.getcwd(), terminal=False)
    process["env"] += ["COLUMNS=200", "HOME=/tmp/home"]
    # Where the interpreter and the packages are, and where we are.
    places = {"/usr", "/etc", sys.prefix, sys.base_prefix, str(Path(__file__).parents[2]), os.getcwd()}
    config["mounts"] += [
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777"]},
        *(
            {
                "destination": place,
                "type": "bind",
                "source": place,
                "options": ["rbind", "rw" if place == os.getcwd() else "ro"],
            }
            for place in sorted(places, key=lambda place: place.count("/"))
        ),
    ]
    if kind != "default":
        for names in process["capabilities"].values():
            names.append("CAP_SETFCAP")
    if kind in ("unmasked", "privileged"):
        config["linux"].update(maskedPaths=[], readonlyPaths=[])
    if kind == "privileged":
        everything = [f"CAP_{name.upper()}" for name in _capabilities()]
        process["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), everything)
        process["noNewPrivileges"] = False
        for mount in config["mounts"]:
            if mount["type"] in ("cgroup", "sysfs"):
                mount["options"] = [option for option in mount["options"] if option != "ro"]
    return dict(config)


def _capabilities() -> list[str]:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from pytest_crate.kernel.capabilities import read_capabilities  # noqa: PLC0415
    from pytest_crate.spec import CAPABILITIES  # noqa: PLC0415

    bounding = read_capabilities().bounding
    return [name for number, name in enumerate(CAPABILITIES) if bounding >> number & 1]


def main() -> int:
    """Run the command."""
    engine, kind, *command = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="pytest-crate-oci-") as bundle:
        rootfs = Path(bundle, "rootfs")
        rootfs.mkdir()
        for name in ("bin", "sbin", "lib", "lib64"):
            (rootfs / name).symlink_to(os.readlink(f"/{name}"))
        for name in ("root", "run", "var/tmp"):
            (rootfs / name).mkdir(parents=True)
        Path(bundle, "config.json").write_text(json.dumps(configuration(engine, kind, rootfs, command)))
        name = os.path.basename(bundle)
        return subprocess.run([engine, "run", "--bundle", bundle, name], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
