"""Blocking work in threads that is over when its caller goes on, also a caller that was cancelled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


async def finish_in_thread(work: Callable[[], T], *, if_cancelled: Callable[[T], object] | None = None) -> T:
    """Run `work` in a thread and return what it returns.

    A thread cannot be cancelled. Leaving it behind would let files and processes appear after they were looked for, so
    a cancel waits for its end, hands its result to `if_cancelled`, and goes on. For work that is short.
    """
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.wait([running])
    except asyncio.CancelledError:
        await asyncio.wait([running])
        if running.exception() is None and if_cancelled is not None:
            if_cancelled(running.result())
        raise
    return running.result()
