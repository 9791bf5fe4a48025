"""Notices changes of a file, also of one that editors and tools replace by renaming another file over it."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Final

import structlog
from watchfiles import awatch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

log = structlog.get_logger()
logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it logs the number of changes at each one

RETRY_S: Final = 5.0
"""Delay before a folder that could not be watched is tried again."""

CHECK_S: Final = 10.0
"""Period of a check without a notice: network file systems send none, and a link may change in another folder."""


async def watch_file(path: Path, on_change: Callable[[], Awaitable[None]]) -> None:
    """Call `on_change` after each change of the file that has this path, until cancelled.

    The path is resolved at each check, so a link that is set to another file, in any part of the path, is a change.
    """
    last = file_stamp(path)
    while True:
        try:
            last = await _watch_folder(path, last, on_change)
        except (OSError, RuntimeError) as error:  # watchfiles raises these when the folder disappears
            log.warning("file-not-watched", path=str(path), error=str(error))
            await asyncio.sleep(RETRY_S)


async def _watch_folder(
    path: Path, last: tuple[int, ...] | None, on_change: Callable[[], Awaitable[None]]
) -> tuple[int, ...] | None:
    """Follow the file while its folder stays the same; return its last stamp."""
    # A watch on the file itself would end when another file is renamed over it.
    # awatch wakes every `step` milliseconds as long as the agent runs, so the step is a cost of an idle host.
    folder = _folder(path)
    if (stamp := file_stamp(path)) != last:
        last = stamp
        await on_change()
    period_ms = int(CHECK_S * 1000)
    async for _ in awatch(
        path.parent, recursive=False, debounce=50, step=200, rust_timeout=period_ms, yield_on_timeout=True
    ):
        # Any change in the folder counts: a ConfigMap changes by the link `..data`, editors use other names.
        if (stamp := file_stamp(path)) != last:
            last = stamp
            await on_change()
        if _folder(path) != folder:
            return last
    # awatch returns only when this task is cancelled: the scopes of anyio can swallow the cancellation.
    raise asyncio.CancelledError


def file_stamp(path: Path) -> tuple[int, ...] | None:
    """Return what changes with the file at `path`, links followed; None if there is none."""
    try:
        seen = os.stat(path)
    except OSError:
        return None
    return seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns


def _folder(path: Path) -> tuple[int, int]:
    seen = os.stat(path.parent)
    return seen.st_dev, seen.st_ino
