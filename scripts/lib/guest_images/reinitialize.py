"""Compiler of `reinitialize.c`, which gives a VM started from a template its own identity.

No busybox tool makes the calls that reseed the kernel's random numbers immediately (random(4)), and Debian's cloud
kernel has no driver for QEMU's vmgenid device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from scripts.lib.guest_images.build_tools import require, run

SOURCE: Final = Path(__file__).with_name("reinitialize.c")
FLAGS: Final = (
    *("-static", "-nostdlib", "-ffreestanding", "-Os", "-s"),
    *("-fno-pie", "-no-pie", "-fno-stack-protector", "-fcf-protection=none", "-fno-asynchronous-unwind-tables"),
    *("-Wl,--build-id=none", "-Wl,-z,noseparate-code", "-Wall", "-Wextra", "-Werror"),
)
"""Flags for a program of one page without a library. The same compiler gives the same bytes."""


def build(program: Path) -> None:
    """Write the program, an ELF file for x86-64 that needs no library. Raises `BuildError`."""
    require("gcc")
    run(["gcc", *FLAGS, "-o", program, SOURCE])
    program.chmod(0o755)
