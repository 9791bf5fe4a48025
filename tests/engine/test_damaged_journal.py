"""A journal with damaged, unknown or missing parts: refused with the remedy, or read without them."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from random import Random
from typing import TYPE_CHECKING

import pytest

from agent.api.events import EventHub
from agent.domain.events import Event, EventKind
from agent.domain.model import Vm
from agent.domain.stored_state import Put
from agent.engine import database as database_module
from agent.engine.database import Database
from agent.engine.history import History
from agent.engine.journal_recovery import read
from agent.engine.schema import WAL_BYTES, JournalError
from tests.engine.support import Clock, open_store, put, vm

if TYPE_CHECKING:
    from pathlib import Path

UNKNOWN = '{"kind": "vm-teleported", "at_s": 2.0}'


async def make_journal(path: Path, events: int) -> None:
    """Write a closed journal with ten VMs and some events."""
    database = await Database.open(path)
    await database.write(
        [Put(vm(f"v{number}")) for number in range(10)],
        [Event(EventKind.VM_READY, float(number), vm="v1", lease="l1") for number in range(events)],
    )
    await database.close()


async def test_events_of_unknown_kind_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    await make_journal(path, 2)
    with closing(sqlite3.connect(path)) as connection, connection:
        rows = [("v1", "l1", UNKNOWN)] * 7
        connection.executemany("INSERT INTO events (vm, lease, doc) VALUES (?, ?, ?)", rows)
    database = await Database.open(path)
    assert [number for number, _ in await database.events(limit=5)] == [1, 2]
    await database.write([], [Event(EventKind.VM_GONE, 3.0, vm="v1")])
    assert [number for number, _ in await database.events(after=1, limit=2)] == [2, 10]
    last = await database.last_of_lease("l1")
    assert last is not None
    assert last.kind is EventKind.VM_READY
    await database.close()
    assert not read(path).damaged, "no VM has to be held because of an unknown event"


async def test_subscriber_waits_behind_unreadable_events(tmp_path: Path) -> None:
    """An empty page ended the stream, and its client connected again immediately."""
    path = tmp_path / "journal.sqlite"
    await make_journal(path, 1)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO events (doc) VALUES (?)", [UNKNOWN])
    async with open_store(path, Clock()) as store:

        class Parts:
            history = History(store, store._database)
            host = store

        hub = EventHub(Parts())  # type: ignore[arg-type]
        await hub.start()
        waiting = asyncio.create_task(hub.after(1))
        await Parts.history.last()  # the reader's thread has answered the subscriber before
        assert not waiting.done()
        hub.close()
        assert await waiting == []


async def test_damaged_journal_is_refused_or_complete(tmp_path: Path) -> None:
    """Zeroes over a page, or a missing end: never a part of the records, never another kind of error."""
    path, random = tmp_path / "journal.sqlite", Random(32)
    await make_journal(path, 2000)
    whole = path.read_bytes()
    refused = 0
    for number in range(40):
        damaged = bytearray(whole)
        if number % 2:
            start = random.randrange(len(whole) // 4096) * 4096
            damaged[start : start + 4096] = bytes(4096)
        else:
            del damaged[random.randrange(1, len(whole)) :]
        path.write_bytes(damaged)
        try:
            database = await Database.open(path)
        except JournalError as error:
            assert "hearth journal rebuild" in str(error)  # noqa: PT017 - some damage is harmless
            refused += 1
            continue
        assert len(await database.load(Vm)) == 10
        await database.close()
    assert refused >= 38


async def test_negative_schema_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = -3")
    with pytest.raises(JournalError, match="version -3"):
        await Database.open(path)


@pytest.mark.parametrize("part", ["", "-wal"])
@pytest.mark.parametrize("how", ["removed", "replaced"])
async def test_file_removed_or_replaced_is_reported(tmp_path: Path, part: str, how: str) -> None:
    path = tmp_path / "journal.sqlite"
    async with open_store(path, Clock()) as store:
        await put(store, vm("v1"))
        file, aside = path.with_name(path.name + part), tmp_path / "aside"
        file.rename(aside)
        if how == "replaced":
            file.write_bytes(aside.read_bytes())
        with pytest.raises(JournalError, match="removed or replaced"):
            await put(store, vm("v2"))
        assert set(store.state.vms) == {"v1"}
        assert not await store.try_writing()
        aside.replace(file)
        assert await store.try_writing(), "the file is back"


async def test_wal_is_truncated_after_a_long_reader(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    database = await Database.open(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM events").fetchone()
        event = Event(EventKind.VM_READY, 1.0, detail="x" * 1000)
        for _ in range(3):
            await database.write([], [event] * 4000)
        wal = path.with_name(path.name + "-wal")
        assert wal.stat().st_size > WAL_BYTES
    await database.write([], [event])  # writes the WAL back into the file
    await database.write([], [event])  # begins the WAL again
    assert wal.stat().st_size <= WAL_BYTES
    await database.close()


async def test_history_is_trimmed_in_small_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "KEPT_EVENTS", 30)
    monkeypatch.setattr(database_module, "TRIM_STEP", 10)
    database = await Database.open(tmp_path / "journal.sqlite")
    await database.write([], [Event(EventKind.VM_READY, float(number)) for number in range(75)])
    deleted: list[str] = []
    database._connection.set_trace_callback(lambda text: deleted.append(text) if "DELETE" in text else None)
    await database.trim()
    assert len(deleted) == 5
    assert [number for number, _ in await database.events()] == list(range(46, 76))
    await database.close()
