"""The lease desk: grants ready VMs to requests, renews and ends leases. A lease is durable before it is returned.

A request that finds a ready VM, and no earlier request of its pool, is granted without waiting for a reconcile pass.
Otherwise it joins the queue, and the planner grants it a VM that becomes ready.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Final
from weakref import WeakValueDictionary

from agent.domain.capacity import startable
from agent.domain.errors import ErrorOrigin, HearthError, LeaseNotFoundError, PoolUnknownError, RefusedError
from agent.domain.events import EventKind
from agent.domain.facts import LeaseReleased, LeaseRenewed, VmGranted
from agent.domain.model import LeaseRequest
from agent.domain.pool_view import pick_ready_vm
from agent.engine.schema import JournalError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from agent.domain.events import Event
    from agent.domain.model import Lease
    from agent.domain.world import World
    from agent.engine.state_store import StateStore


class LeaseEndedError(RefusedError):
    """The lease was granted and has ended; `ending` is the event that ended it."""

    code = "lease-ended"

    def __init__(self, ending: Event) -> None:
        detail = f": {ending.detail}" if ending.detail else ""
        super().__init__(f"lease {ending.lease} ended: {_ENDINGS[ending.kind]}{detail}", remedy="request a new lease")
        self.ending = ending


_ENDINGS: Final = {
    EventKind.LEASE_RELEASED: "it was released",
    EventKind.LEASE_EXPIRED: "it expired",
    EventKind.LEASE_BROKEN: "its VM failed",
}


class LeaseConflictError(RefusedError):
    """An idempotency key was used before for another pool or holder."""

    code = "lease-conflict"


class NoVmFreeError(RefusedError):
    """No VM became ready within the time that the request waits."""

    code = "no-vm-free"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.HOST


class DrainingError(RefusedError):
    """The host grants no new leases."""

    code = "draining"


class BadTtlError(RefusedError):
    """The requested time to live is not a positive number."""

    code = "bad-ttl"


@dataclass(eq=False, slots=True)
class PendingRequest:
    """A request in the queue, and the future that receives its lease."""

    request: LeaseRequest
    granted: asyncio.Future[Lease]


class LeaseQueue:
    """The requests that wait for a VM, in the order of their arrival."""

    def __init__(self) -> None:
        self._pending: dict[str, PendingRequest] = {}
        self.failed: set[str] = set()  # requests that failed although the journal may have their leases

    @property
    def requests(self) -> tuple[LeaseRequest, ...]:
        """The requests, for the planner."""
        return tuple(pending.request for pending in self._pending.values())

    def move_moments(self, delta_s: float) -> None:
        """Move the start of every wait, when the host's clock was set."""
        for pending in self._pending.values():
            pending.request = replace(pending.request, since_s=pending.request.since_s + delta_s)

    def has_request_of(self, pool: str) -> bool:
        """Whether a request waits for a VM of `pool`."""
        return any(pending.request.pool == pool for pending in self._pending.values())

    def add(self, pending: PendingRequest) -> None:
        """Append a request."""
        self._pending[pending.request.id] = pending

    def remove(self, request_id: str) -> None:
        """Remove a request if it is still in the queue."""
        self._pending.pop(request_id, None)

    def grant(self, lease: Lease) -> None:
        """Remove the request that `lease` has its id from, and resolve its future."""
        pending = self._pending.pop(lease.id, None)
        if pending is not None and not pending.granted.done():
            pending.granted.set_result(lease)

    def refuse_all(self, error: HearthError) -> None:
        """Remove every request and fail its future."""
        while self._pending:
            _, pending = self._pending.popitem()
            if not pending.granted.done():
                pending.granted.set_exception(error)


