"""Compiles `reinitialize.c`, by which a guest that goes on from the memory of another becomes a machine of its own.

No tool of busybox makes the calls that reseed the kernel's random numbers at once (random(4)), and Debian's cloud
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
"""Nothing but the program itself, in one page: the same bytes from the same compiler."""


def build(program: Path) -> None:
    """Write the program, an ELF file for x86-64 that needs no library. Raises `BuildError`."""
    require("gcc")
    run(["gcc", *FLAGS, "-o", program, SOURCE])
    program.chmod(0o755)
