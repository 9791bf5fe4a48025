"""Debian's cloud kernel from its package, without installing it, and the modules for a QEMU guest."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from scripts.lib.guest_images.build_tools import BuildError, require, run

if TYPE_CHECKING:
    from pathlib import Path

META_PACKAGE: Final = "linux-image-cloud-amd64"
VERSIONED_PACKAGE: Final = re.compile(r"linux-image-\d[\w.+-]*-cloud-amd64")

MODULES: Final = (
    "virtio_pci",
    "virtio_console",  # the guest agent's port
    "virtio_net",
    "virtio_blk",
    "virtio_rng",
    "evdev",
    "button",  # ACPI's power button, pressed by `system_powerdown`
)


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel image and the modules to load, in the order of their dependencies."""

    image: Path
    modules: tuple[Path, ...]


def fetch(downloads: Path) -> Path:
    """Return the kernel's package file in `downloads`. Downloads the newest when there is none."""
    have = sorted(downloads.glob("linux-image-*-cloud-amd64_*.deb"))
    if have:
        return have[-1]
    require("apt-cache", "apt-get")
    found = VERSIONED_PACKAGE.search(run(["apt-cache", "depends", META_PACKAGE]))
    if found is None:
        raise BuildError(f"the package lists do not contain {META_PACKAGE}; refresh them with: apt-get update")
    downloads.mkdir(parents=True, exist_ok=True)
    try:
        run(["apt-get", "download", found.group()], cwd=downloads)
    except BuildError as error:
        raise BuildError(f"{error}; if the package lists are old, refresh them with: apt-get update") from error
    return next(downloads.glob(f"{found.group()}_*.deb"))


def unpack(package: Path, into: Path) -> Kernel:
    """Unpack a kernel package into the empty directory `into`."""
    require("dpkg-deb", "depmod", "modprobe")
    run(["dpkg-deb", "--extract", package, into])
    image = next((into / "boot").glob("vmlinuz-*"))
    release = image.name.removeprefix("vmlinuz-")
    run(["depmod", "--basedir", into, release])
    return Kernel(image=image, modules=_load_order(into, release))


def _load_order(root: Path, release: str) -> tuple[Path, ...]:
    """Return the files that `modprobe` loads for `MODULES`, each once."""
    order: dict[Path, None] = {}
    for module in MODULES:
        output = run(["modprobe", "--show-depends", "--dirname", root, "--set-version", release, module])
        order.update((root / line.split()[1], None) for line in output.splitlines() if line.startswith("insmod "))
    return tuple(order)
