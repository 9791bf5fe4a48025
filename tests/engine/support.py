"""A store on a real journal file, with a clock the test moves."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agent.domain.model import Vm, VmSize
from agent.domain.states import VmState
from agent.engine.database import Database
from agent.engine.state_store import StateStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


@dataclass
class Clock:
    """Time that stands still until the test moves it."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@asynccontextmanager
async def open_ledger(path: Path, clock: Clock) -> AsyncIterator[StateStore]:
    """Open a store as the agent does: from what its journal holds."""
    database = await Database.open(path)
    try:
        store = StateStore(database, clock=clock)
        await store.load()
        yield store
    finally:
        await database.close()


def vm(name: str, state: VmState = VmState.READY, *, pool: str = "ci", **fields: object) -> Vm:
    """Return a VM in a state."""
    made = Vm(name, pool, "sha256:v1", state, VmSize(), created_at_s=1.0, since_s=1.0, ready_at_s=2.0)
    return replace(made, **fields)  # type: ignore[arg-type]


async def put(store: StateStore, *vms: Vm) -> None:
    """Write VMs into a store."""
    async with store.transaction() as transaction:
        for one in vms:
            transaction.put(one)


async def until(holds: Callable[[], bool], *, timeout_s: float = 10) -> None:
    """Wait until something holds that no event tells of."""
    async with asyncio.timeout(timeout_s):
        while True:
            if holds():
                return
            await asyncio.sleep(0.01)
