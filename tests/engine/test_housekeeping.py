"""Housekeeping: tasks run immediately and then periodically; a failed one does not delay the others."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from agent.domain.events import Event, EventKind
from agent.engine import database as journals
from agent.engine.database import Database
from agent.engine.housekeeping import run_housekeeping
from agent.engine.schema import JournalError

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


async def test_failed_task_runs_again_and_delays_no_other() -> None:
    done: asyncio.Queue[str] = asyncio.Queue()

    async def fails() -> None:
        done.put_nowait("failed")
        raise JournalError("the disk is full")

    async def works() -> None:
        done.put_nowait("worked")

    keeping = asyncio.create_task(run_housekeeping(fails, works, period_s=0.01))
    async with asyncio.timeout(5):
        assert [await done.get() for _ in range(4)] == ["failed", "worked", "failed", "worked"]
    keeping.cancel()


async def test_trim_keeps_the_latest_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "KEPT_EVENTS", 10)
    database = await Database.open(tmp_path / "journal.sqlite")
    await database.write([], [Event(EventKind.VM_READY, float(number), vm="v") for number in range(25)])
    await database.trim()
    assert [number for number, _ in await database.events()] == list(range(16, 26))
    await database.write([], [Event(EventKind.VM_GONE, 99.0, vm="v")])
    assert await database.last_event() == 26
    await database.close()