class LeaseDesk:
    """Grants, renews and ends leases."""

    def __init__(
        self,
        store: StateStore,
        queue: LeaseQueue,
        world: Callable[[], World],
        *,
        new_id: Callable[[], str],
        on_refused: Callable[[str, BaseException], None],
        wake: Callable[[], None],
    ) -> None:
        self._store = store
        self._queue = queue
        self._world = world
        self._new_id = new_id
        self._on_refused = on_refused
        self._wake = wake
        self._keys: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._is_closed = False
        store.on_change(self._resolve_granted)

    async def acquire(
        self,
        pool: str,
        *,
        holder: str,
        ttl_s: float | None,
        wait_s: float,
        idempotency_key: str | None,
        owner: str = "",
    ) -> Lease:
        """Lease a VM of `pool`; wait at most `wait_s` for one to become ready.

        The same `idempotency_key` of the same owner returns the same lease. A caller that is cancelled leaves no lease.
        Raises `PoolUnknownError`, `BadTtlError`, `NoVmFreeError`, `LeaseConflictError`, `DrainingError` and
        `JournalError`.
        """
        world = self._world()
        spec = world.pool(pool)
        if spec is None:
            raise PoolUnknownError(
                f"there is no pool {pool!r} on this host", remedy="list its pools with `hearth status`"
            )
        ttl_s = spec.lease_ttl_s if ttl_s is None else _checked_ttl(ttl_s, spec.lease_max_ttl_s)
        request = LeaseRequest(
            self._new_id(), pool, world.now_s, holder, ttl_s, idempotency_key,
            max_ttl_s=spec.lease_max_ttl_s, probes=spec.probes, owner=owner,
        )  # fmt: skip
        try:
            return await self._acquire_once(request, wait_s)
        except (RefusedError, asyncio.CancelledError) as error:
            self._on_refused(pool, error)
            raise

    async def renew(self, lease_id: str, *, ttl_s: float | None, user: str | None = None) -> Lease:
        """Extend a lease by `ttl_s` (default: its own) from now. Raises as `get` does, and `BadTtlError`."""
        lease = await self.get(lease_id, user=user)
        ttl_s = lease.ttl_s if ttl_s is None else _checked_ttl(ttl_s, lease.max_ttl_s)
        state = await self._store.record(LeaseRenewed(lease_id, ttl_s))
        return state.leases[lease_id]

    async def release(self, lease_id: str, *, user: str | None = None) -> None:
        """End a lease: its VM is torn down, the pool refilled. Raises as `get` does."""
        await self.get(lease_id, user=user)
        await self._store.record(LeaseReleased(lease_id))
        self._wake()

    async def get(self, lease_id: str, *, user: str | None = None) -> Lease:
        """Return a living lease that `user` may use; None may use all. Raises `LeaseEndedError` if it has ended, and
        `LeaseNotFoundError` if it is unknown to this user."""
        lease = self._store.state.leases.get(lease_id)
        if lease is not None and may_use(lease.owner, user):
            return lease
        if lease is None:
            ending = await self._store.last_event_of_lease(lease_id)
            if ending is not None and ending.kind in _ENDINGS and may_use(ending.owner, user):
                raise LeaseEndedError(ending)
        raise LeaseNotFoundError(f"there is no lease {lease_id!r} on this host", remedy="request a new lease")

    def refuse_waiting(self) -> None:
        """Refuse the waiting requests if this host grants no leases now."""
        refusal = self._refusal()
        if refusal is not None:
            self._queue.refuse_all(refusal)

    def close(self) -> None:
        """Grant no more leases in this run of the agent. Granted leases stay valid."""
        self._is_closed = True
        self.refuse_waiting()

    async def _acquire_once(self, request: LeaseRequest, wait_s: float) -> Lease:
        """Return the lease that the request's idempotency key has already, or a new one."""
        until_s = asyncio.get_running_loop().time() + wait_s
        if request.idempotency_key is None:
            return await self._acquire(request, wait_s, until_s)
        key = f"{request.owner}/{request.idempotency_key}"
        async with _held_before(until_s, self._keys.setdefault(key, asyncio.Lock()), request):
            known = self._lease_of_key(request.idempotency_key, request.owner)
            if known is None:
                return await self._acquire(request, wait_s, until_s)
            if (known.pool, known.holder) != (request.pool, request.holder):
                raise LeaseConflictError(
                    f"idempotency key {request.idempotency_key!r} belongs to a lease of {known.holder!r} "
                    f"on {known.pool!r}",
                    remedy="use a new key for a new lease",
                )
            return known

    async def _acquire(self, request: LeaseRequest, wait_s: float, until_s: float) -> Lease:
        pending = PendingRequest(request, asyncio.get_running_loop().create_future())
        try:
            await self._grant_or_queue(pending)
            self._wake()
            return await self._wait_for_grant(pending, wait_s, until_s)
        except JournalError:
            self._queue.remove(request.id)
            self._queue.failed.add(request.id)
            raise
        except asyncio.CancelledError:
            await self._withdraw(pending)
            raise

    async def _grant_or_queue(self, pending: PendingRequest) -> None:
        """Grant a ready VM if there is one and no earlier request of its pool; else leave the request in the queue."""
        request = pending.request
        async with self._store.transaction() as transaction:
            refusal = self._refusal()
            if refusal is not None:
                raise refusal
            has_earlier = self._queue.has_request_of(request.pool)
            vm = None if has_earlier else pick_ready_vm(self._world(), request.pool)
            self._queue.add(pending)
            if vm is not None:
                transaction.record(VmGranted(vm.name, request))

    async def _wait_for_grant(self, pending: PendingRequest, wait_s: float, until_s: float) -> Lease:
        """Wait for a lease until `until_s` of the event loop's clock; `wait_s` is the whole wait, for the error."""
        if pending.granted.done():
            return pending.granted.result()
        try:
            async with asyncio.timeout_at(until_s):
                return await asyncio.shield(pending.granted)
        except TimeoutError:
            await self._leave_queue(pending)
            if pending.granted.done():
                return pending.granted.result()
            raise NoVmFreeError(
                f"no VM of pool {pending.request.pool!r} became ready within {wait_s:g} s: "
                f"{self._why_none(pending.request.pool)}",
                remedy="wait longer, or request one from another host",
            ) from None

    def _why_none(self, pool: str) -> str:
        world = self._world()
        spec = world.pool(pool)
        if spec is None:
            return "the pool is not assigned any more"
        count, limit = startable(world, spec)
        return "one is being started" if count else f"no other fits, {limit} bind"

    async def _leave_queue(self, pending: PendingRequest) -> None:
        """Remove a request from the queue while no commit is under way: a grant has reached its future by then."""
        async with self._store.transaction():
            self._queue.remove(pending.request.id)

    async def _withdraw(self, pending: PendingRequest) -> None:
        """End a cancelled request, and release its lease if it was granted."""
        await self._leave_queue(pending)
        if pending.request.id in self._store.state.leases:
            await self.release(pending.request.id)

    def _refusal(self) -> DrainingError | None:
        """Return why no leases are granted now, or None."""
        if self._is_closed:
            return DrainingError(
                "the agent of this host is stopping", remedy="request a lease from another host, or retry later"
            )
        mode = self._store.state.mode
        if mode.takes_leases:
            return None
        reason = f": {mode.reason}" if mode.reason else ""
        return DrainingError(
            f"this host is {mode.mode} and grants no leases{reason}",
            remedy="request one from another host, or open this one with `hearth uncordon`",
        )

    def _resolve_granted(self, events: tuple[Event, ...]) -> None:
        """Wake the requests that were granted by a commit."""
        for event in events:
            if event.kind is EventKind.LEASE_GRANTED and (lease := self._store.state.leases.get(event.lease or "")):
                self._queue.grant(lease)

    def _lease_of_key(self, idempotency_key: str, owner: str | None) -> Lease | None:
        """Return the lease of a key. Leases of older agents have no owner: any owner finds them."""
        leases = (lease for lease in self._store.state.leases.values() if lease.owner in (owner, None))
        return next((lease for lease in leases if lease.idempotency_key == idempotency_key), None)


@asynccontextmanager
async def _held_before(until_s: float, lock: asyncio.Lock, request: LeaseRequest) -> AsyncIterator[None]:
    """Hold the lock of an idempotency key; wait for its other request until `until_s` of the event loop's clock.

    Raises `NoVmFreeError`.
    """
    try:
        async with asyncio.timeout_at(until_s):
            await lock.acquire()
    except TimeoutError:
        raise NoVmFreeError(
            f"another request with the idempotency key {request.idempotency_key!r} still waits for a VM",
            remedy="wait longer, or use a new key",
        ) from None
    try:
        yield
    finally:
        lock.release()


def _checked_ttl(requested_s: float, max_s: float) -> float:
    """Return the time to live of a lease: the requested one, at most `max_s`. Raises `BadTtlError`."""
    if not (math.isfinite(requested_s) and requested_s > 0):
        raise BadTtlError(f"a ttl of {requested_s} s is not a positive number", remedy="request at least one second")
    return min(requested_s, max_s)


def may_use(owner: str | None, user: str | None) -> bool:
    """Whether `user` may use a lease of `owner`. None as a user may use all; a lease of an older agent has no owner."""
    return user is None or owner is None or owner == user
