"""The heartbeat for the watchdog: it beats while the records' lock moves on, and not while it is stuck."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING

from agent.engine.engine import Engine
from tests.engine.support import Clock, open_store

if TYPE_CHECKING:
    from pathlib import Path


async def test_heartbeat_beats_while_a_pass_waits_for_the_lock(tmp_path: Path) -> None:
    async with open_store(tmp_path / "journal.sqlite", Clock()) as store:
        parts = SimpleNamespace(store=store, reconciler=SimpleNamespace(last_pass_s=1.0))
        engine = Engine(parts)  # type: ignore[arg-type]
        beats = {engine.heartbeat()}
        for _ in range(3):
            async with store.transaction():
                beats.add(engine.heartbeat())
        assert len(beats) == 4
        async with store.transaction():
            stuck = engine.heartbeat()
            waiting = asyncio.create_task(store.try_writing())
            await asyncio.sleep(0)
            assert engine.heartbeat() == stuck, "a stuck transaction is not a sign of life"
        assert await waiting
