"""The lease desk on a real journal: one VM for one lease, in order, durable, nothing left behind."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from agent.domain.actions import ExpireLease
from agent.domain.model import Cause, Failure, HostMode, Lease, Mode, PoolSpec, Vm
from agent.domain.pool_view import pick_ready
from agent.domain.states import VmEvent, VmState
from agent.engine.intents import fail_vm, intend
from agent.engine.leases import (
    BadTtlError,
    DrainingError,
    LeaseConflictError,
    LeaseDesk,
    LeaseEndedError,
    LeaseNotFoundError,
    NoVmFreeError,
    PoolUnknownError,
)
from agent.engine.operator_commands import OperatorCommands
from tests.engine.support import Clock, open_ledger, put, vm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from agent.engine.state_store import StateStore

POOL = PoolSpec("ci", "reg/ci:1", lease_ttl_s=600, lease_max_ttl_s=1000)


@dataclass
class Bench:
    store: StateStore
    desk: LeaseDesk
    clock: Clock
    woken: asyncio.Event
    refused: list[tuple[str, type[BaseException]]]  # as told to who counts

    async def acquire(self, *, wait_s: float = 0.05, key: str | None = None, holder: str = "job") -> Lease:
        return await self.desk.acquire("ci", holder=holder, ttl_s=None, wait_s=wait_s, idempotency_key=key)

    async def queued(self, count: int) -> None:
        """Wait until that many requests stand in line."""
        while len(self.desk.waiters) != count:
            await asyncio.wait_for(self.woken.wait(), 5)
            self.woken.clear()
            await asyncio.sleep(0)

    async def grant_next(self) -> None:
        """Do what a turn of the loop does when a VM turned ready: give it to who waits longest."""
        waiter = min(self.desk.waiters, key=lambda waiter: (waiter.since_s, waiter.id))
        async with self.store.transaction() as transaction:
            ready = pick_ready(tuple(self.store.vms.values()), "ci", None, frozenset())
            assert ready is not None
            lease = self.desk.intend_grant(transaction, waiter.id, ready.name)
        if lease is not None:
            self.desk.hand_over(waiter.id, lease)


@asynccontextmanager
async def bench(path: Path) -> AsyncIterator[Bench]:
    clock, woken, numbers = Clock(), asyncio.Event(), itertools.count(1)
    refused: list[tuple[str, type[BaseException]]] = []
    async with open_ledger(path / "journal.sqlite", clock) as store:
        desk = LeaseDesk(
            store,
            pool=lambda name: POOL if name == "ci" else None,
            busy=frozenset,
            why_none=lambda _: "slots bind",
            on_refused=lambda pool, error: refused.append((pool, type(error))),
            new_id=lambda: f"id-{next(numbers):04}",
            clock=clock,
            wake=woken.set,
        )
        yield Bench(store, desk, clock, woken, refused)


async def test_a_ready_vm_is_leased_at_once_and_durably(tmp_path: Path) -> None:
    async with bench(tmp_path) as on:
        await put(on.store, vm("v1"))
        lease = await on.acquire()
        assert (lease.vm, lease.holder, lease.expires_at_s) == ("v1", "job", 1600.0)
        async with open_ledger(tmp_path / "journal.sqlite", Clock()) as again:
            assert again.leases == {lease.id: lease}
            assert again.vms["v1"].state is VmState.LEASED
            assert again.vms["v1"].lease_id == lease.id


async def test_racing_clients_never_share_a_vm(tmp_path: Path) -> None:
    async with bench(tmp_path) as on:
        await put(on.store, *(vm(f"v{number}") for number in range(5)))
        answers = await asyncio.gather(*(on.acquire(holder=f"h{n}") for n in range(12)), return_exceptions=True)
        leases = [answer for answer in answers if isinstance(answer, Lease)]
        assert len({lease.vm for lease in leases}) == len(leases) == 5
        assert sum(isinstance(answer, NoVmFreeError) for answer in answers) == 7


async def test_who_waits_longest_is_served_first(tmp_path: Path) -> None:
    async with bench(tmp_path) as on:
        requests = []
        for number in range(3):
            requests.append(asyncio.create_task(on.acquire(wait_s=30, holder=f"h{number}")))
            await on.queued(number + 1)
        await put(on.store, vm("v1"))
        await on.grant_next()
        done, _ = await asyncio.wait(requests, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        assert [task.result().holder for task in done] == ["h0"]
        for task in requests:
            task.cancel()
        await asyncio.gather(*requests, return_exceptions=True)
        assert on.desk.waiters == ()


async def test_nobody_overtakes_the_line(tmp_path: Path) -> None:
    async with bench(tmp_path) as on:
        first = asyncio.create_task(on.acquire(wait_s=30, holder="first"))
        await on.queued(1)
        await put(on.store, vm("v1"))
        with pytest.raises(NoVmFreeError):
            await on.acquire(holder="second")
        await on.grant_next()
        assert (await asyncio.wait_for(first, 5)).holder == "first"


async def test_a_wait_that_ends_in_vain_says_why_and_leaves_the_line(tmp_path: Path) -> None:
    async with bench(tmp_path) as on:
        with pytest.raises(NoVmFreeError, match="turned ready within 0.05 s: slots bind"):
            await on.acquire()
        assert on.desk.waiters == ()


async def test_a_request_that_goes_away_while_waiting_gets_no_vm(tmp_path: Path) -> None:
    async with bench(tmp_path) as on:
        request = asyncio.create_task(on.acquire(wait_s=30))
        await on.queued(1)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        assert on.desk.waiters == ()
        await put(on.store, vm("v1"))
        assert on.store.vms["v1"].state is VmState.READY


async def test_a_request_cancelled_at_any_step_never_keeps_a_lease(tmp_path: Path) -> None:
    async with bench(tmp_path) as on:
        for steps in range(12):
            name = f"v{steps}"
            await put(on.store, vm(name))
            request = asyncio.create_task(on.acquire(wait_s=30))
            for _ in range(steps):
                await asyncio.sleep(0)
            request.cancel()
            (answer,) = await asyncio.gather(request, return_exceptions=True)
            if isinstance(answer, Lease):
                await on.desk.release(answer.id)
            assert not on.store.leases
            assert all(one.lease_id is None for one in on.store.vms.values())


async def test_the_same_key_gives_the_same_lease(tmp_path: Path) -> None:
    async with bench(tmp_path) as on:
        await put(on.store, vm("v1"), vm("v2"))
        one, two = await asyncio.gather(on.acquire(key="k"), on.acquire(key="k"))
        assert one == two
        assert len(on.store.leases) == 1
        with pytest.raises(LeaseConflictError, match="belongs to a lease of 'job'"):
            await on.acquire(key="k", holder="somebody else")


async def test_release_ends_the_vm_too(tmp_path: Path) -> None:
    async with bench(tmp_path) as on:
        await put(on.store, vm("v1"))
        lease = await on.acquire()
        await on.desk.release(lease.id)
        assert on.store.vms["v1"].state is VmState.STOPPING
        with pytest.raises(LeaseEndedError, match="it was released"):
            await on.desk.release(lease.id)
        with pytest.raises(LeaseNotFoundError):
            await on.desk.get("never-given")


async def test_how_a_lease_ended_is_told_also_after_a_restart(tmp_path: Path) -> None:
    async with bench(tmp_path) as on:
        await put(on.store, vm("v1"), vm("v2"))
        expired, broken = await on.acquire(), await on.acquire()
        async with on.store.transaction() as transaction:
            intend(transaction, ExpireLease(expired.id, expired.vm), jitter=0.5)
            dead = transaction.get(Vm, broken.vm)
            assert dead is not None
            fail_vm(transaction, dead, Failure(Cause.EXITED, "its process ended", 5.0), jitter=0.5)
    async with bench(tmp_path) as on:
        with pytest.raises(LeaseEndedError, match="its time was over") as ended:
            await on.desk.renew(expired.id, ttl_s=None)
        assert ended.value.ending.vm == expired.vm
        with pytest.raises(LeaseEndedError, match="its VM died: its process ended") as ended:
            await on.desk.get(broken.id)
        assert (ended.value.ending.vm, ended.value.ending.cause) == (broken.vm, Cause.EXITED)


async def test_renewal_counts_from_now_and_stays_within_the_maximum(tmp_path: Path) -> None:
    async with bench(tmp_path) as on:
        await put(on.store, vm("v1"))
        lease = await on.acquire()
        on.clock.now_s = 1500
        assert (await on.desk.renew(lease.id, ttl_s=None)).expires_at_s == 2100
        assert (await on.desk.renew(lease.id, ttl_s=5000)).expires_at_s == 2500
        with pytest.raises(BadTtlError):
            await on.desk.renew(lease.id, ttl_s=-1)


async def test_unknown_pools_and_closed_desks_are_told(tmp_path: Path) -> None:
    async with bench(tmp_path) as on:
        with pytest.raises(PoolUnknownError, match="there is no pool 'nope'"):
            await on.desk.acquire("nope", holder="h", ttl_s=None, wait_s=1, idempotency_key=None)
        on.desk.close()
        with pytest.raises(DrainingError):
            await on.acquire()


async def test_a_grant_for_a_request_that_left_changes_nothing(tmp_path: Path) -> None:
    async with bench(tmp_path) as on:
        await put(on.store, vm("v1"))
        async with on.store.transaction() as transaction:
            assert on.desk.intend_grant(transaction, "gone", "v1") is None
        assert on.store.table(Vm)["v1"].state is VmState.READY


async def test_a_request_that_gives_up_while_its_grant_is_written_gets_the_lease(tmp_path: Path) -> None:
    async with bench(tmp_path) as on:
        await put(on.store, vm("v1", VmState.STARTING))
        request = asyncio.create_task(on.acquire(wait_s=0.05))
        await on.queued(1)
        (waiter,) = on.desk.waiters
        async with on.store.transaction() as transaction:
            ready = transaction.get(Vm, "v1")
            assert ready is not None
            transaction.move(ready, VmEvent.PROVEN)
            lease = on.desk.intend_grant(transaction, waiter.id, "v1")
            assert lease is not None
            await asyncio.sleep(0.2)  # the request's time is over, and it cannot leave the line yet
        on.desk.hand_over(waiter.id, lease)
        assert await asyncio.wait_for(request, 5) == lease
        assert set(on.store.leases) == {lease.id}
        assert on.desk.waiters == ()


@pytest.mark.parametrize("mode", [Mode.CORDONED, Mode.DRAINING])
async def test_a_host_that_is_not_open_gives_no_leases_and_keeps_what_it_gave(tmp_path: Path, mode: Mode) -> None:
    async with bench(tmp_path) as on:
        operations = OperatorCommands(on.store, on.desk, wake=on.woken.set)
        await put(on.store, vm("v1"), vm("v2"))
        lease = await on.acquire(key="mine")
        await operations.set_mode(mode, reason="new disks")
        with pytest.raises(DrainingError, match=f"this host is {mode} and gives no leases: new disks"):
            await on.acquire()
        assert await on.acquire(key="mine") == lease
        assert (await on.desk.renew(lease.id, ttl_s=None)).id == lease.id
        await operations.set_mode(Mode.OPEN, reason="")
        assert (await on.acquire()).vm == "v2"


async def test_who_stands_in_line_is_refused_when_the_host_is_cordoned(tmp_path: Path) -> None:
    async with bench(tmp_path) as on:
        operations = OperatorCommands(on.store, on.desk, wake=on.woken.set)
        requests = [asyncio.create_task(on.acquire(wait_s=60, holder=f"h{number}")) for number in range(3)]
        await on.queued(3)
        await operations.set_mode(Mode.CORDONED, reason="")
        answers = await asyncio.wait_for(asyncio.gather(*requests, return_exceptions=True), 5)
        assert [type(answer) for answer in answers] == [DrainingError] * 3
        assert on.desk.waiters == ()


async def test_the_mode_outlives_the_agent_and_keeps_its_time(tmp_path: Path) -> None:
    async with bench(tmp_path) as on:
        operations = OperatorCommands(on.store, on.desk, wake=on.woken.set)
        asked = await operations.set_mode(Mode.DRAINING, reason="new disks")
        on.clock.now_s += 100
        assert (await operations.set_mode(Mode.DRAINING, reason="other disks")).since_s == asked.since_s
    async with open_ledger(tmp_path / "journal.sqlite", Clock()) as again:
        assert again.mode == HostMode(Mode.DRAINING, asked.since_s, "other disks")


async def test_every_request_without_a_lease_is_told_to_who_counts(tmp_path: Path) -> None:
    async with bench(tmp_path) as on:
        with pytest.raises(NoVmFreeError):
            await on.acquire()
        request = asyncio.create_task(on.acquire(wait_s=30))
        await on.queued(1)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        assert on.refused == [("ci", NoVmFreeError), ("ci", asyncio.CancelledError)]
