"""Helpers for tests of processes: bounded waits, pids from scripts, open descriptors."""

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


async def eventually(read: Callable[[], T], *, timeout_s: float = 10.0) -> T:
    """Poll `read` and return its first true value. Fails the test when there is none in time."""
    deadline_s = time.monotonic() + timeout_s
    while not (value := read()):
        assert time.monotonic() < deadline_s, "no true value in time"
        await asyncio.sleep(0.01)
    return value


async def pids_in(path: Path, count: int) -> list[ProcessIdentity]:
    """Wait until a script has written `count` pids, one per line; return those that still run."""

    def read_pids() -> list[int]:
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [int(line) for line in lines] if len(lines) >= count else []

    return [identity for pid in await eventually(read_pids) if (identity := identify(pid))]


async def gone(processes: Iterable[ProcessIdentity]) -> None:
    """Wait until killed processes are gone: those that another process must reap end a moment later."""
    ended = tuple(processes)
    await eventually(lambda: not any(is_alive(process) for process in ended))


def open_fds() -> int:
    """Return the number of open descriptors of this process."""
    return len(os.listdir("/dev/fd"))
