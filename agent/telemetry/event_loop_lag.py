"""Measurement of the event loop's delay, which adds to the time of each request, probe and reconcile pass."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

PERIOD_S: Final = 1.0


async def observe_event_loop_lag(observe: Callable[[float], None]) -> None:
    """Report once a second by how many seconds the loop woke up late, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due_s = loop.time() + PERIOD_S
        await asyncio.sleep(PERIOD_S)
        observe(max(0.0, loop.time() - due_s))
