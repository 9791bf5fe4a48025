"""A private mount namespace for builds that mount disks.

However such a build ends, be it by a signal it cannot catch, the kernel takes its mounts, and with them their loop
devices, as soon as the last process of the build is gone. Nothing is left on the host to unmount.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Final

from scripts.lib.guest_images.build_tools import BuildError, program

MARKER: Final = "HEARTH_BUILD_ISOLATED"


def enter() -> None:
    """Become this same program in a mount namespace of its own; returns at once when it already runs there."""
    if os.environ.get(MARKER):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        return
    if os.geteuid() != 0:
        raise BuildError("the debian guest needs root, for a loop device and a chroot; run the same with sudo")
    unshare = program("unshare")
    flags = ("--mount", "--propagation", "private")
    os.execve(unshare, [str(unshare), *flags, sys.executable, *sys.argv], {**os.environ, MARKER: "1"})
