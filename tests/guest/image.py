"""The guest's disk: Debian with systemd, kernels of Debian's and Ubuntu's, two users and the tests' packages."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
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
    "python3 python3-venv linux-image-cloud-amd64 ca-certificates podman crun docker.io runc apparmor"
).split()
REQUIREMENTS = (
    "pytest>=9 pytest-xdist psutil filelock pluggy hypothesis jsonschema pytest-cov pytest-rerunfailures zstandard"
).split()
VENV = "/opt/tests"
"""Where the guest has the tests' packages."""

_MIB = 1 << 20
_SIZE_BYTES = 4 << 30

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
# Debian has no package of Ubuntu's keys.
_UBUNTU_KEYS_URL = (
    "http://archive.ubuntu.com/ubuntu/pool/main/u/ubuntu-keyring/ubuntu-keyring_2023.11.28.1_all.deb",
    "36de43b15853ccae0028e9a767613770c704833f82586f28eb262f0311adb8a8",
)
# Kernels: of Debian's backports, of the release before, of an Ubuntu whose AppArmor restricts user namespaces, and the
# oldest of all, of an earlier Ubuntu.
_KERNELS = f"""
set -eu
dpkg-deb -x "$KEYS" "$1"
cd "$1/etc/apt/sources.list.d"
printf 'deb http://deb.debian.org/debian {SUITE}-backports main\n' >backports.list
printf 'deb http://deb.debian.org/debian bullseye main\n' >older.list
printf 'deb [signed-by=/usr/share/keyrings/ubuntu-archive-keyring.gpg] \
http://archive.ubuntu.com/ubuntu %s main\n' noble-updates focal-updates \
    >ubuntu.list
# Of each, nothing but its kernel.
printf 'Package: *\nPin: release n=bullseye\nPin-Priority: 1\n\nPackage: *\nPin: release o=Ubuntu\nPin-Priority: 1\n' \
    >"$1/etc/apt/preferences.d/kernels"
chroot "$1" apt-get update -q
chroot "$1" apt-get install -q -y --no-install-recommends -t {SUITE}-backports linux-image-cloud-amd64
for package in linux-image-5.4.0 linux-image-5.10.0 linux-image-6.8.0; do
    chroot "$1" apt-cache search --names-only "^$package-[0-9]+-(cloud-amd64|generic)$" | sort -V | tail -n1 |\
 cut -d' ' -f1 |
        xargs chroot "$1" apt-get install -q -y --no-install-recommends
done
chroot "$1" apt-get clean
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GuestImage:
    """A disk and what starts it.

    :ivar kernels: the kernels' releases, oldest first; each has ``vmlinuz-RELEASE`` and ``initrd.img-RELEASE``.
    :ivar key: the private key that root and :data:`USER` let in.
    """

    directory: Path
    kernels: tuple[str, ...]

    def kernel(self, version: str) -> str:
        """Return the release of a version such as ``6.1``."""
        return next(release for release in self.kernels if release.startswith(f"{version}."))

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
    recipe = "\n".join([SUITE, *PACKAGES, *REQUIREMENTS, _CUSTOMIZE, _KERNELS, str(_SIZE_BYTES)])
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
    root, wheels, key, keys = (directory / name for name in ("root", "wheels", "key", "keys.deb"))
    _download(*_UBUNTU_KEYS_URL, keys)
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
            f"--customize-hook={_script(directory / 'kernels', _KERNELS)}",
            SUITE,
            str(root),
        ],
        environ={"KEY": f"{key}.pub", "KEYS": str(keys), "WHEELS": str(wheels), "REQUIREMENTS": " ".join(REQUIREMENTS)},
    )
    for pattern in ("vmlinuz-*", "initrd.img-*"):
        for path in (root / "boot").glob(pattern):
            shutil.copy(path, directory / path.name)
    disk = directory / "disk.ext4"
    with open(disk, "wb") as file:
        file.truncate(_SIZE_BYTES)
    _run(["mkfs.ext4", "-q", "-F", "-d", str(root), str(disk)])
    for path in (root, wheels):
        shutil.rmtree(path)
    keys.unlink()


def _download(url: str, digest: str, target: Path) -> None:
    with urllib.request.urlopen(url, timeout=60) as answer:
        data = answer.read()
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(f"{url} is not what it was")
    target.write_bytes(data)


def _script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh{text}", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def _run(argv: Sequence[str], *, environ: dict[str, str] | None = None) -> None:
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr, env={**os.environ, **(environ or {})})
