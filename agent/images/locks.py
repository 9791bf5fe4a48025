"""Advisory file locks between processes: the agent, the command line, and Tart. They end with their process."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from agent.images.errors import StoreBusyError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PERIOD_S: Final = 0.02


def try_lock(path: Path) -> int | None:
    """Lock an existing file or directory and return its descriptor; None if another process holds the lock.

    Closing the descriptor releases the lock.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def locked(path: Path, *, timeout_s: float = 30.0) -> Iterator[None]:
    """Hold the lock on an existing file or directory. Blocks; raises `StoreBusyError` after `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    while (descriptor := try_lock(path)) is None:
        if time.monotonic() >= deadline_s:
            raise StoreBusyError(
                f"{path} is locked by another process",
                remedy="find that process with `lsof`, and wait for it or end it",
            )
        time.sleep(_PERIOD_S)
    try:
        yield
    finally:
        os.close(descriptor)
