"""The agent dies after every write of its journal, one at a time, and the next agent reaches the assigned state."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Final

import pytest

from agent.domain.errors import RefusedError
from agent.domain.events import EventKind
from agent.domain.states import VmState
from agent.engine.database import Database
from agent.engine.schema import JournalError
from agent.hypervisors.simulated import Behaviour, SimulatedHost, uniform
from tests.engine.test_convergence import POOLS, running, tiny_image, until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from agent.domain.events import Event
    from agent.domain.stored_state import Change

STEPS: Final = 26
"""Writes of the life below, from an empty journal to a replaced VM; a life with fewer fails the test."""
LIVELY: Final = Behaviour(clone_s=uniform(0, 0.01), boot_s=uniform(0, 0.01), suspend_s=uniform(0, 0.01))


class Death:
    """Lets a number of writes through; from then on nothing becomes durable, as when the agent is dead."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
        self.writes, self.after = 0, after
        self.came = asyncio.Event()
        alive = Database.write

        async def write(database: Database, changes: Sequence[Change], events: Sequence[Event]) -> None:
            if self.writes >= self.after:
                self.came.set()
                raise JournalError("the agent is dead")
            self.writes += 1
            await alive(database, changes, events)

        monkeypatch.setattr(Database, "write", write)


async def life(path: Path, simulated: SimulatedHost, death: Death) -> set[str]:
    """Fill the pool, lease, release, and lose a VM; return the leases that were promised and not given back."""
    promised: set[str] = set()
    async with running(path, simulated, slots=3) as engine:

        async def use() -> None:
            for _ in range(2):
                with contextlib.suppress(RefusedError):
                    lease = await engine.leases.acquire("a", holder="job", ttl_s=60, wait_s=60, idempotency_key=None)
                    promised.add(lease.id)
            given_back = min(promised)
            promised.discard(given_back)  # from here on it may be there or not
            await engine.leases.release(given_back)
            await until(lambda: any(vm.state is VmState.READY for vm in engine.host.world().vms))
            (idle, *_) = (vm.name for vm in engine.host.world().vms if vm.state is VmState.READY)
            simulated.crash(idle)
            await asyncio.Event().wait()

        user = asyncio.create_task(use())
        async with asyncio.timeout(60):
            await death.came.wait()
        user.cancel()
        await asyncio.gather(user, return_exceptions=True)
    return promised


@pytest.mark.parametrize("after", range(1, STEPS))
async def test_nothing_is_lost_or_leaked_when_the_agent_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    layout = await tiny_image(tmp_path)
    (tmp_path / "assignment.toml").write_text(POOLS.format(name="a", layout=layout, warm=1, standby=1))
    simulated = SimulatedHost(behaviour=LIVELY, rng=random.Random(after))
    with monkeypatch.context() as patch:
        death = Death(patch, after)
        promised = await life(tmp_path, simulated, death)
    assert death.writes == after
    leased_pids = _pids(simulated)

    async with running(tmp_path, simulated, slots=3) as engine:
        leases = {lease.id: lease for lease in engine.host.world().leases}
        assert promised <= leases.keys(), "granted leases are kept"
        for lease in leases.values():
            assert simulated.vms[lease.vm].process is not None
            assert _pids(simulated)[lease.vm] == leased_pids[lease.vm], "a leased VM is not touched"

        def settled() -> bool:
            world = engine.host.world()
            states = sorted(vm.state for vm in world.vms if vm.state is not VmState.LEASED)
            rows = {vm.name for vm in world.vms}
            return states == [VmState.READY, VmState.STANDBY][: 3 - len(leases)] and set(simulated.vms) == rows

        await until(settled)
        assert {lease.id for lease in engine.host.world().leases} == leases.keys()
        events = [event for _, event in await engine.history.events(after=0, limit=1000)]
        granted = [event.vm for event in events if event.kind is EventKind.LEASE_GRANTED]
        assert len(granted) == len(set(granted)), "no VM serves two leases"
        failed = {event.cause for event in events if event.kind is EventKind.VM_FAILED}
        assert failed <= {"interrupted", "lost", "exited"}


def _pids(simulated: SimulatedHost) -> dict[str, int]:
    return {name: vm.process.pid for name, vm in simulated.vms.items() if vm.process is not None}
