"""The kernel's VM slots: two macOS guests on one Mac, of all users (T15). A guest holds one until it has ended."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = "com.apple.Virtualization.VirtualMachine"


def take(simulator: Path, count: int) -> int | None:
    """Take a free slot; return the descriptor that holds it, None if there is no free slot."""
    folder = simulator / "slots"
    folder.mkdir(exist_ok=True)
    for number in range(count):
        descriptor = os.open(folder / str(number), os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        return descriptor
    return None


def leak(slot: int, home: Path) -> None:
    """Start a process that holds a slot and ignores SIGTERM, like a virtual machine that the Mac did not release."""
    script = "import signal; signal.signal(15, signal.SIG_IGN); signal.pause()"
    subprocess.Popen(
        [PROGRAM, "-S", "-E", "-c", script, str(home)],
        executable=sys.executable,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        pass_fds=(slot,),
        start_new_session=True,
    )  # fmt: skip
