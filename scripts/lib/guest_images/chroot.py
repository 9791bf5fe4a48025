"""A guest's disk as a directory: mounted, and ready to run its own package tools in."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from scripts.lib.guest_images.build_tools import require, run

if TYPE_CHECKING:
    from collections.abc import Iterator

PARTITION_START_BYTES: Final = 1024 * 1024
"""Where the one partition begins; the megabyte before it holds the boot sector and aligns the rest."""

SCRATCH: Final = ("run", "tmp", "var/cache/apt", "var/lib/apt/lists")
"""Directories whose contents a build makes and an image must not hold."""

NO_SERVICES: Final = "usr/sbin/policy-rc.d"
"""Debian's hook that says whether a package may start its service (101: no)."""

APT_ENVIRONMENT: Final = {"DEBIAN_FRONTEND": "noninteractive", "HOME": "/root"}


@contextmanager
def mounted(disk: Path) -> Iterator[Path]:
    """Mount the guest's file system, with scratch directories in memory; its free space becomes holes at the end."""
    require("mount", "umount", "fstrim")
    root = Path(tempfile.mkdtemp(prefix="hearth-guest-"))
    try:
        run(["mount", "-o", f"loop,offset={PARTITION_START_BYTES}", disk, root])
        try:
            for path in SCRATCH:
                (root / path).mkdir(parents=True, exist_ok=True)
                run(["mount", "-t", "tmpfs", "-o", "mode=1777" if path == "tmp" else "mode=755", "tmpfs", root / path])
            yield root
            run(["fstrim", root])
        except BaseException:
            run(["umount", "--recursive", "--lazy", root])  # what was just killed may hold it a moment longer
            raise
        run(["umount", "--recursive", root])
    finally:
        root.rmdir()  # and never more: were it still mounted, its files are the guest's


@contextmanager
def runnable(root: Path) -> Iterator[None]:
    """Give programs in the mounted guest the kernel's view, the host's name servers, and no leave to start services."""
    run(["mount", "-t", "proc", "proc", root / "proc"])
    resolver = root / "run/systemd/resolve"  # where the guest's /etc/resolv.conf leads
    resolver.mkdir(parents=True)
    shutil.copyfile("/etc/resolv.conf", resolver / "stub-resolv.conf")
    policy = root / NO_SERVICES
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


def inside(root: Path, *argv: str) -> None:
    """Run a program of the guest in the guest."""
    run(["chroot", root, *argv], env=APT_ENVIRONMENT)


def install(root: Path, *packages: str) -> None:
    """Add Debian packages to the guest, keeping configuration files that are there already."""
    inside(root, "apt-get", "update", "-qq")
    inside(root, "apt-get", "install", "-y", "-qq", "-o", "Dpkg::Options::=--force-confold", "--", *packages)
