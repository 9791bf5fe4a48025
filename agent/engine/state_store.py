"""The state store: the agent's records in memory, changed only by transactions that the journal holds first.

A transaction reads, decides and commits under one lock, so no decision is made on outdated records, and memory changes
only after the disk. A cancelled caller never leaves the two different."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog

from agent.domain.events import EventKind
from agent.domain.record import record
from agent.domain.stored_state import KEYS, Changes, StoredState
from agent.engine.schema import JournalError, JournalTimeoutError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from agent.domain.actions import Action
    from agent.domain.events import Event
    from agent.domain.facts import Fact
    from agent.engine.database import Database

log = structlog.get_logger()


class Transaction:
    """Facts to be committed together. `state` includes the changes made so far."""

    def __init__(self, state: StoredState, now_s: float, jitter: Callable[[], float]) -> None:
        self.state = state
        self.now_s = now_s
        self.changes = Changes()
        self._jitter = jitter

    def record(self, fact: Fact | Action) -> None:
        """Apply what a fact changes. Raises as `agent.domain.record.record` does."""
        self.apply(record(self.state, fact, self.now_s, self._jitter()))

    def apply(self, changes: Changes) -> None:
        """Apply changes as they are."""
        self.changes += changes
        self.state = self.state.apply(changes)


class StateStore:
    """The current `state`. Read it freely; change it by `record` or `transaction`."""

    def __init__(self, database: Database, *, clock: Callable[[], float], jitter: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock
        self._jitter = jitter
        self._lock = asyncio.Lock()
        self._listeners: list[Callable[[tuple[Event, ...]], None]] = []
        self._is_uncertain = False  # the last write timed out: the journal has it, or not
        self.state = StoredState()
        self.sequence = 0
        self.turns = 0  # how often the lock was taken
        self.write_error = ""  # why the journal could not be written at the last attempt

    async def load(self) -> None:
        """Read the journal into memory. Raises `JournalError`."""
        self.state = StoredState({kind: await self._database.load(kind) for kind in KEYS})

    async def last_event_of_lease(self, lease_id: str) -> Event | None:
        """Return the latest event of a lease that the journal holds, or None."""
        return await self._database.last_of_lease(lease_id)

    def on_change(self, listener: Callable[[tuple[Event, ...]], None]) -> None:
        """Call `listener` after every commit with its events."""
        self._listeners.append(listener)

    async def record(self, fact: Fact) -> StoredState:
        """Commit what one fact changes; return the state after it. Raises `JournalError`, and as
        `Transaction.record`."""
        async with self.transaction() as transaction:
            transaction.record(fact)
        return transaction.state

    @asynccontextmanager
    async def transaction(self, *, on_commit: Callable[[], None] | None = None) -> AsyncIterator[Transaction]:
        """Commit the recorded facts when the block ends without an error.

        `on_commit` is called together with the change of `state`: no other task runs between them.

        Raises `JournalError` when the journal cannot be written; memory is then unchanged. A caller that is cancelled
        during the commit waits for its end first.
        """
        async with self._lock:
            self.turns += 1
            await self._resolve_uncertainty()
            transaction = Transaction(self.state, self._clock(), self._jitter)
            yield transaction
            if transaction.changes:
                await _finish(asyncio.ensure_future(self._commit(transaction, on_commit)))

    async def try_writing(self) -> bool:
        """Return whether the journal can be written now; `write_error` has the reason if it cannot."""
        async with self._lock:
            try:
                await self._resolve_uncertainty()
                await self._database.touch()
            except JournalError as error:
                self.write_error = str(error)
            else:
                self.write_error = ""
        return not self.write_error

    async def _resolve_uncertainty(self) -> None:
        """Read the journal again after a write with an unknown outcome. Raises `JournalError` while it is unknown."""
        if not self._is_uncertain:
            return
        await self._database.settle()
        await self.load()
        self._is_uncertain = False
        self.sequence += 1
        log.warning("journal-read-again", reason="a write timed out")

    async def _commit(self, transaction: Transaction, on_commit: Callable[[], None] | None) -> None:
        changes = transaction.changes
        try:
            await self._database.write(changes.records, changes.events)
        except JournalError as error:
            self.write_error = str(error)
            self._is_uncertain = isinstance(error, JournalTimeoutError)
            raise
        self.write_error = ""
        self.state = transaction.state
        if on_commit is not None:
            on_commit()
        self.sequence += 1
        for event in changes.events:
            _log_event(event)
        for listener in self._listeners:
            listener(changes.events)


async def _finish(commit: asyncio.Future[None]) -> None:
    """Wait for the end of a commit even when cancelled; then raise the cancellation."""
    cancelled: asyncio.CancelledError | None = None
    while not commit.done():
        try:
            await asyncio.wait([commit])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    commit.result()


_WARNINGS = frozenset({EventKind.VM_FAILED, EventKind.VM_UNHEALTHY_WHILE_LEASED, EventKind.LEASE_BROKEN})


def _log_event(event: Event) -> None:
    is_warning = event.kind in _WARNINGS or event.kind.endswith(("-failed", "-refused"))
    fields = {name: getattr(event, name) for name in ("vm", "pool", "image", "lease", "cause", "detail", "duration_s")}
    fields = {name: value for name, value in fields.items() if value not in (None, "")}
    (log.warning if is_warning else log.info)(str(event.kind), **fields)
