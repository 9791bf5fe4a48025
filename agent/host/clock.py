"""The agent's time: seconds since the epoch that run evenly, also while the host's clock is set.

It counts while the host sleeps: a lease of one hour ends one hour later by the clock on the wall. So it does not use
`time.monotonic`, which stops during the sleep of a Mac (mach_absolute_time) and of a Linux host."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def elapsed_s() -> float:
    """Return the seconds since some moment before this process, sleep of the host included. It cannot be set."""
    # macOS: mach_continuous_time, see clock_gettime(3). Linux: CLOCK_MONOTONIC_RAW would stop during a sleep.
    return time.clock_gettime(time.CLOCK_MONOTONIC_RAW if sys.platform == "darwin" else time.CLOCK_BOOTTIME)


class HostClock:
    """The agent's time. It follows a step of the host's clock only when `follow` is called."""

    def __init__(self, *, wall_s: Callable[[], float] = time.time, elapsed_s: Callable[[], float] = elapsed_s) -> None:
        self._wall_s = wall_s
        self.elapsed_s = elapsed_s
        self._offset_s = wall_s() - elapsed_s()

    def __call__(self) -> float:
        """Return the agent's time."""
        return self.elapsed_s() + self._offset_s

    def step_s(self) -> float:
        """Return by how much the host's clock is ahead of the agent's time."""
        return self._wall_s() - self()

    def follow(self, delta_s: float) -> None:
        """Move the agent's time."""
        self._offset_s += delta_s
