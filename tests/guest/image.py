"""The guest's disk: Debian with systemd, two kernels, a user and the tests' packages, built once and kept."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import filelock

SUITE = "bookworm"
USER = "tester"
"""Has a lingering user manager of systemd, and no password."""
PLAIN_USER = "plain"
"""Has none: no session is begun for it, and nothing is delegated to it."""
PACKAGES = (
    "systemd systemd-sysv dbus dbus-user-session libpam-systemd udev openssh-server sudo iproute2 procps uidmap "
    "python3 python3-venv linux-image-cloud-amd64 ca-certificates podman crun"
).split()
REQUIREMENTS = (
    "pytest>=9 pytest-xdist psutil filelock pluggy hypothesis jsonschema pytest-cov pytest-rerunfailures zstandard"
).split()
VENV = "/opt/tests"
"""Where the guest has the tests' packages."""

_MIB = 1 << 20
_SIZE_BYTES = 3 << 30

# Run in the new root, by the host's own shell: $1 is it.
_CUSTOMIZE = f"""
set -eu
root=$1
echo guest >"$root/etc/hostname"
printf '127.0.0.1 localhost\\n127.0.1.1 guest\\n' >"$root/etc/hosts"
echo '/dev/vda / ext4 rw 0 1' >"$root/etc/fstab"
printf '[Match]\\nName=eth0\\n[Network]\\nDHCP=yes\\n' >"$root/etc/systemd/network/eth0.network"
ln -sf /lib/systemd/system/systemd-networkd.service "$root/etc/systemd/system/multi-user.target.wants/"
# What an emulated machine would wait for.
for unit in systemd-networkd-wait-online.service apt-daily.timer apt-daily-upgrade.timer e2scrub_reap.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
for user in {USER} {PLAIN_USER}; do
    chroot "$root" useradd --create-home --shell /bin/bash "$user"
done
mkdir -p "$root/var/lib/systemd/linger"
: >"$root/var/lib/systemd/linger/{USER}"
printf 'UseDNS no\\nPermitRootLogin yes\\nMaxSessions 50\\n' >"$root/etc/ssh/sshd_config.d/guest.conf"
for home in root home/{USER}; do
    mkdir -p "$root/$home/.ssh"
    cp "$KEY" "$root/$home/.ssh/authorized_keys"
done
chroot "$root" chown -R {USER}: /home/{USER}/.ssh
cp -r "$WHEELS" "$root/opt/wheels"
chroot "$root" python3 -m venv {VENV}
chroot "$root" {VENV}/bin/pip install -q --no-index --find-links /opt/wheels $REQUIREMENTS
"""
_BACKPORT = f"""
set -eu
printf 'deb http://deb.debian.org/debian {SUITE}-backports main\\n' >"$1/etc/apt/sources.list.d/backports.list"
chroot "$1" apt-get update -q
chroot "$1" apt-get install -q -y --no-install-recommends -t {SUITE}-backports linux-image-cloud-amd64
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GuestImage:
    """A disk and what starts it.

    :ivar kernels: the kernels' releases, oldest first; each has ``vmlinuz-RELEASE`` and ``initrd.img-RELEASE``.
    :ivar key: the private key that root and :data:`USER` let in.
    """

    directory: Path
    kernels: tuple[str, ...]

    @property
    def disk(self) -> Path:
        """The root file system."""
        return self.directory / "disk.ext4"

    @property
    def key(self) -> Path:
        """The private key that root and :data:`USER` let in."""
        return self.directory / "key"


def cached_image(cache: Path) -> GuestImage:
    """Return the guest's image from a cache, built there if it isn't yet; takes two minutes then.

    :raises subprocess.CalledProcessError: a step of the build failed; its output is on stderr.
    """
    cache.mkdir(parents=True, exist_ok=True)
    recipe = "\n".join([SUITE, *PACKAGES, *REQUIREMENTS, _CUSTOMIZE, _BACKPORT, str(_SIZE_BYTES)])
    directory = cache / f"guest-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    with filelock.FileLock(f"{directory}.lock"):
        if not directory.exists():
            with tempfile.TemporaryDirectory(prefix="pytest-crate-guest", dir=cache) as building:
                _build(Path(building))
                os.rename(building, directory)
                os.mkdir(building)  # for the context manager to remove
    kernels = sorted(
        (path.name.removeprefix("vmlinuz-") for path in directory.glob("vmlinuz-*")),
        key=lambda release: tuple(map(int, release.split("-")[0].split("+")[0].split("."))),
    )
    return GuestImage(directory=directory, kernels=tuple(kernels))


def _build(directory: Path) -> None:
    root, wheels, key = directory / "root", directory / "wheels", directory / "key"
    _run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "guest", "-f", str(key)])
    python = [sys.executable, "-m", "pip"]
    # The guest's Python and C library are older than ours may be.
    only = ["--python-version", "3.11", "--implementation", "cp", "--platform", "manylinux2014_x86_64"]
    only += ["--platform", "manylinux_2_28_x86_64", "--platform", "any", "--only-binary", ":all:"]
    _run([*python, "download", "-q", "-d", str(wheels), *only, *REQUIREMENTS])
    _run(
        [
            "mmdebstrap",
            "--variant=minbase",
            "--quiet",
            f"--include={','.join(PACKAGES)}",
            f"--customize-hook={_script(directory / 'customize', _CUSTOMIZE)}",
            f"--customize-hook={_script(directory / 'backport', _BACKPORT)}",
            SUITE,
            str(root),
        ],
        environ={"KEY": f"{key}.pub", "WHEELS": str(wheels), "REQUIREMENTS": " ".join(REQUIREMENTS)},
    )
    for path in (root / "boot").glob("*-amd64"):
        if path.name.startswith(("vmlinuz-", "initrd.img-")):
            shutil.copy(path, directory / path.name)
    disk = directory / "disk.ext4"
    with open(disk, "wb") as file:
        file.truncate(_SIZE_BYTES)
    _run(["mkfs.ext4", "-q", "-F", "-d", str(root), str(disk)])
    for path in (root, wheels):
        shutil.rmtree(path)


def _script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh{text}", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def _run(argv: Sequence[str], *, environ: dict[str, str] | None = None) -> None:
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr, env={**os.environ, **(environ or {})})
