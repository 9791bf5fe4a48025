"""A guest's disk as a directory: mounts, chroot, package installation."""

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
"""Start of the only partition. The MiB before it holds the boot sector and aligns the partition."""

SCRATCH: Final = ("run", "tmp", "var/cache/apt", "var/lib/apt/lists")
"""Directories with temporary contents that an image must not hold."""

NO_SERVICES: Final = "usr/sbin/policy-rc.d"
"""Debian's hook that decides whether a package may start its service (exit code 101: no)."""

APT_ENVIRONMENT: Final = {"DEBIAN_FRONTEND": "noninteractive", "HOME": "/root"}


@contextmanager
def mounted(disk: Path) -> Iterator[Path]:
    """Mount the guest's file system, with scratch directories in memory. Turns its free space into holes at the end."""
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
            run(["umount", "--recursive", "--lazy", root])  # a killed process may still use it
            raise
        run(["umount", "--recursive", root])
    finally:
        root.rmdir()  # not recursively: if it is still mounted, its files are the guest's


@contextmanager
def runnable(root: Path) -> Iterator[None]:
    """Prepare the mounted guest to run programs: /proc, the host's name servers, and no start of services."""
    run(["mount", "-t", "proc", "proc", root / "proc"])
    resolver = root / "run/systemd/resolve"  # target of the guest's link /etc/resolv.conf
    resolver.mkdir(parents=True)
    shutil.copyfile("/etc/resolv.conf", resolver / "stub-resolv.conf")
    policy = root / NO_SERVICES
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


def run_in_chroot(root: Path, *argv: str) -> None:
    """Run a program of the guest in a chroot."""
    run(["chroot", root, *argv], env=APT_ENVIRONMENT)


def install(root: Path, *packages: str) -> None:
    """Install Debian packages in the guest. Keeps existing configuration files."""
    run_in_chroot(root, "apt-get", "update", "-qq")
    run_in_chroot(root, "apt-get", "install", "-y", "-qq", "-o", "Dpkg::Options::=--force-confold", "--", *packages)
