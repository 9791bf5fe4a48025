"""Journals of every age: an older one is brought forward with all it holds, and kept as it was beside the new one."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from agent.domain.model import Vm
from agent.engine import schema
from agent.engine.database import TABLES, Database, JournalError
from tests.engine.support import Clock, open_ledger, vm

if TYPE_CHECKING:
    from pathlib import Path

V1_VM = (
    '{"name":"v1","pool":"ci","image":"sha256:v1","state":"ready","size":{"cpus":2,"memory_mib":4096},'
    '"created_at_s":1.0,"since_s":1.0,"ready_at_s":2.0,"lease_id":null,"failure":null,"stop_grace_s":10.0}'
)


def write_v1(path: Path) -> None:
    """Write a journal as the first version of the agent left it."""
    with closing(sqlite3.connect(path)) as old:
        old.executescript(schema.MIGRATIONS[0])
        old.execute("INSERT INTO vms VALUES ('v1', ?)", [V1_VM])
        old.execute("""INSERT INTO events (vm, doc) VALUES ('v1', '{"kind":"vm-ready","at_s":2.0,"vm":"v1"}')""")
        old.execute("PRAGMA user_version = 1")
        old.commit()


async def test_a_journal_of_the_first_version_is_brought_forward(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    write_v1(path)
    async with open_ledger(path, Clock()) as store:
        assert store.vms == {"v1": vm("v1")}
    with closing(sqlite3.connect(path)) as now:
        assert schema.version_of(now) == schema.VERSION
    with closing(sqlite3.connect(tmp_path / "journal.sqlite.v1")) as kept:
        assert schema.version_of(kept) == 1
        assert kept.execute("SELECT key FROM vms").fetchall() == [("v1",)]


async def test_a_migration_that_fails_leaves_the_journal_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.sqlite"
    write_v1(path)
    broken = "CREATE TABLE half (key TEXT); CREATE TABLE vms (again TEXT);"
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (schema.MIGRATIONS[0], broken))
        patch.setattr(schema, "VERSION", 2)
        with pytest.raises(JournalError, match="vms already exists"):
            await Database.open(path)
    with closing(sqlite3.connect(path)) as left:
        assert schema.version_of(left) == 1
        assert not left.execute("SELECT name FROM sqlite_master WHERE name = 'half'").fetchall()
    database = await Database.open(path)
    assert set(await database.load(Vm)) == {"v1"}
    await database.close()


async def test_a_new_file_has_every_table_and_no_copy(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    database = await Database.open(path)
    for kind in TABLES:
        assert await database.load(kind) == {}
    await database.close()
    assert [file.name for file in tmp_path.iterdir()] == ["journal.sqlite"]
