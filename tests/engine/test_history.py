"""The event history: sequence numbers, and the wait for the next change."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from agent.domain.events import Event, EventKind
from agent.domain.stored_state import Changes
from agent.engine.database import Database
from agent.engine.history import History
from agent.engine.state_store import StateStore

if TYPE_CHECKING:
    from pathlib import Path


async def add_events(store: StateStore, *vms: str) -> None:
    async with store.transaction() as transaction:
        transaction.apply(Changes(events=tuple(Event(EventKind.VM_READY, 1.0, vm=vm) for vm in vms)))


async def test_event_numbers_continue_after_a_restart(tmp_path: Path) -> None:
    for life in range(2):
        database = await Database.open(tmp_path / "journal.sqlite")
        store = StateStore(database, clock=lambda: 1.0, jitter=lambda: 0.5)
        await store.load()
        history = History(store, database)
        assert await history.last() == life * 3
        await add_events(store, "a", "b")
        await add_events(store, "a")
        events = await history.events(after=life * 3)
        assert [(number, event.vm) for number, event in events] == [
            (life * 3 + 1, "a"),
            (life * 3 + 2, "b"),
            (life * 3 + 3, "a"),
        ]
        await database.close()
    database = await Database.open(tmp_path / "journal.sqlite")
    history = History(StateStore(database, clock=lambda: 1.0, jitter=lambda: 0.5), database)
    assert [number for number, _ in await history.events(after=1, vm="a", limit=2)] == [3, 4]
    await database.close()


async def test_change_wakes_every_waiter(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "journal.sqlite")
    store = StateStore(database, clock=lambda: 1.0, jitter=lambda: 0.5)
    await store.load()
    history = History(store, database)
    waiting = [asyncio.create_task(history.changed(store.sequence)) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    await add_events(store, "a")
    async with asyncio.timeout(5):
        await asyncio.gather(*waiting)
        await history.changed(store.sequence - 1)
    await database.close()
