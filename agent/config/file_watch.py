"""Notices changes of a file, also of one that editors and tools replace by renaming another file over it."""

from __future__ import annotations

import asyncio
import logging
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


async def watch_file(path: Path, on_change: Callable[[], Awaitable[None]]) -> None:
    """Call `on_change` after each change of a file, until cancelled.

    A notice can be lost, for example while the folder of the file does not exist. Callers that must not miss a change
    also read the file periodically.
    """
    while True:
        try:
            await _watch_folder(path, on_change)
        except (OSError, RuntimeError) as error:  # watchfiles raises these when the folder disappears
            log.warning("file-not-watched", path=str(path), error=str(error))
            await asyncio.sleep(RETRY_S)
        else:
            return  # awatch returns only when this task is cancelled: the scopes of anyio can swallow the cancellation


async def _watch_folder(path: Path, on_change: Callable[[], Awaitable[None]]) -> None:
    # A watch on the file itself would end when another file is renamed over it.
    # awatch wakes every `step` milliseconds as long as the agent runs, so the step is a cost of an idle host.
    async for changes in awatch(path.parent, recursive=False, debounce=50, step=200):
        if any(changed.endswith(path.name) for _, changed in changes):
            await on_change()
