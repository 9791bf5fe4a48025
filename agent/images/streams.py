"""How many requests of one pull are under way: as many as allowed, fewer while the registry says it is too much."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Streams:
    """Slots that adapt: halved when a registry is overloaded, one more for each round of requests that went well."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = float(most)
        self._active = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def limit(self) -> int:
        """How many may be under way now."""
        return int(self._limit)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a slot and hold it."""
        while self._active >= self.limit:
            await self._turn()
        self._active += 1
        try:
            yield
        finally:
            self._active -= 1
            self._let_in()

    def overloaded(self) -> None:
        """The registry asked for less."""
        self._limit = max(1.0, self._limit / 2)

    def went_well(self) -> None:
        """A request was answered in full."""
        self._limit = min(float(self._most), self._limit + 1 / self._limit)
        self._let_in()

    async def _turn(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            with suppress(ValueError):
                self._waiting.remove(turn)
            self._let_in()  # the slot it was called for is for the next
            raise

    def _let_in(self) -> None:
        for _ in range(min(self.limit - self._active, len(self._waiting))):
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
