"""The database: durable, atomic, and clear about what it cannot read."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from agent.domain.breaker import Breaker, BreakerKey, Scope
from agent.domain.events import Event, EventKind
from agent.domain.model import Cause, Failure, HostMode, Lease, Mode, Resolution, StoredAssignment, Vm
from agent.domain.rollout import Phase, Rollout
from agent.domain.states import VmState
from agent.domain.stored_state import Changes, Drop, Put, Record, key_of
from agent.engine.database import Database
from agent.engine.schema import JournalError
from tests.engine.support import Clock, open_store, put, vm

if TYPE_CHECKING:
    from pathlib import Path

LEASE = Lease("l1", "ci", "v1", "job", 60, 1000, 1060, "key")
RECORDS: tuple[Record, ...] = (
    vm("v1", VmState.FAILED, failure=Failure(Cause.EXITED, "it died", 5.0), lease_id="l1"),
    LEASE,
    Rollout("ci", "sha256:b", "sha256:a", Phase.CANARY, 3.0, quarantined=("sha256:c",)),
    Breaker(BreakerKey(Scope.IMAGE, "sha256:b"), 3, 10.0, 5.0, "no"),
    Resolution("reg/ci:1", None, 5.0, "unreachable"),
    StoredAssignment("file", "etag", "{}"),
    HostMode(Mode.DRAINING, 5.0, "new disks"),
)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
async def test_every_kind_of_record_is_read_as_written(tmp_path: Path, record: Record) -> None:
    database = await Database.open(tmp_path / "journal.sqlite")
    await database.write([Put(record)])
    await database.close()

    database = await Database.open(tmp_path / "journal.sqlite")
    assert await database.load(type(record)) == {key_of(record): record}
    await database.write([Drop(type(record), key_of(record))])
    assert await database.load(type(record)) == {}
    await database.close()


async def test_lease_of_an_older_agent_is_read(tmp_path: Path) -> None:
    """It has no limit, no probes and no owner: it gets the limit of a pool's default, and every token may use it."""
    path = tmp_path / "journal.sqlite"
    await (await Database.open(path)).close()
    old = (
        '{"id":"l1","pool":"ci","vm":"v1","holder":"job","ttl_s":60,"created_at_s":1000,"expires_at_s":1060,'
        '"idempotency_key":"key"}'
    )
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO leases VALUES ('l1', ?)", [old])
    database = await Database.open(path)
    assert await database.load(Lease) == {"l1": LEASE}
    assert (LEASE.owner, LEASE.max_ttl_s) == (None, 86400)
    await database.close()


async def test_write_is_atomic(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "journal.sqlite")
    second = Lease("l2", "ci", "v1", "other", 60, 1000, 1060)
    with pytest.raises(JournalError, match="UNIQUE"):
        await database.write([Put(vm("v1")), Put(LEASE), Put(second)], [Event(EventKind.LEASE_GRANTED, 1.0)])
    assert await database.load(Vm) == {}
    assert await database.load(Lease) == {}
    assert await database.events() == []
    await database.close()


async def test_schema_forbids_two_leases_on_one_vm(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "journal.sqlite")
    await database.write([Put(LEASE)])
    with pytest.raises(JournalError):
        await database.write([Put(Lease("l2", "ci", "v1", "other", 60, 1000, 1060))])
    await database.close()


async def test_events_are_read_in_order_by_vm(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "journal.sqlite")
    await database.write([], [Event(EventKind.VM_CREATING, 1.0, vm="a"), Event(EventKind.VM_CREATING, 1.0, vm="b")])
    await database.write([], [Event(EventKind.VM_READY, 2.0, vm="a", duration_s=1.0)])
    written = await database.events(vm="a")
    assert [(sequence, event.kind) for sequence, event in written] == [(1, "vm-creating"), (3, "vm-ready")]
    assert [sequence for sequence, _ in await database.events(after=1)] == [2, 3]
    await database.close()


async def test_corrupt_journal_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"this is not a database" * 100)
    with pytest.raises(JournalError, match=r"journal\.sqlite cannot be read.*journal rebuild"):
        await Database.open(path)
    assert path.read_bytes().startswith(b"this is not")


async def test_newer_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(JournalError, match="written by a newer agent"):
        await Database.open(path)


WRITER = """
import asyncio, sys
from pathlib import Path
from agent.domain.model import Resolution
from agent.domain.stored_state import Put
from agent.engine.database import Database

async def main():
    database = await Database.open(Path(sys.argv[1]))
    number = 0
    while True:
        number += 1
        await database.write([Put(Resolution(f"ref-{number}", None, number))])
        print(number, flush=True)

asyncio.run(main())
"""


async def test_written_records_survive_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    with writer, writer.stdout:
        written = 0
        while written < 20:
            written = int(await asyncio.to_thread(writer.stdout.readline))
        os.kill(writer.pid, signal.SIGKILL)
        written = max([written, *(int(line) for line in writer.stdout if line.strip())])
    database = await Database.open(path)
    assert len(await database.load(Resolution)) >= written
    await database.close()


async def test_memory_is_unchanged_when_the_journal_is_unwritable(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    async with open_store(path, Clock()) as store:
        await put(store, vm("v1"))
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("DROP TABLE leases")
        with pytest.raises(JournalError):
            async with store.transaction() as transaction:
                transaction.apply(Changes((Put(LEASE), Drop(Vm, "v1"))))
        assert set(store.state.vms) == {"v1"}
        assert not store.state.leases
        other.close()


async def test_cancelled_commit_keeps_memory_and_file_equal(tmp_path: Path) -> None:
    async with open_store(tmp_path / "journal.sqlite", Clock()) as store:

        async def write() -> None:
            await put(store, vm("v1"))

        for _ in range(20):
            task = asyncio.create_task(write())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            async with open_store(tmp_path / "journal.sqlite", Clock()) as again:
                assert again.state.vms == store.state.vms
