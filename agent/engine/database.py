"""The database: the journal file, in SQLite. An intent is durable in it before its effect starts.

Records are domain values stored as JSON, one table per kind; SQLite itself forbids two leases on one VM. One thread
owns the connection, so nothing here blocks the event loop. Every `write` is one transaction, synced to disk (WAL with
synchronous=FULL) when it returns."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog
from pydantic import TypeAdapter, ValidationError

from agent.domain.breaker import Breaker
from agent.domain.events import Event
from agent.domain.model import ClockAnchor, HostMode, Lease, Resolution, StoredAssignment, Vm
from agent.domain.rollout import Rollout
from agent.domain.stored_state import Changes, Drop, Put, key_of
from agent.engine.schema import VERSION, JournalError, JournalTimeoutError, connect, inodes_of, reserve_wal, unreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from agent.domain.stored_state import Change, Key, Record

T = TypeVar("T")

log = structlog.get_logger()

WRITE_TIMEOUT_S: Final = 30.0
KEPT_EVENTS: Final = 50_000
MIN_FREE_BYTES: Final = 1 << 20
"""Free space of the disk below which only the ends of leases and VMs are written."""
TRIM_STEP: Final = 500
"""Events that one transaction deletes: leases are written between two of them."""


@dataclass(frozen=True, slots=True)
class Table:
    """The table of one kind of record."""

    name: str
    adapter: TypeAdapter[Any]


TABLES: Final[dict[type[Record], Table]] = {
    Vm: Table("vms", TypeAdapter(Vm)),
    Lease: Table("leases", TypeAdapter(Lease)),
    Rollout: Table("rollouts", TypeAdapter(Rollout)),
    Breaker: Table("breakers", TypeAdapter(Breaker)),
    Resolution: Table("resolutions", TypeAdapter(Resolution)),
    StoredAssignment: Table("assignments", TypeAdapter(StoredAssignment)),
    HostMode: Table("modes", TypeAdapter(HostMode)),
    ClockAnchor: Table("clocks", TypeAdapter(ClockAnchor)),
}
EVENT: Final = TypeAdapter(Event)


class Database:
    """One open journal file. Open with `Database.open`, end with `close`."""

    def __init__(self, connection: sqlite3.Connection, thread: ThreadPoolExecutor, path: Path) -> None:
        self._connection = connection
        self._thread = thread
        self._path = path
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="journal-reader")
        self._reading: sqlite3.Connection | None = None
        self._unfinished: asyncio.Future[Any] | None = None
        self._last_skipped = 0  # number of the latest unreadable event that was reported
        self._inodes = inodes_of(path)

    @classmethod
    async def open(cls, path: Path) -> Database:
        """Open the journal, or create it. Raises `JournalError` if it is corrupt or newer than this agent."""
        thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                connection = await asyncio.get_running_loop().run_in_executor(thread, connect, path)
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return cls(connection, thread, path)

    async def load(self, kind: type[T]) -> dict[Key, T]:
        """Return every record of a kind by its key."""
        table = TABLES[kind]  # type: ignore[index]

        def read() -> dict[Key, T]:
            rows = self._connection.execute(f"SELECT doc FROM {table.name}").fetchall()
            records = [table.adapter.validate_json(doc) for (doc,) in rows]
            return {key_of(record): record for record in records}

        return await self._run(read)

    async def write(self, changes: Sequence[Change], events: Sequence[Event] = ()) -> None:
        """Commit all changes and events, or none of them. Raises `JournalError`."""
        needs_free_space = not Changes(tuple(changes)).needs_no_free_space

        def transact() -> None:
            self._check_files()
            if needs_free_space:
                self._check_space()
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                for change in changes:
                    self._apply(change)
                self._connection.executemany(
                    "INSERT INTO events (vm, lease, doc) VALUES (?, ?, ?)",
                    [(event.vm, event.lease, EVENT.dump_json(event).decode()) for event in events],
                )

        await self._run(transact)

    async def settle(self) -> None:
        """Wait for the end of a write that timed out. Afterwards the file has it, or not. Raises `JournalError`."""
        if self._unfinished is None:
            return
        await asyncio.wait([self._unfinished], timeout=WRITE_TIMEOUT_S)
        if not self._unfinished.done():
            raise self._timeout()
        self._unfinished = None

    async def touch(self) -> None:
        """Write without changing anything. Raises `JournalError` if that fails."""

        def write() -> None:
            self._check_files()
            self._check_space()
            self._connection.execute(f"PRAGMA user_version = {VERSION}")

        await self._run(write)

    async def events(self, *, vm: str | None = None, after: int = 0, limit: int = 1000) -> list[tuple[int, Event]]:
        """Return at most `limit` events with their sequence numbers, in order: those after `after`, of one VM if
        named. Unreadable events, such as kinds of a newer agent, are skipped and logged once."""
        where, values = ("AND vm = ?", [vm]) if vm else ("", [])
        query = f"SELECT sequence, doc FROM events WHERE sequence > ? {where} ORDER BY sequence LIMIT ?"

        def read() -> list[tuple[int, Event]]:
            found: list[tuple[int, Event]] = []
            position = after
            while len(found) < limit:
                rows = self._reader().execute(query, [position, *values, limit - len(found)]).fetchall()
                if not rows:
                    break
                position = rows[-1][0]
                parsed = ((sequence, self._parse_event(sequence, doc)) for sequence, doc in rows)
                found += [(sequence, event) for sequence, event in parsed if event is not None]
            return found

        return await self._read(read)

    async def last_event(self) -> int:
        """Return the sequence number of the latest event; 0 when there is none."""

        def read() -> int:
            number: int = self._reader().execute("SELECT coalesce(max(sequence), 0) FROM events").fetchone()[0]
            return number

        return await self._read(read)

    async def last_of_lease(self, lease_id: str) -> Event | None:
        """Return the latest event of a lease, or None if no event of it is stored."""

        def read() -> Event | None:
            query = "SELECT sequence, doc FROM events WHERE lease = ? ORDER BY sequence DESC"
            events = (self._parse_event(*row) for row in self._reader().execute(query, [lease_id]))
            return next((event for event in events if event is not None), None)

        return await self._read(read)

    async def trim(self) -> None:
        """Delete the oldest events beyond `KEPT_EVENTS`, in small steps; reserve the WAL again."""

        def delete() -> int:
            with self._connection:
                return self._connection.execute(
                    "DELETE FROM events WHERE sequence IN (SELECT sequence FROM events WHERE sequence <= "
                    "(SELECT max(sequence) FROM events) - ? ORDER BY sequence LIMIT ?)",
                    [KEPT_EVENTS, TRIM_STEP],
                ).rowcount

        while await self._run(delete) == TRIM_STEP:
            pass
        await self._run(partial(reserve_wal, self._path))

    async def close(self) -> None:
        """Close the file."""
        if self._reading is not None:
            await self._read(self._reading.close)
        self._readers.shutdown(wait=False)
        await self._run(self._connection.close)
        self._thread.shutdown(wait=False)

    def _parse_event(self, sequence: int, doc: str) -> Event | None:
        """Return a stored event, or None after logging once that it is unreadable."""
        try:
            return EVENT.validate_json(doc)
        except ValidationError as error:
            if sequence > self._last_skipped:
                self._last_skipped = sequence
                log.warning("event-skipped", number=sequence, error=error.errors()[0]["msg"])
            return None

    def _check_files(self) -> None:
        """Raise `JournalError` if the files are not those that were opened: what is written would be lost."""
        if inodes_of(self._path) != self._inodes:
            raise JournalError(
                f"{self._path} or its WAL was removed or replaced while the agent runs",
                remedy="put the files back, or stop the agent and run `hearth journal rebuild --force`",
            )

    def _check_space(self) -> None:
        """Raise `JournalError` on a full disk: the reserved blocks of the WAL are for the ends of leases and VMs."""
        volume = os.statvfs(self._path)
        if volume.f_bavail * volume.f_frsize < MIN_FREE_BYTES:
            raise JournalError(f"{self._path}: its disk is full", remedy="free space on its disk")

    def _apply(self, change: Change) -> None:
        match change:
            case Put(record):
                table = TABLES[type(record)]
                self._connection.execute(
                    f"INSERT INTO {table.name} VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET doc = excluded.doc",
                    [str(key_of(record)), table.adapter.dump_json(record).decode()],
                )
            case Drop(kind, key):
                self._connection.execute(f"DELETE FROM {TABLES[kind].name} WHERE key = ?", [str(key)])

    async def _run(self, work: Callable[[], T]) -> T:
        """Run `work` on the journal's thread. After a timeout it continues there, and later work waits for it."""
        future = asyncio.get_running_loop().run_in_executor(self._thread, work)
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                return await asyncio.shield(future)
        except TimeoutError:
            self._unfinished = future
            future.add_done_callback(_retrieve)
            raise self._timeout() from None
        except (sqlite3.Error, ValidationError) as error:
            raise self._error(error) from error

    async def _read(self, work: Callable[[], T]) -> T:
        """Run `work` on the readers' thread, next to the writes. Work of a cancelled caller is dropped if it waits."""
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                return await asyncio.get_running_loop().run_in_executor(self._readers, work)
        except TimeoutError:
            raise self._timeout() from None
        except (sqlite3.Error, ValidationError) as error:
            raise self._error(error) from error

    def _reader(self) -> sqlite3.Connection:
        """Return the readers' connection. Call it on their thread."""
        if self._reading is None:
            self._reading = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            self._reading.execute("PRAGMA query_only = ON")
        return self._reading

    def _timeout(self) -> JournalTimeoutError:
        return JournalTimeoutError(f"{self._path} did not answer for {WRITE_TIMEOUT_S:g} s", remedy="check its disk")

    def _error(self, error: sqlite3.Error | ValidationError) -> JournalError:
        if isinstance(error, ValidationError):
            return unreadable(self._path, error)
        return JournalError(f"{self._path}: {error}", remedy="free space on its disk, or check the disk")


def _retrieve(future: asyncio.Future[Any]) -> None:
    """Retrieve the error of a write whose caller is gone: the next transaction reads the journal again in any case."""
    if not future.cancelled():
        future.exception()
