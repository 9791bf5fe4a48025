"""A cap on the network that all pulls share; it can change at any time and applies to transfers under way."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_BURST_S: Final = 0.1
_STEP_S: Final = 0.1
"""How soon a changed cap is noticed by a transfer that waits."""
_LEAST_S: Final = 0.001
"""A shorter wait is not worth a turn of the event loop."""


class Throttle:
    """Counts bytes against a rate. `bytes_per_s` may be set at any time; None lets everything through."""

    def __init__(
        self,
        bytes_per_s: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.bytes_per_s = bytes_per_s
        self._clock = clock
        self._sleep = sleep
        self._credit = 0.0
        self._counted_at_s = clock()

    async def take(self, count: int) -> float:
        """Count bytes that have come in, wait until the rate allows more, and return the seconds that took."""
        self._credit -= count
        began_s = self._clock()
        while (wait_s := self._wait_s()) > _LEAST_S:
            await self._sleep(min(wait_s, _STEP_S))
        return self._clock() - began_s

    def _wait_s(self) -> float:
        now_s = self._clock()
        passed_s, self._counted_at_s = now_s - self._counted_at_s, now_s
        rate = self.bytes_per_s
        if rate is None:
            self._credit = 0.0
            return 0.0
        self._credit = min(self._credit + passed_s * rate, rate * _BURST_S)
        return -self._credit / rate
