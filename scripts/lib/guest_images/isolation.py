"""A private mount namespace for builds that mount disks.

When the last process of the build ends, even by SIGKILL, the kernel removes its mounts and their loop devices. Nothing
is left to unmount on the host.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Final

from scripts.lib.guest_images.build_tools import BuildError, program

MARKER: Final = "HEARTH_BUILD_ISOLATED"


def enter() -> None:
    """Restart this program in its own mount namespace by exec. Returns immediately when it already runs there."""
    if os.environ.get(MARKER):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        return
    if os.geteuid() != 0:
        raise BuildError("the debian guest needs root, for a loop device and a chroot; run the same with sudo")
    unshare = program("unshare")
    flags = ("--mount", "--propagation", "private")
    os.execve(unshare, [str(unshare), *flags, sys.executable, *sys.argv], {**os.environ, MARKER: "1"})
