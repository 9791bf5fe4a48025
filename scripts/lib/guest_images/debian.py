"""The Debian guest: systemd, OpenSSH and the QEMU guest agent, installed by Debian's own tools on a 4 GiB disk.

A version is the disk of an earlier version, or the base disk, with packages installed in place, as in a real version
bump.
"""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from scripts.lib.guest_images import isolation, reinitialize
from scripts.lib.guest_images.build_tools import BuildError, aside, cache_lock, copy_sparse, fingerprint, require, run
from scripts.lib.guest_images.chroot import PARTITION_START_BYTES, install, mounted, run_in_chroot, runnable

if TYPE_CHECKING:
    from collections.abc import Iterator

DISK_BYTES: Final = 4 * 1024**3
BOOT_CODE: Final = Path("/usr/lib/EXTLINUX/mbr.bin")
GUEST_FILES: Final = Path(__file__).parent / "debian_guest"
PACKAGES: Final = (
    "ca-certificates",
    "dbus",
    "iproute2",
    "openssh-server",
    "qemu-guest-agent",
    "systemd-resolved",
    "systemd-sysv",
    "udev",
)
KERNEL_PACKAGES: Final = ("initramfs-tools", "linux-image-cloud-amd64")
UNITS: Final = ("systemd-networkd", "systemd-resolved", "hearth-version.socket")
UNWANTED_UNITS: Final = ("systemd-networkd-wait-online", "apt-daily.timer", "apt-daily-upgrade.timer")
"""Units that delay the boot until there is a network, or that use CPU time later."""


@dataclass(frozen=True, slots=True)
class DebianGuest:
    """Parameters of a Debian guest: version, added packages, and the disk of the earlier version."""

    version: str
    packages: tuple[str, ...] = ()
    start_from: Path | None = None


def build(guest: DebianGuest, out: Path, *, refresh: bool = False) -> None:
    """Write the disk of `guest` to `out`. Raises `BuildError`. `refresh` rebuilds the base disk."""
    if guest.start_from is not None and not guest.start_from.is_file():
        raise BuildError(f"there is no disk {guest.start_from} to start from")
    isolation.enter()
    require("cp")
    start = guest.start_from or _base_disk(refresh=refresh)
    with aside(out) as disk:
        copy_sparse(start, disk)
        with mounted(disk) as root:
            version_file = root / "etc/hearth-version"
            if guest.start_from is not None and not version_file.exists():
                raise BuildError(f"{guest.start_from} is not a disk that `demo-image debian` made")
            if guest.packages:
                with runnable(root):
                    install(root, *guest.packages)
            version_file.write_text(f"{guest.version}\n")


def _base_disk(*, refresh: bool) -> Path:
    """Return the disk without version and added packages, from the cache or built."""
    with cache_lock() as cache:
        base = cache / f"debian-base-{fingerprint()}.img"
        if refresh or not base.exists():
            for stale in cache.glob("debian-base-*.img"):
                stale.unlink()
            with aside(base) as disk:
                _make_base(disk)
        return base


def _make_base(disk: Path) -> None:
    require("debootstrap", "extlinux", "mkfs.ext4", "sfdisk")
    _partition(disk)
    with mounted(disk) as root:
        release = platform.freedesktop_os_release()["VERSION_CODENAME"]
        sources = list(_apt_sources(release))
        if not sources:
            raise BuildError(f"the host has no package source for Debian {release}; add one and run: apt-get update")
        mirror = sources[0].split()[1]
        run(["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", release, root, mirror])
        shutil.copytree(GUEST_FILES, root, dirs_exist_ok=True)
        reinitialize.build(root / "usr/local/sbin/reinitialize")
        (root / "etc/apt/sources.list").write_text("".join(f"{source}\n" for source in sources))
        with runnable(root):
            install(root, *KERNEL_PACKAGES)
            run_in_chroot(root, "systemctl", "enable", *UNITS)
            run_in_chroot(root, "systemctl", "mask", *UNWANTED_UNITS)
            run_in_chroot(root, "passwd", "--delete", "root")
        for key in (root / "etc/ssh").glob("ssh_host_*"):
            key.unlink()
        (root / "etc/machine-id").write_text("")  # each guest generates its own at boot
        run(["extlinux", "--install", root / "boot"])


def _partition(disk: Path) -> None:
    """Make a disk with one bootable partition and an ext4 file system that EXTLINUX can read."""
    with disk.open("wb") as handle:
        handle.write(BOOT_CODE.read_bytes())
        handle.truncate(DISK_BYTES)
    run(["sfdisk", "--quiet", disk], stdin=f"start={PARTITION_START_BYTES // 512}, type=83, bootable\n")
    blocks = (DISK_BYTES - PARTITION_START_BYTES) // 4096
    features = ["-O", "^64bit,^metadata_csum", "-E", f"offset={PARTITION_START_BYTES},lazy_itable_init=0"]
    run(["mkfs.ext4", "-q", "-F", "-m", "0", "-L", "hearth-root", "-b", "4096", *features, disk, str(blocks)])


def _apt_sources(release: str) -> Iterator[str]:
    """Yield the host's Debian sources, the release first. The guest's packages come from the host's mirror."""
    fields = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    targets = run(["apt-get", "indextargets", "--format", fields, "Created-By: Packages"]).splitlines()
    known = {tuple(line.split()) for line in targets}
    for suite in (release, f"{release}-updates", f"{release}-security"):
        for uri, of_suite, component in sorted(target for target in known if len(target) == 3):
            if (of_suite, component) == (suite, "main"):
                yield f"deb {uri} {suite} main"
