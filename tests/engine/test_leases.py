"""The lease desk on a real journal: one VM for one lease, in order, durable, and nothing left over."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from agent.domain.actions import ExpireLease, GrantLease
from agent.domain.errors import LeaseNotFoundError, PoolUnknownError
from agent.domain.facts import ProcessExited, StartupProbesPassed
from agent.domain.model import Cause, HostLimits, HostMode, Lease, Mode, PoolSpec
from agent.domain.pool_view import by_waiting_time, pick_ready_vm
from agent.domain.states import VmState
from agent.domain.world import World
from agent.engine.leases import (
    BadTtlError,
    DrainingError,
    LeaseConflictError,
    LeaseDesk,
    LeaseEndedError,
    LeaseQueue,
    NoVmFreeError,
)
from agent.engine.operator_commands import OperatorCommands
from agent.engine.schema import JournalError
from tests.engine.support import Clock, open_store, put, vm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from agent.engine.database import Database
    from agent.engine.state_store import StateStore

POOL = PoolSpec("ci", "reg/ci:1", lease_ttl_s=600, lease_max_ttl_s=1000)


@dataclass
class Bench:
    store: StateStore
    desk: LeaseDesk
    queue: LeaseQueue
    clock: Clock
    woken: asyncio.Event
    refused: list[tuple[str, type[BaseException]]]  # as reported to the metrics

    def world(self) -> World:
        state = self.store.state
        return World(
            self.clock(), 0.5, HostLimits(1, 16, 65536), pools=(POOL,), vms=tuple(state.vms.values()),
            leases=tuple(state.leases.values()), requests=self.queue.requests, mode=state.mode,
            unclaimed_leases=frozenset(self.queue.failed & state.leases.keys()),
        )  # fmt: skip

    async def acquire(self, *, wait_s: float = 0.05, key: str | None = None, holder: str = "job") -> Lease:
        return await self.desk.acquire("ci", holder=holder, ttl_s=None, wait_s=wait_s, idempotency_key=key)

    async def queued(self, count: int) -> None:
        """Wait until that many requests are in the queue."""
        while len(self.queue.requests) != count:
            await asyncio.wait_for(self.woken.wait(), 5)
            self.woken.clear()
            await asyncio.sleep(0)

    async def grant_next(self) -> None:
        """Grant a ready VM to the request that waits longest, as a reconcile pass does."""
        async with self.store.transaction() as transaction:
            ready = pick_ready_vm(self.world(), "ci")
            assert ready is not None
            transaction.record(GrantLease(ready.name, by_waiting_time(self.world())[0]))


@asynccontextmanager
async def open_bench(path: Path) -> AsyncIterator[Bench]:
    clock, woken, numbers, queue = Clock(), asyncio.Event(), itertools.count(1), LeaseQueue()
    refused: list[tuple[str, type[BaseException]]] = []
    async with open_store(path / "journal.sqlite", clock) as store:
        desk = LeaseDesk(
            store,
            queue,
            lambda: bench.world(),  # noqa: PLW0108 - `bench` exists only afterwards
            new_id=lambda: f"id-{next(numbers):04}",
            on_refused=lambda pool, error: refused.append((pool, type(error))),
            wake=woken.set,
        )
        bench = Bench(store, desk, queue, clock, woken, refused)
        yield bench


async def test_ready_vm_is_leased_durably(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        await put(bench.store, vm("v1"))
        lease = await bench.acquire()
        assert (lease.vm, lease.holder, lease.expires_at_s) == ("v1", "job", 1600.0)
        async with open_store(tmp_path / "journal.sqlite", Clock()) as again:
            assert again.state.leases == {lease.id: lease}
            assert again.state.vms["v1"].state is VmState.LEASED
            assert again.state.vms["v1"].lease_id == lease.id


async def test_racing_clients_never_share_a_vm(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        await put(bench.store, *(vm(f"v{number}") for number in range(5)))
        answers = await asyncio.gather(*(bench.acquire(holder=f"h{n}") for n in range(12)), return_exceptions=True)
        leases = [answer for answer in answers if isinstance(answer, Lease)]
        assert len({lease.vm for lease in leases}) == len(leases) == 5
        assert sum(isinstance(answer, NoVmFreeError) for answer in answers) == 7


async def test_longest_waiting_request_is_granted_first(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        requests = []
        for number in range(3):
            requests.append(asyncio.create_task(bench.acquire(wait_s=30, holder=f"h{number}")))
            await bench.queued(number + 1)
        await put(bench.store, vm("v1"))
        await bench.grant_next()
        done, _ = await asyncio.wait(requests, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        assert [task.result().holder for task in done] == ["h0"]
        for task in requests:
            task.cancel()
        await asyncio.gather(*requests, return_exceptions=True)
        assert bench.queue.requests == ()


async def test_new_request_does_not_overtake_the_queue(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        first = asyncio.create_task(bench.acquire(wait_s=30, holder="first"))
        await bench.queued(1)
        await put(bench.store, vm("v1"))
        with pytest.raises(NoVmFreeError):
            await bench.acquire(holder="second")
        await bench.grant_next()
        assert (await asyncio.wait_for(first, 5)).holder == "first"


async def test_timed_out_request_names_the_limit_and_leaves_the_queue(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        await put(bench.store, vm("v1", VmState.STARTING, pool="other"))
        with pytest.raises(NoVmFreeError, match=r"became ready within 0\.05 s: no other fits, slots bind"):
            await bench.acquire()
        assert bench.queue.requests == ()


async def test_cancelled_waiting_request_takes_no_vm(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        request = asyncio.create_task(bench.acquire(wait_s=30))
        await bench.queued(1)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        assert bench.queue.requests == ()
        await put(bench.store, vm("v1"))
        assert bench.store.state.vms["v1"].state is VmState.READY


async def test_request_cancelled_at_any_step_keeps_no_lease(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        for steps in range(12):
            await put(bench.store, vm(f"v{steps}"))
            request = asyncio.create_task(bench.acquire(wait_s=30))
            for _ in range(steps):
                await asyncio.sleep(0)
            request.cancel()
            (answer,) = await asyncio.gather(request, return_exceptions=True)
            if isinstance(answer, Lease):
                await bench.desk.release(answer.id)
            assert not bench.store.state.leases
            assert all(found.lease_id is None for found in bench.store.state.vms.values())


async def test_request_leaves_the_queue_when_its_grant_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_bench(tmp_path) as bench:
        await put(bench.store, vm("v1"))

        async def fail(_database: Database, *_: object) -> None:
            raise JournalError("the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr("agent.engine.database.Database.write", fail)
            with pytest.raises(JournalError):
                await bench.acquire()
        assert bench.queue.requests == ()
        assert (await bench.acquire()).vm == "v1"


async def test_same_key_returns_the_same_lease(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        await put(bench.store, vm("v1"), vm("v2"))
        first, second = await asyncio.gather(bench.acquire(key="k"), bench.acquire(key="k"))
        assert first == second
        assert len(bench.store.state.leases) == 1
        with pytest.raises(LeaseConflictError, match="belongs to a lease of 'job'"):
            await bench.acquire(key="k", holder="another")


async def test_release_tears_the_vm_down(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        await put(bench.store, vm("v1"))
        lease = await bench.acquire()
        await bench.desk.release(lease.id)
        assert bench.store.state.vms["v1"].state is VmState.STOPPING
        with pytest.raises(LeaseEndedError, match="it was released"):
            await bench.desk.release(lease.id)
        with pytest.raises(LeaseNotFoundError):
            await bench.desk.get("never-granted")


async def test_ended_lease_reports_its_end_after_a_restart(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        await put(bench.store, vm("v1"), vm("v2"))
        expired, broken = await bench.acquire(), await bench.acquire()
        async with bench.store.transaction() as transaction:
            transaction.record(ExpireLease(expired.vm, expired.id))
            transaction.record(ProcessExited(broken.vm, None))
    async with open_bench(tmp_path) as bench:
        with pytest.raises(LeaseEndedError, match="it expired") as ended:
            await bench.desk.renew(expired.id, ttl_s=None)
        assert ended.value.ending.vm == expired.vm
        with pytest.raises(LeaseEndedError, match="its VM failed: its process ended") as ended:
            await bench.desk.get(broken.id)
        assert (ended.value.ending.vm, ended.value.ending.cause) == (broken.vm, Cause.EXITED)


async def test_renewal_counts_from_now_within_the_maximum(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        await put(bench.store, vm("v1"))
        lease = await bench.acquire()
        bench.clock.now_s = 1500
        assert (await bench.desk.renew(lease.id, ttl_s=None)).expires_at_s == 2100
        assert (await bench.desk.renew(lease.id, ttl_s=5000)).expires_at_s == 2500
        with pytest.raises(BadTtlError):
            await bench.desk.renew(lease.id, ttl_s=-1)


async def test_unknown_pool_and_closed_desk_are_refused(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        with pytest.raises(PoolUnknownError, match="there is no pool 'nope'"):
            await bench.desk.acquire("nope", holder="h", ttl_s=None, wait_s=1, idempotency_key=None)
        bench.desk.close()
        with pytest.raises(DrainingError):
            await bench.acquire()


async def test_request_that_times_out_during_its_grant_gets_the_lease(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        await put(bench.store, vm("v1", VmState.STARTING))
        request = asyncio.create_task(bench.acquire(wait_s=0.05))
        await bench.queued(1)
        (waiting,) = bench.queue.requests
        async with bench.store.transaction() as transaction:
            transaction.record(StartupProbesPassed("v1"))
            transaction.record(GrantLease("v1", waiting))
            await asyncio.sleep(0.2)  # the request times out, and cannot leave the queue during a transaction
        lease = await asyncio.wait_for(request, 5)
        assert lease.vm == "v1"
        assert set(bench.store.state.leases) == {lease.id}
        assert bench.queue.requests == ()


@pytest.mark.parametrize("mode", [Mode.CORDONED, Mode.DRAINING])
async def test_closed_host_grants_no_leases_and_keeps_granted_ones(tmp_path: Path, mode: Mode) -> None:
    async with open_bench(tmp_path) as bench:
        commands = OperatorCommands(bench.store, bench.desk, wake=bench.woken.set)
        await put(bench.store, vm("v1"), vm("v2"))
        lease = await bench.acquire(key="mine")
        await commands.set_mode(mode, reason="new disks")
        with pytest.raises(DrainingError, match=f"this host is {mode} and grants no leases: new disks"):
            await bench.acquire()
        assert await bench.acquire(key="mine") == lease
        assert (await bench.desk.renew(lease.id, ttl_s=None)).id == lease.id
        await commands.set_mode(Mode.OPEN, reason="")
        assert (await bench.acquire()).vm == "v2"


async def test_waiting_requests_are_refused_when_the_host_is_cordoned(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        commands = OperatorCommands(bench.store, bench.desk, wake=bench.woken.set)
        requests = [asyncio.create_task(bench.acquire(wait_s=60, holder=f"h{number}")) for number in range(3)]
        await bench.queued(3)
        await commands.set_mode(Mode.CORDONED, reason="")
        answers = await asyncio.wait_for(asyncio.gather(*requests, return_exceptions=True), 5)
        assert [type(answer) for answer in answers] == [DrainingError] * 3
        assert bench.queue.requests == ()


async def test_mode_survives_a_restart_with_its_start(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        commands = OperatorCommands(bench.store, bench.desk, wake=bench.woken.set)
        drained = await commands.set_mode(Mode.DRAINING, reason="new disks")
        bench.clock.now_s += 100
        assert (await commands.set_mode(Mode.DRAINING, reason="other disks")).since_s == drained.since_s
    async with open_store(tmp_path / "journal.sqlite", Clock()) as again:
        assert again.state.mode == HostMode(Mode.DRAINING, drained.since_s, "other disks")


async def test_every_refused_request_is_reported_to_the_metrics(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        with pytest.raises(NoVmFreeError):
            await bench.acquire()
        request = asyncio.create_task(bench.acquire(wait_s=30))
        await bench.queued(1)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        assert bench.refused == [("ci", NoVmFreeError), ("ci", asyncio.CancelledError)]


async def test_second_request_of_a_key_waits_as_long_as_it_may(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        first = asyncio.create_task(bench.acquire(wait_s=30, key="k"))
        await bench.queued(1)
        with pytest.raises(NoVmFreeError, match="another request with the idempotency key 'k'"):
            await bench.acquire(wait_s=0, key="k")
        assert not first.done()
        second = asyncio.create_task(bench.acquire(wait_s=30, key="k"))
        await put(bench.store, vm("v1"))
        await bench.grant_next()
        assert (await first).id == (await second).id
