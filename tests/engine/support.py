"""A state store on a real journal file, with a clock that the test moves."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agent.domain.model import Vm, VmSize
from agent.domain.states import VmState
from agent.domain.stored_state import Changes, Drop, Put
from agent.engine.database import Database
from agent.engine.state_store import StateStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from agent.domain.stored_state import Record


@dataclass
class Clock:
    """A clock that the test moves."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@asynccontextmanager
async def open_store(path: Path, clock: Clock) -> AsyncIterator[StateStore]:
    """Open a store as the agent does: from its journal."""
    database = await Database.open(path)
    try:
        store = StateStore(database, clock=clock, jitter=lambda: 0.5)
        await store.load()
        yield store
    finally:
        await database.close()


def vm(name: str, state: VmState = VmState.READY, *, pool: str = "ci", **fields: object) -> Vm:
    """Return a VM in a state."""
    made = Vm(name, pool, "sha256:v1", state, VmSize(), created_at_s=1.0, since_s=1.0, ready_at_s=2.0)
    return replace(made, **fields)  # type: ignore[arg-type]


async def put(store: StateStore, *records: Record) -> None:
    """Write records into a store."""
    async with store.transaction() as transaction:
        transaction.apply(Changes(tuple(Put(record) for record in records)))


async def drop(store: StateStore, kind: type[Record], key: str) -> None:
    """Remove a record from a store."""
    async with store.transaction() as transaction:
        transaction.apply(Changes((Drop(kind, key),)))


async def until(holds: Callable[[], bool], *, timeout_s: float = 10) -> None:
    """Wait until a condition holds that no event reports."""
    async with asyncio.timeout(timeout_s):
        while True:
            if holds():
                return
            await asyncio.sleep(0.01)
