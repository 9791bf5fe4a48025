"""The store: what the agent knows, in memory, changed only by transactions that the journal holds first.

Every change reads, decides and commits under one lock, so decisions are never made on a stale world, and memory is
changed only after the disk. A cancelled caller never leaves the two apart.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog

from agent.domain.breaker import Breaker, record_failure
from agent.domain.events import Event, EventKind
from agent.domain.model import HostMode, Lease, Resolution, Vm
from agent.domain.rollout import Rollout
from agent.domain.states import VmEvent, advance
from agent.engine.database import TABLES, Drop, JournalError, Put, StoredAssignment, key_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from agent.engine.database import Change, Database, Record

T = TypeVar("T")
OPEN: Final = HostMode()
log = structlog.get_logger()


class Transaction:
    """Changes gathered to be committed together. Reads see the store with the changes made so far."""

    def __init__(self, store: StateStore, now_s: float) -> None:
        self._store = store
        self.now_s = now_s
        self.changes: dict[tuple[type[Record], str], Change] = {}
        self.events: list[Event] = []

    def get(self, kind: type[T], key: str) -> T | None:
        """Return a record as this transaction leaves it."""
        change = self.changes.get((kind, key))  # type: ignore[arg-type]
        if change is None:
            return self._store.table(kind).get(key)
        return change.record if isinstance(change, Put) else None  # type: ignore[return-value]

    def all(self, kind: type[T]) -> tuple[T, ...]:
        """Return every record of a kind as this transaction leaves it."""
        found = dict(self._store.table(kind))
        for (changed, key), change in self.changes.items():
            if changed is kind:
                found.pop(key, None)
                if isinstance(change, Put):
                    found[key] = change.record  # type: ignore[assignment]
        return tuple(found.values())

    def put(self, record: Record) -> None:
        """Write a record."""
        self.changes[type(record), key_of(record)] = Put(record)

    def drop(self, kind: type[Record], key: str) -> None:
        """Remove a record."""
        self.changes[kind, key] = Drop(kind, key)

    def event(self, kind: EventKind, **about: Any) -> None:  # noqa: ANN401 - the fields of Event
        """Record that something happened now."""
        self.events.append(Event(kind, self.now_s, **about))

    def move(self, vm: Vm, event: VmEvent, **fields: Any) -> Vm:  # noqa: ANN401 - the fields of Vm
        """Move a VM along its transition table, write it and return it."""
        moved = replace(vm, state=advance(vm.state, event), since_s=self.now_s, **fields)
        self.put(moved)
        return moved

    def trip(self, key: str, *, reason: str, jitter: float, free: int = 0) -> Breaker:
        """Count one more failure of `key` on its breaker."""
        before = self.get(Breaker, key) or Breaker(key)
        after = record_failure(before, now_s=self.now_s, jitter=jitter, reason=reason, free=free)
        self.put(after)
        return after


class StateStore:
    """The records by kind and key. Read freely; change by `transaction`."""

    def __init__(self, database: Database, *, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock
        self._lock = asyncio.Lock()
        self._tables: dict[type[Record], dict[str, Any]] = {kind: {} for kind in TABLES}
        self._listeners: list[Callable[[tuple[Event, ...]], None]] = []
        self.sequence = 0
        self.fault = ""  # why the journal could not be written when last tried

    async def load(self) -> None:
        """Read the journal into memory."""
        for kind in TABLES:
            self._tables[kind] = await self._database.load(kind)

    async def last_of_lease(self, lease_id: str) -> Event | None:
        """Return the latest event of a lease that the journal remembers."""
        return await self._database.last_of_lease(lease_id)

    def on_change(self, listener: Callable[[tuple[Event, ...]], None]) -> None:
        """Call `listener` after every commit with the events it recorded."""
        self._listeners.append(listener)

    def table(self, kind: type[T]) -> dict[str, T]:
        """Return the records of one kind by key. Not to be changed by the caller."""
        return self._tables[kind]  # type: ignore[index]

    @property
    def vms(self) -> dict[str, Vm]:
        """VMs by name."""
        return self.table(Vm)

    @property
    def leases(self) -> dict[str, Lease]:
        """Leases by id."""
        return self.table(Lease)

    @property
    def rollouts(self) -> dict[str, Rollout]:
        """Rollouts by pool."""
        return self.table(Rollout)

    @property
    def resolutions(self) -> dict[str, Resolution]:
        """Resolutions by reference."""
        return self.table(Resolution)

    @property
    def breakers(self) -> dict[str, Breaker]:
        """Breakers by key."""
        return self.table(Breaker)

    @property
    def assignment(self) -> StoredAssignment | None:
        """The last good assignment."""
        return self.table(StoredAssignment).get("current")

    @property
    def mode(self) -> HostMode:
        """What an operator lets this host do."""
        return self.table(HostMode).get("host", OPEN)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Gather changes and commit them when the block ends without an error.

        Raises `JournalError` when the journal cannot take them; memory then stands as before. When the caller is
        cancelled during the commit, the commit is seen through first.
        """
        async with self._lock:
            transaction = Transaction(self, self._clock())
            yield transaction
            if transaction.changes or transaction.events:
                await _see_through(asyncio.ensure_future(self._commit(transaction)))

    async def try_writing(self) -> bool:
        """Return whether the journal can be written now; `fault` says why not."""
        async with self._lock:
            try:
                await self._database.touch()
            except JournalError as error:
                self.fault = str(error)
            else:
                self.fault = ""
        return not self.fault

    async def _commit(self, transaction: Transaction) -> None:
        try:
            await self._database.write(list(transaction.changes.values()), transaction.events)
        except JournalError as error:
            self.fault = str(error)
            raise
        self.fault = ""
        for (kind, key), change in transaction.changes.items():
            if isinstance(change, Put):
                self._tables[kind][key] = change.record
            else:
                self._tables[kind].pop(key, None)
        self.sequence += 1
        for event in transaction.events:
            _write_log(event)
        for listener in self._listeners:
            listener(tuple(transaction.events))


async def _see_through(commit: asyncio.Future[None]) -> None:
    """Wait for a commit to its end, even when cancelled meanwhile; the cancellation follows then."""
    cancelled: asyncio.CancelledError | None = None
    while not commit.done():
        try:
            await asyncio.wait([commit])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    commit.result()


_BAD = frozenset({EventKind.VM_FAILED, EventKind.VM_UNHEALTHY_WHILE_LEASED, EventKind.LEASE_BROKEN})


def _write_log(event: Event) -> None:
    level = "warning" if event.kind in _BAD or event.kind.endswith(("-failed", "-refused")) else "info"
    about = {name: getattr(event, name) for name in ("vm", "pool", "image", "lease", "cause", "detail", "duration_s")}
    getattr(log, level)(str(event.kind), **{name: value for name, value in about.items() if value not in (None, "")})
