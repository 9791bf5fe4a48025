"""The event history: reads the journal's events, and waits for new ones."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.domain.events import Event
    from agent.engine.database import Database
    from agent.engine.state_store import StateStore


class History:
    """Reads events by sequence number. The numbers increase by one and survive restarts."""

    def __init__(self, store: StateStore, database: Database) -> None:
        self._store = store
        self._database = database
        self._change = asyncio.Event()
        store.on_change(self._note_change)

    async def events(self, *, after: int, vm: str | None = None, limit: int = 500) -> list[tuple[int, Event]]:
        """Return at most `limit` events in order with their numbers: those after `after`, of one VM if named."""
        return await self._database.events(after=after, vm=vm, limit=limit)

    async def of_vm(self, vm: str) -> tuple[Event, ...]:
        """Return the events of one VM, at most the first thousand."""
        return tuple(event for _, event in await self._database.events(vm=vm))

    async def trim(self) -> None:
        """Delete the oldest events beyond the limit. Raises `JournalError`."""
        await self._database.trim()

    async def last(self) -> int:
        """Return the number of the latest event; 0 if there is none."""
        return await self._database.last_event()

    async def changed(self, sequence: int) -> None:
        """Return as soon as the store's sequence number differs from `sequence`."""
        while self._store.sequence == sequence:
            await self._change.wait()

    def _note_change(self, _events: tuple[Event, ...]) -> None:
        # Wakes the current waiters once; later ones wait for the next change.
        self._change.set()
        self._change = asyncio.Event()
