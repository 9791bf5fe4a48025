"""What would grow without end is kept within its bounds, now and then: events and evidence."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from agent.domain.errors import HearthError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = structlog.get_logger()

PERIOD_S: Final = 600.0


async def keep_house(*chores: Callable[[], Awaitable[None]], period_s: float = PERIOD_S) -> None:
    """Do every chore at once and then at a slow period, until cancelled. One that fails is tried again next time."""
    while True:
        for chore in chores:
            try:
                await chore()
            except (HearthError, OSError) as error:
                log.warning("chore-failed", action=getattr(chore, "__qualname__", str(chore)), error=str(error))
        await asyncio.sleep(period_s)
