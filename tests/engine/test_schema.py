"""Journals of every schema version: an older one is migrated with all its records, and a copy of it is stored."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from agent.config import Assignment
from agent.domain.breaker import HOST_KEY, BreakerKey, Scope
from agent.domain.events import EventKind
from agent.domain.model import Cause, Failure, Vm
from agent.engine import journal_recovery, schema
from agent.engine.database import TABLES, Database
from agent.engine.schema import JournalError
from tests.engine.support import Clock, open_store, vm

if TYPE_CHECKING:
    from pathlib import Path

V1_VM = (
    '{"name":"v1","pool":"ci","image":"sha256:v1","state":"ready","size":{"cpus":2,"memory_mib":4096},'
    '"created_at_s":1.0,"since_s":1.0,"ready_at_s":2.0,"lease_id":null,"failure":null,"stop_grace_s":10.0}'
)


def write_v1(path: Path) -> None:
    """Write a journal of the first schema version."""
    with closing(sqlite3.connect(path)) as old:
        old.executescript(schema.MIGRATIONS[0])
        old.execute("INSERT INTO vms VALUES ('v1', ?)", [V1_VM])
        old.execute("""INSERT INTO events (vm, doc) VALUES ('v1', '{"kind":"vm-ready","at_s":2.0,"vm":"v1"}')""")
        old.execute("PRAGMA user_version = 1")
        old.commit()


async def test_first_version_is_migrated(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    write_v1(path)
    async with open_store(path, Clock()) as store:
        assert store.state.vms == {"v1": vm("v1")}
    with closing(sqlite3.connect(path)) as now:
        assert schema.version_of(now) == schema.VERSION
    with closing(sqlite3.connect(tmp_path / "journal.sqlite.v1")) as kept:
        assert schema.version_of(kept) == 1
        assert kept.execute("SELECT key FROM vms").fetchall() == [("v1",)]


async def test_failed_migration_leaves_the_journal_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


async def test_new_file_has_every_table_and_no_copy(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    database = await Database.open(path)
    for kind in TABLES:
        assert await database.load(kind) == {}
    await database.close()
    assert [file.name for file in tmp_path.iterdir()] == ["journal.sqlite"]


LEASED, STANDBY = (f"hearth-ci-01jx000000000000000000000{number}" for number in (1, 2))
V2_VM = (
    '{"name":"%s","pool":"ci","image":"sha256:v1","state":"%s","size":{"cpus":2,"memory_mib":4096},"created_at_s":1.0,'
    '"since_s":1.0,"ready_at_s":2.0,"lease_id":null,"failure":null,"stop_grace_s":10.0,"template":null,"owed":%s,'
    '"told":%s}'
)
V2_ROWS = (
    ("vms", LEASED, V2_VM % (LEASED, "leased", "false", '{"cause":"damaged","reason":"its disk is gone","at_s":5.0}')),
    ("vms", STANDBY, V2_VM % (STANDBY, "standby", "true", "null")),
    (
        "rollouts",
        "ci",
        (
            '{"pool":"ci","target":"sha256:v1","serving":"sha256:v1","phase":"serving","since_s":3.0,"previous":null,'
            '"failures":0,"reason":"","quarantined":[],"without_since_s":7.0}'
        ),
    ),
    (
        "assignments",
        "current",
        (
            '{"source":"file","etag":"e","document":"{\\"pools\\":{\\"ci\\":{\\"image\\":\\"reg/ci:1\\",\\"fan_out\\":false}}}",'
            '"key":"current"}'
        ),
    ),
    *(
        ("breakers", key, json.dumps({"key": key, "failures": 3, "open_until_s": 10.0, "last_failure_at_s": 5.0}))
        for key in ("host", "sha256:v1", "sha256-v1-2x4096", LEASED, "registry.lan:5000/ci:1")
    ),
)
"""Rows as an agent with schema version 2 wrote them."""


def write_v2(path: Path) -> None:
    """Write a journal of the second schema version."""
    with closing(sqlite3.connect(path)) as old:
        for step in schema.MIGRATIONS[:2]:
            old.executescript(step)
        for table, key, doc in V2_ROWS:
            old.execute(f"INSERT INTO {table} VALUES (?, ?)", [key, doc])
        for kind in ("vm-sick-while-leased", "stray-reaped", "stray-reap-failed", "vm-ready"):
            old.execute("INSERT INTO events (vm, doc) VALUES (?, ?)", [LEASED, json.dumps({"kind": kind, "at_s": 5.0})])
        old.execute("PRAGMA user_version = 2")
        old.commit()


async def test_second_version_is_migrated_to_renamed_fields(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    write_v2(path)
    async with open_store(path, Clock()) as store:
        state = store.state
        assert state.vms[LEASED].reported_failure == Failure(Cause.DAMAGED, "its disk is gone", 5.0)
        assert {name: vm.replacement_due for name, vm in state.vms.items()} == {LEASED: False, STANDBY: True}
        assert state.rollouts["ci"].short_since_s == 7.0
        assert state.breakers.keys() == {
            HOST_KEY,
            BreakerKey(Scope.IMAGE, "sha256:v1"),
            BreakerKey(Scope.TEMPLATE, "sha256-v1-2x4096"),
            BreakerKey(Scope.VM, LEASED),
            BreakerKey(Scope.REFERENCE, "registry.lan:5000/ci:1"),
        }
        assert {breaker.failures for breaker in state.breakers.values()} == {3}
        assert state.assignment is not None
        assert not Assignment.model_validate_json(state.assignment.document).pools["ci"].use_templates
    database = await Database.open(path)
    assert [event.kind for _, event in await database.events(vm=LEASED)] == [
        EventKind.VM_UNHEALTHY_WHILE_LEASED, EventKind.STRAY_REMOVED, EventKind.STRAY_REMOVAL_FAILED, EventKind.VM_READY
    ]  # fmt: skip
    await database.close()


def test_recovery_reads_an_older_journal_without_migrating_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    write_v2(path)
    before = path.read_bytes()
    contents = journal_recovery.read(path)
    assert contents.version == 2
    assert [error for error in contents.errors if "cannot be read" in error] == []
    assert contents.records[Vm].keys() == {LEASED, STANDBY}
    assert path.read_bytes() == before
