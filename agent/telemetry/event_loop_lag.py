"""How late the event loop is: what every request, probe and turn pays on top of its own work."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

PERIOD_S: Final = 1.0


async def observe_event_loop_lag(observe: Callable[[float], None]) -> None:
    """Tell once a second by how many seconds the loop woke later than asked, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        asked_s = loop.time() + PERIOD_S
        await asyncio.sleep(PERIOD_S)
        observe(max(0.0, loop.time() - asked_s))
