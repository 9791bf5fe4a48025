"""Journal recovery: readable records are kept, running VMs are adopted, nothing is invented."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

from agent.domain.breaker import HOST_KEY, Breaker
from agent.domain.events import Event, EventKind
from agent.domain.model import Cause, Failure, HostMode, Lease, Mode, Observed, StoredAssignment, Vm, VmSize
from agent.domain.names import vm_name
from agent.domain.rollout import Phase, Rollout
from agent.domain.states import VmState
from agent.domain.stored_state import Put, Record
from agent.engine import journal_recovery
from agent.engine.database import Database
from tests.engine.support import Clock, open_store, vm

if TYPE_CHECKING:
    from pathlib import Path

READY, LEASED, DEAD, FAILED = (vm_name("ci", f"01jx00000000000000000000{number:02}") for number in range(4))
UNKNOWN = vm_name("other", "01jx0000000000000000000099")
LEASE = Lease("l1", "ci", LEASED, "job", 60, 1000, 1060)
LOST = Lease("l2", "ci", DEAD, "job", 60, 1000, 1060)
ROLLOUT = Rollout("ci", "sha256:v1", "sha256:v1", Phase.SERVING, 3.0, quarantined=("sha256:bad",))
MODE = HostMode(Mode.CORDONED, 5.0, "disks")


async def write(path: Path) -> None:
    database = await Database.open(path)
    failure = Failure(Cause.EXITED, "x", 1.0)
    records: list[Record] = [
        vm(READY), vm(LEASED, VmState.LEASED, lease_id="l1"), vm(DEAD, VmState.LEASED, lease_id="l2"),
        vm(FAILED, VmState.FAILED, failure=failure), LEASE, LOST, ROLLOUT, MODE, Breaker(HOST_KEY, 9, 1e12, 1e12, "x"),
        StoredAssignment("api", "etag", "{}"),
    ]  # fmt: skip
    events = [Event(EventKind.VM_READY, float(number), vm=READY, detail="x" * 200) for number in range(2000)]
    await database.write([Put(record) for record in records], events)
    await database.close()


def rebuilt_lease(name: str) -> str:
    return f"held-{name[-26:]}"


def listed(*names: str) -> tuple[Observed, ...]:
    foreign = Observed("somebody-elses", ours=False, running=True)
    return (foreign, *(Observed(name, ours=True, running=True, pid=1, image="sha256:seen") for name in names))


async def test_healthy_journal_has_no_errors(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    await write(path)
    contents = journal_recovery.read(path)
    assert contents.errors == []
    assert set(contents.records[Vm]) == {READY, LEASED, DEAD, FAILED}
    assert len(contents.events) == 2000
    assert [file.name for file in tmp_path.iterdir()] == ["journal.sqlite"]


async def test_running_vms_are_adopted_by_a_rebuild(tmp_path: Path) -> None:
    await write(tmp_path / "journal.sqlite")
    old = journal_recovery.read(tmp_path / "journal.sqlite")
    seen = listed(READY, LEASED, FAILED, UNKNOWN)
    rebuilt = journal_recovery.rebuild(old, seen, {"other": VmSize(8, 9000)}, 5000.0)
    journal_recovery.write(tmp_path / "fresh.sqlite", rebuilt)
    async with open_store(tmp_path / "fresh.sqlite", Clock()) as store:
        states = {name: one.state for name, one in store.state.vms.items()}
        assert states == {
            READY: VmState.STARTING, LEASED: VmState.LEASED, FAILED: VmState.FAILED, UNKNOWN: VmState.LEASED
        }  # fmt: skip
        assert store.state.vms[READY].image == "sha256:v1"
        assert store.state.vms[READY].ready_at_s is None
        unknown = store.state.vms[UNKNOWN]
        assert (unknown.pool, unknown.size, unknown.image) == ("other", VmSize(8, 9000), "sha256:seen")
        held = store.state.vms[UNKNOWN].lease_id
        assert held == rebuilt_lease(UNKNOWN)
        assert set(store.state.leases) == {"l1", held}
        assert (store.state.leases["l1"], store.state.leases[held].expires_at_s) == (LEASE, 8600.0)
        assert store.state.rollouts == {"ci": ROLLOUT}
        assert store.state.mode == MODE
        assert store.state.breakers == {}
        ending = await store.last_event_of_lease("l2")
        assert ending is not None
        assert (ending.kind, ending.cause) == (EventKind.LEASE_BROKEN, Cause.LOST)
    again = journal_recovery.read(tmp_path / "fresh.sqlite")
    assert again.errors == []
    assert max(again.events) == 2003
    assert again.events[2003].kind is EventKind.JOURNAL_REBUILT


async def test_rebuild_of_a_damaged_journal_holds_every_vm(tmp_path: Path) -> None:
    await write(tmp_path / "journal.sqlite")
    old = journal_recovery.read(tmp_path / "journal.sqlite")
    old.damaged = True
    rebuilt = journal_recovery.rebuild(old, listed(READY, LEASED), {}, 5000.0)
    assert (rebuilt.held, rebuilt.kept_leases) == ((READY,), ("l1",))
    assert {record.state for record in rebuilt.records if isinstance(record, Vm)} == {VmState.LEASED}


async def test_readable_records_of_a_damaged_file_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    await write(path)
    data = bytearray(path.read_bytes())
    half = len(data) // 2
    data[half : half + 40960] = b"\xff" * 40960  # somewhere in the events
    path.write_bytes(data)
    before = path.read_bytes()
    contents = journal_recovery.read(path)
    assert any("damaged" in error for error in contents.errors)
    assert set(contents.records[Lease]) == {"l1", "l2"}
    assert 100 < len(contents.events) < 2000
    assert {1, 2000} <= set(contents.events), "both sides of the damage"
    assert path.read_bytes() == before


def test_file_that_is_not_a_database_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"this is not a database" * 1000)
    contents = journal_recovery.read(path)
    assert "file is not a database" in contents.errors[0]
    assert list(contents.all()) == []
    rebuilt = journal_recovery.rebuild(contents, listed(READY), {}, 5000.0)
    assert rebuilt.adopted == rebuilt.held == (READY,)


async def test_contradictory_records_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    await write(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE vms SET doc = '{}' WHERE key = ?", [LEASED])
        connection.execute("DELETE FROM leases WHERE key = 'l2'")
        connection.commit()
    errors = journal_recovery.read(path).errors
    assert any(f"record '{LEASED}' cannot be read" in error for error in errors)
    assert any(f"lease l1 is of {LEASED}, which is not recorded" in error for error in errors)
    assert any(f"{DEAD} is leased as l2, but there is no such lease" in error for error in errors)


async def test_replaced_journal_keeps_all_its_files(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_text("old")
    path.with_name("journal.sqlite-wal").write_text("wal")
    (tmp_path / "fresh").write_text("new")
    aside = journal_recovery.replace_journal(path, tmp_path / "fresh", stamp="now")
    assert path.read_text() == "new"
    assert aside.read_text() == "old"
    assert aside.with_name(f"{aside.name}-wal").read_text() == "wal"
    assert not path.with_name("journal.sqlite-wal").exists()
