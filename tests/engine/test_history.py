"""The events as the journal keeps them, and being woken by the next change."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from agent.domain.events import EventKind
from agent.engine.history import History
from agent.engine.journal import Journal
from agent.engine.ledger import Ledger

if TYPE_CHECKING:
    from pathlib import Path


async def happen(ledger: Ledger, *vms: str) -> None:
    async with ledger.transaction() as transaction:
        for vm in vms:
            transaction.event(EventKind.VM_READY, vm=vm)


async def test_events_are_numbered_on_over_a_restart(tmp_path: Path) -> None:
    for life in range(2):
        journal = await Journal.open(tmp_path / "journal.sqlite")
        ledger = Ledger(journal, clock=lambda: 1.0)
        await ledger.load()
        history = History(ledger, journal)
        assert await history.last() == life * 3
        await happen(ledger, "a", "b")
        await happen(ledger, "a")
        told = await history.events(after=life * 3)
        assert [(number, event.vm) for number, event in told] == [
            (life * 3 + 1, "a"),
            (life * 3 + 2, "b"),
            (life * 3 + 3, "a"),
        ]
        await journal.close()
    journal = await Journal.open(tmp_path / "journal.sqlite")
    history = History(Ledger(journal, clock=lambda: 1.0), journal)
    assert [number for number, _ in await history.events(after=1, vm="a", limit=2)] == [3, 4]
    await journal.close()


async def test_a_change_wakes_everybody_who_waits_for_it(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "journal.sqlite")
    ledger = Ledger(journal, clock=lambda: 1.0)
    await ledger.load()
    history = History(ledger, journal)
    waiting = [asyncio.create_task(history.changed(ledger.sequence)) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    await happen(ledger, "a")
    async with asyncio.timeout(5):
        await asyncio.gather(*waiting)
        await history.changed(ledger.sequence - 1)
    await journal.close()
