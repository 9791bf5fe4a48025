"""The lease desk: hands ready VMs to requests, one VM to one lease, durable before the answer.

A request that finds a ready VM and nobody waiting before it is served at once, without a turn of the loop. Otherwise
it waits in line; the planner decides who gets the next VM that turns ready.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Final
from weakref import WeakValueDictionary

from agent.domain.errors import ErrorOrigin, HearthError
from agent.domain.events import EventKind
from agent.domain.model import Lease, PoolSpec, Vm, Waiter
from agent.domain.pool_view import pick_ready
from agent.domain.states import VmEvent, VmState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agent.domain.events import Event
    from agent.engine.state_store import StateStore, Transaction


class LeaseError(HearthError):
    """Base of what the desk refuses."""

    origin: ClassVar[ErrorOrigin] = ErrorOrigin.REQUEST


class PoolUnknownError(LeaseError):
    """The assignment has no such pool."""

    code = "pool-unknown"


class LeaseNotFoundError(LeaseError):
    """No such lease was given in the time the journal remembers."""

    code = "lease-not-found"


class LeaseEndedError(LeaseError):
    """The lease was given and is over; `ending` is the event that tells how."""

    code = "lease-ended"

    def __init__(self, ending: Event) -> None:
        how = _ENDINGS[ending.kind]
        super().__init__(
            f"lease {ending.lease} ended: {how}" + (f": {ending.detail}" if ending.detail else ""),
            remedy="ask for a new lease",
        )
        self.ending = ending


_ENDINGS: Final = {
    EventKind.LEASE_RELEASED: "it was released",
    EventKind.LEASE_EXPIRED: "its time was over",
    EventKind.LEASE_BROKEN: "its VM died",
}


class LeaseConflictError(LeaseError):
    """An idempotency key was used before for another pool or holder."""

    code = "lease-conflict"


class NoVmFreeError(LeaseError):
    """No VM turned ready in the time the request was willing to wait."""

    code = "no-vm-free"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.HOST


class DrainingError(LeaseError):
    """The host takes no new leases."""

    code = "draining"


class BadTtlError(LeaseError):
    """The asked time to live is not a positive number."""

    code = "bad-ttl"


@dataclass(eq=False, slots=True)
class _Waiting:
    """A request in line: what the planner sees of it, and where its lease goes."""

    waiter: Waiter
    pool: PoolSpec
    holder: str
    ttl_s: float
    idempotency_key: str | None
    granted: asyncio.Future[Lease]


class LeaseDesk:
    """Gives, renews and ends leases."""

    def __init__(
        self,
        store: StateStore,
        *,
        pool: Callable[[str], PoolSpec | None],
        busy: Callable[[], frozenset[str]],
        why_none: Callable[[PoolSpec], str],
        on_refused: Callable[[str, BaseException], None],
        new_id: Callable[[], str],
        clock: Callable[[], float],
        wake: Callable[[], None],
    ) -> None:
        self._store = store
        self._pool = pool
        self._busy = busy
        self._why_none = why_none
        self._on_refused = on_refused
        self._new_id = new_id
        self._clock = clock
        self._wake = wake
        self._line: dict[str, _Waiting] = {}
        self._keys: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._closed = False

    @property
    def waiters(self) -> tuple[Waiter, ...]:
        """The requests in line, as the planner sees them."""
        return tuple(waiting.waiter for waiting in self._line.values())

    async def acquire(
        self, pool: str, *, holder: str, ttl_s: float | None, wait_s: float, idempotency_key: str | None
    ) -> Lease:
        """Claim a ready VM of `pool`, durable before this returns; waits at most `wait_s` for one to turn ready.

        The same `idempotency_key` gives the same lease again. A caller that is cancelled leaves no lease behind.
        Raises `PoolUnknownError`, `NoVmFreeError`, `LeaseConflictError`, `DrainingError`.
        """
        spec = self._pool(pool)
        if spec is None:
            raise PoolUnknownError(
                f"there is no pool {pool!r} on this host", remedy="see `hearth status` for its pools"
            )
        try:
            return await self._acquire_once(spec, holder, _ttl(spec, ttl_s), wait_s, idempotency_key)
        except (LeaseError, asyncio.CancelledError) as error:
            self._on_refused(pool, error)
            raise

    async def _acquire_once(
        self, spec: PoolSpec, holder: str, ttl_s: float, wait_s: float, idempotency_key: str | None
    ) -> Lease:
        """Give the lease that the key already has, or a new one."""
        if idempotency_key is None:
            return await self._acquire(spec, holder, ttl_s, wait_s, None)
        lock = self._keys.setdefault(idempotency_key, asyncio.Lock())
        async with lock:
            known = self._by_key(idempotency_key)
            if known is None:
                return await self._acquire(spec, holder, ttl_s, wait_s, idempotency_key)
            if (known.pool, known.holder) != (spec.name, holder):
                raise LeaseConflictError(
                    f"idempotency key {idempotency_key!r} belongs to a lease of {known.holder!r} on {known.pool!r}",
                    remedy="use a new key for a new lease",
                )
            return known

    async def renew(self, lease_id: str, *, ttl_s: float | None) -> Lease:
        """Let a lease live on for `ttl_s` (default: its own) from now. Raises as `get` does."""
        await self.get(lease_id)
        async with self._store.transaction() as transaction:
            lease = _found(transaction.get(Lease, lease_id), lease_id)
            spec = self._pool(lease.pool)
            ttl_s = lease.ttl_s if ttl_s is None else _ttl(spec, ttl_s)
            renewed = replace(lease, ttl_s=ttl_s, expires_at_s=transaction.now_s + ttl_s)
            transaction.put(renewed)
            transaction.event(EventKind.LEASE_RENEWED, lease=lease.id, vm=lease.vm, pool=lease.pool)
        return renewed

    async def release(self, lease_id: str) -> None:
        """End a lease: its VM is torn down, the pool refilled. Raises as `get` does."""
        await self.get(lease_id)
        async with self._store.transaction() as transaction:
            lease = _found(transaction.get(Lease, lease_id), lease_id)
            end_lease(transaction, lease, EventKind.LEASE_RELEASED)
        self._wake()

    async def get(self, lease_id: str) -> Lease:
        """Return a lease that lives. Raises `LeaseEndedError` for one that is over, else `LeaseNotFoundError`."""
        lease = self._store.leases.get(lease_id)
        if lease is None:
            ending = await self._store.last_of_lease(lease_id)
            if ending is not None and ending.kind in _ENDINGS:
                raise LeaseEndedError(ending)
        return _found(lease, lease_id)

    def intend_grant(self, transaction: Transaction, waiter_id: str, vm_name: str) -> Lease | None:
        """Write the lease that the planner decided on, unless its request has left the line meanwhile."""
        waiting, vm = self._line.get(waiter_id), transaction.get(Vm, vm_name)
        if waiting is None or vm is None or vm.state is not VmState.READY or vm_name in self._busy():
            return None
        return self._give(transaction, vm, waiting)

    def turn_away(self) -> None:
        """Refuse whoever stands in line, if this host gives no leases any more."""
        refusal = self._refusal()
        while refusal is not None and self._line:
            _, waiting = self._line.popitem()
            if not waiting.granted.done():
                waiting.granted.set_exception(refusal)

    def close(self) -> None:
        """Give no leases any more in this life of the agent. Leases that are given live on."""
        self._closed = True
        self.turn_away()

    def hand_over(self, waiter_id: str, lease: Lease) -> None:
        """Wake the request whose lease is now durable."""
        waiting = self._line.pop(waiter_id, None)
        if waiting is not None and not waiting.granted.done():
            waiting.granted.set_result(lease)

    async def _acquire(
        self, spec: PoolSpec, holder: str, ttl_s: float, wait_s: float, idempotency_key: str | None
    ) -> Lease:
        waiting = _Waiting(
            waiter=Waiter(self._new_id(), spec.name, self._clock()),
            pool=spec,
            holder=holder,
            ttl_s=ttl_s,
            idempotency_key=idempotency_key,
            granted=asyncio.get_running_loop().create_future(),
        )
        lease: Lease | None = None
        try:
            lease = await self._grant_at_once(waiting)
            if lease is None:
                lease = await self._stand_in_line(waiting, wait_s)
        except asyncio.CancelledError:
            await self._undo(waiting)
            raise
        return lease

    async def _grant_at_once(self, waiting: _Waiting) -> Lease | None:
        """Give a ready VM now, when there is one and nobody waits before this request; else join the line."""
        lease = None
        async with self._store.transaction() as transaction:
            refusal = self._refusal()
            if refusal is not None:
                raise refusal
            if not any(other.pool.name == waiting.pool.name for other in self._line.values()):
                rollout = self._store.rollouts.get(waiting.pool.name)
                serving = rollout.serving if rollout else None
                vm = pick_ready(tuple(self._store.vms.values()), waiting.pool.name, serving, self._busy())
                lease = self._give(transaction, vm, waiting) if vm else None
            if lease is None:
                self._line[waiting.waiter.id] = waiting
            else:
                waiting.granted.set_result(lease)
        self._wake()
        return lease

    async def _stand_in_line(self, waiting: _Waiting, wait_s: float) -> Lease:
        try:
            async with asyncio.timeout(wait_s):
                return await asyncio.shield(waiting.granted)
        except TimeoutError:
            await self._leave_line(waiting)
            if waiting.granted.done():
                return waiting.granted.result()
            raise NoVmFreeError(
                f"no VM of pool {waiting.pool.name!r} turned ready within {wait_s:g} s: {self._why_none(waiting.pool)}",
                remedy="wait longer, or ask another host",
            ) from None

    async def _leave_line(self, waiting: _Waiting) -> None:
        """Leave the line when no grant is being written: one that was meant for this request has reached it then."""
        async with self._store.transaction():
            self._line.pop(waiting.waiter.id, None)

    async def _undo(self, waiting: _Waiting) -> None:
        """End the lease that reached a request which is gone."""
        await self._leave_line(waiting)
        granted = waiting.granted
        if granted.done() and not granted.cancelled() and granted.exception() is None:
            lease = granted.result()
            if lease.id in self._store.leases:
                await self.release(lease.id)

    def _refusal(self) -> DrainingError | None:
        """Return why no leases are given now, if so."""
        if self._closed:
            return DrainingError("the agent of this host is stopping", remedy="ask another host, or again in a while")
        mode = self._store.mode
        if mode.takes_leases:
            return None
        why = f": {mode.reason}" if mode.reason else ""
        return DrainingError(
            f"this host is {mode.mode} and gives no leases{why}",
            remedy="ask another host; `hearth uncordon` opens this one",
        )

    def _give(self, transaction: Transaction, vm: Vm, waiting: _Waiting) -> Lease:
        lease = Lease(
            id=self._new_id(),
            pool=waiting.pool.name,
            vm=vm.name,
            holder=waiting.holder,
            ttl_s=waiting.ttl_s,
            created_at_s=transaction.now_s,
            expires_at_s=transaction.now_s + waiting.ttl_s,
            idempotency_key=waiting.idempotency_key,
        )
        transaction.put(lease)
        transaction.move(vm, VmEvent.LEASE, lease_id=lease.id)
        waited_s = max(0.0, transaction.now_s - waiting.waiter.since_s)
        transaction.event(
            EventKind.LEASE_GRANTED,
            lease=lease.id, vm=vm.name, pool=lease.pool, detail=f"to {lease.holder}", duration_s=waited_s,
        )  # fmt: skip
        return lease

    def _by_key(self, idempotency_key: str) -> Lease | None:
        leases: Iterable[Lease] = self._store.leases.values()
        return next((lease for lease in leases if lease.idempotency_key == idempotency_key), None)


def end_lease(transaction: Transaction, lease: Lease, kind: EventKind, *, detail: str = "") -> None:
    """End a lease and intend the teardown of its VM: a VM is used once."""
    transaction.drop(Lease, lease.id)
    transaction.event(kind, lease=lease.id, vm=lease.vm, pool=lease.pool, detail=detail)
    vm = transaction.get(Vm, lease.vm)
    if vm is not None and vm.state is VmState.LEASED:
        transaction.move(vm, VmEvent.TEARDOWN, lease_id=None)
        transaction.event(EventKind.VM_STOPPING, vm=vm.name, pool=vm.pool, image=vm.image, detail="its lease ended")


def _found(lease: Lease | None, lease_id: str) -> Lease:
    if lease is None:
        raise LeaseNotFoundError(f"there is no lease {lease_id!r} on this host", remedy="ask for a new lease")
    return lease


def _ttl(spec: PoolSpec | None, asked_s: float | None) -> float:
    """Return the time to live a lease gets: what was asked, within the pool's maximum."""
    if spec is None:
        raise PoolUnknownError(
            "the pool of this lease is not assigned to this host any more", remedy="finish and release"
        )
    if asked_s is None:
        return spec.lease_ttl_s
    if not (math.isfinite(asked_s) and asked_s > 0):
        raise BadTtlError(f"a ttl of {asked_s} s is not a positive number", remedy="ask for some seconds or more")
    return min(asked_s, spec.lease_max_ttl_s)
