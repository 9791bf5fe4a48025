"""Housekeeping: trims stored events and evidence to their limits periodically."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from agent.domain.errors import HearthError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = structlog.get_logger()

PERIOD_S: Final = 600.0


async def run_housekeeping(*tasks: Callable[[], Awaitable[None]], period_s: float = PERIOD_S) -> None:
    """Run every task now and then every `period_s`, until cancelled. A failed task runs again in the next period."""
    while True:
        for task in tasks:
            try:
                await task()
            except (HearthError, OSError) as error:
                log.warning("housekeeping-failed", action=getattr(task, "__qualname__", str(task)), error=str(error))
        await asyncio.sleep(period_s)
