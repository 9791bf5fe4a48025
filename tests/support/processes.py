"""What tests of processes share: a bounded wait for what has no event, and processes seen from outside."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, TypeVar

from agent.processes.process import ProcessIdentity, identify, is_alive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

T = TypeVar("T")


async def eventually(look: Callable[[], T], *, timeout_s: float = 10.0) -> T:
    """Return the first true thing that `look` sees. Fails the test when it sees none in time."""
    deadline_s = time.monotonic() + timeout_s
    while not (seen := look()):
        assert time.monotonic() < deadline_s, "it did not come about in time"
        await asyncio.sleep(0.01)
    return seen


async def pids_in(path: Path, count: int) -> list[ProcessIdentity]:
    """Wait until a script has written down `count` pids, one a line, and return those that still are processes."""

    def look() -> list[int]:
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [int(line) for line in lines] if len(lines) >= count else []

    return [identity for pid in await eventually(look) if (identity := identify(pid))]


async def gone(processes: Iterable[ProcessIdentity]) -> None:
    """Wait until the kernel is done with processes that were killed: those not ours to reap end a moment later."""
    ended = tuple(processes)
    await eventually(lambda: not any(is_alive(process) for process in ended))


def open_fds() -> int:
    """How many descriptors this process holds."""
    return len(os.listdir("/dev/fd"))
