"""The small guest: Debian's kernel, busybox, the QEMU guest agent and dropbear. Boots in about three seconds.

Versions and flavours differ only in the kernel command line in `syslinux.cfg`. All share one base disk and differ in
two of its sectors.
"""

from __future__ import annotations

import gzip
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scripts.lib.guest_images import kernel, reinitialize
from scripts.lib.guest_images.build_tools import aside, cache_lock, copy_sparse, fingerprint, program, require, run
from scripts.lib.guest_images.cpio import Archive

DISK_BYTES: Final = 64 * 1024 * 1024
EPOCH_S: Final = 1_700_000_000
"""The date of every file in the guest, so that equal inputs give equal disks."""

GUEST_FILES: Final = Path(__file__).parent / "small_guest"
GUEST_PACKAGES: Final = ("busybox-static", "dropbear-bin", "qemu-guest-agent", "libc6")
SHARED_LIBRARY: Final = re.compile(r"(?:=> )?(/\S+) \(0x")

BOOT_CONFIG: Final = """\
DEFAULT guest
LABEL guest
KERNEL vmlinuz
INITRD initrd.gz
APPEND console=ttyS0 quiet panic=1 acpi=noirq cryptomgr.notests nokaslr {facts}
"""
"""The last three parameters save a third of the boot time on an emulated processor. Virtio needs no ACPI interrupt
routing, and a short-lived test guest needs neither cipher self-tests nor a randomised kernel address."""


@dataclass(frozen=True, slots=True)
class SmallGuest:
    """Parameters of a small guest."""

    version: str
    unhealthy: bool = False
    dies_after_s: int | None = None

    def command_line(self) -> str:
        """Return the guest's parameters for the kernel command line."""
        words = [f"hearth.version={self.version}"]
        if self.unhealthy:
            words.append("hearth.unhealthy=1")
        if self.dies_after_s is not None:
            words.append(f"hearth.dies_after_s={self.dies_after_s}")
        return " ".join(words)


def build(guest: SmallGuest, out: Path, *, refresh: bool = False) -> None:
    """Write the disk of `guest` to `out`. Raises `BuildError`. `refresh` downloads the newest kernel package."""
    require("cp", "mcopy")
    with cache_lock() as cache:
        base = _base_disk(cache, refresh=refresh)
        with aside(out) as disk:
            copy_sparse(base, disk)
            config = disk.with_name("syslinux.cfg")
            config.write_text(BOOT_CONFIG.format(facts=guest.command_line()))
            _copy_in(disk, config)


def _base_disk(cache: Path, *, refresh: bool) -> Path:
    """Return the bootable disk without boot configuration, from the cache when its inputs are unchanged."""
    downloads = cache / "packages"
    if refresh:
        for package in downloads.glob("linux-image-*.deb"):
            package.unlink()
    package = kernel.fetch(downloads)
    require("dpkg-query", "busybox", "dropbear", "qemu-ga")
    versions = run(["dpkg-query", "--show", *GUEST_PACKAGES])
    base = cache / f"small-base-{fingerprint(package.name, versions)}.img"
    if not base.exists():
        for stale in cache.glob("small-base-*.img"):
            stale.unlink()
        with tempfile.TemporaryDirectory(dir=cache) as folder, aside(base) as disk:
            _make_base(Path(folder), package, disk)
    return base


def _make_base(work: Path, package: Path, disk: Path) -> None:
    require("mkfs.vfat", "syslinux", "mcopy")
    linux = kernel.unpack(package, work / "kernel")
    initrd = work / "initrd.gz"
    hook = work / "reinitialize"
    reinitialize.build(hook)
    initrd.write_bytes(gzip.compress(_initramfs(linux, hook).to_bytes(), compresslevel=6, mtime=0))
    image = linux.image.rename(work / "vmlinuz")
    with disk.open("wb") as handle:
        handle.truncate(DISK_BYTES)
    run(["mkfs.vfat", "--invariant", "-F", "16", "-n", "HEARTH", disk])
    run(["syslinux", "--install", disk], env=_fixed_dates())
    _copy_in(disk, image, initrd)


def _initramfs(linux: kernel.Kernel, hook: Path) -> Archive:
    """Return the guest's root file system."""
    archive = Archive()
    for path in ("dev", "proc", "run", "sys", "tmp", "var", "root", "etc/dropbear"):
        archive.folder(path)
    archive.link("var/run", "/run")
    archive.character_device("dev/console", 5, 1)
    _add_busybox(archive)
    for tool in ("qemu-ga", "dropbear"):
        _add_program(archive, tool)
    archive.file("etc/hearth/on-resume", hook.read_bytes(), 0o755)
    for module in linux.modules:
        archive.file(f"lib/modules/{module.name}", module.read_bytes())
    archive.file("lib/modules/order", "".join(f"{module.name}\n" for module in linux.modules).encode())
    archive.tree(GUEST_FILES)
    return archive


def _add_busybox(archive: Archive) -> None:
    busybox = program("busybox")
    for applet in run([busybox, "--list-full"]).split():
        archive.link(applet, "/bin/busybox")
    archive.link("init", "/bin/busybox")
    archive.file("bin/busybox", busybox.read_bytes(), 0o755)  # last, because busybox lists itself among its applets


def _add_program(archive: Archive, tool: str) -> None:
    """Add a program under /usr/sbin, and its shared libraries at the paths of its loader."""
    path = program(tool)
    archive.file(f"usr/sbin/{tool}", path.read_bytes(), 0o755)
    for library in SHARED_LIBRARY.findall(run(["ldd", path])):
        archive.file(library.lstrip("/"), Path(library).read_bytes(), 0o755)


def _copy_in(disk: Path, *files: Path) -> None:
    """Copy files to the root of a FAT disk, with a fixed date."""
    for file in files:
        os.utime(file, (EPOCH_S, EPOCH_S))
    run(["mcopy", "-o", "-m", "-i", disk, *files, "::"], env=_fixed_dates())


def _fixed_dates() -> dict[str, str]:
    return {"SOURCE_DATE_EPOCH": str(EPOCH_S), "TZ": "UTC", "MTOOLS_SKIP_CHECK": "1"}
