"""Recovery of the journal: read a damaged one, and rebuild it from its readable records and the running VMs.

Everything here is offline: the caller holds the lock of the data directory. A journal is read from a copy, so that a
damaged file never changes.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from agent.domain import names
from agent.domain.breaker import Breaker
from agent.domain.events import Event, EventKind
from agent.domain.model import Cause, Lease, Vm, VmSize
from agent.domain.states import ENDING, VmState
from agent.domain.stored_state import key_of
from agent.engine.database import EVENT, TABLES
from agent.engine.schema import VERSION, connect, migrate, version_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from agent.domain.model import Observed
    from agent.domain.stored_state import Record

T = TypeVar("T")

HOLD_S: Final = 3600.0
"""How long a VM is held for a job that may use it: the default time to live of a lease."""
HOLDER: Final = "unknown holder at the journal's rebuild"
_PARTS: Final = ("", "-wal", "-shm")


@dataclass
class Contents:
    """The readable records of a journal. `errors` lists what is unreadable or contradictory.

    In a `damaged` journal a record may be older than the last one written, so no record shows reliably that a VM is
    idle."""

    version: int = 0
    damaged: bool = False
    records: dict[type[Record], dict[Any, Any]] = field(default_factory=lambda: {kind: {} for kind in TABLES})
    events: dict[int, Event] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def all(self) -> Iterator[Record]:
        """Yield every record."""
        for table in self.records.values():
            yield from table.values()


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """The contents of a rebuilt journal, and what happened to the VMs and leases of the old one."""

    records: tuple[Record, ...]
    events: dict[int, Event]
    adopted: tuple[str, ...]
    lost_vms: tuple[str, ...]
    kept_leases: tuple[str, ...]
    lost_leases: tuple[str, ...]
    held: tuple[str, ...]


def read(path: Path) -> Contents:
    """Return what is readable of the journal at `path`, in any state. Blocks. Raises `OSError`."""
    contents = Contents()
    with tempfile.TemporaryDirectory(prefix="hearth-journal-") as folder:
        copy = Path(folder) / "journal.sqlite"
        for part in _PARTS:
            if path.with_name(path.name + part).exists():
                shutil.copyfile(path.with_name(path.name + part), copy.with_name(copy.name + part))
        with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
            _read(connection, contents)
    contents.errors += _contradictions(contents)
    return contents


def rebuild(old: Contents, seen: Iterable[Observed], sizes: Mapping[str, VmSize], now_s: float) -> Rebuilt:
    """Return the contents of a rebuilt journal. Pure.

    Our running VMs are adopted. A leased one stays leased. An idle one must pass its startup probes again. One that a
    job may be using is held by a lease of its own for `HOLD_S`, so that no two jobs share it. Leases of VMs that do not
    run are broken. Other records stay, except breakers, which are reset."""
    running = {vm.name: vm.image for vm in seen if vm.ours and vm.running}
    suspended = {vm.name for vm in seen if vm.ours and vm.suspended} - running.keys()
    standby = [vm for vm in old.records[Vm].values() if vm.name in suspended and vm.state is VmState.STANDBY]
    leases = {lease.vm: lease for lease in old.records[Lease].values()}
    held = {name: _hold(name, now_s) for name in running.keys() - leases.keys() if _may_be_in_use(old, name)}
    leases |= held
    fresh = {name: _unknown(name, image, sizes, now_s) for name, image in running.items()}
    known = fresh | {name: vm for name, vm in old.records[Vm].items() if name in running}
    vms = [_adopt(known[name], leases.get(name), now_s) for name in sorted(known)]
    broken = [lease for vm, lease in leases.items() if vm not in running]
    kept = [lease for vm, lease in leases.items() if vm in running]
    others = [record for record in old.all() if not isinstance(record, Vm | Lease | Breaker)]
    events = [
        Event(
            EventKind.LEASE_BROKEN, now_s, vm=lease.vm, pool=lease.pool, lease=lease.id, cause=Cause.LOST,
            detail="its VM did not run when the journal was rebuilt",
        )
        for lease in broken
    ]  # fmt: skip
    events += [
        Event(EventKind.LEASE_GRANTED, now_s, vm=lease.vm, pool=lease.pool, lease=lease.id, detail=f"to {lease.holder}")
        for lease in held.values()
    ]
    events.append(Event(EventKind.JOURNAL_REBUILT, now_s, detail=f"{len(vms)} VMs adopted, {len(held)} of them held"))
    last = max(old.events, default=0)
    return Rebuilt(
        records=(*vms, *standby, *kept, *others),
        events=old.events | dict(enumerate(events, last + 1)),
        adopted=tuple(vm.name for vm in vms),
        lost_vms=tuple(sorted(old.records[Vm].keys() - running.keys() - {vm.name for vm in standby})),
        kept_leases=tuple(lease.id for lease in kept if lease.vm not in held),
        lost_leases=tuple(lease.id for lease in broken),
        held=tuple(sorted(held)),
    )


def write(path: Path, rebuilt: Rebuilt) -> None:
    """Write a rebuilt journal to `path`, which must not exist. Blocks. Raises `JournalError` and `sqlite3.Error`."""
    with closing(connect(path)) as connection, connection:
        connection.execute("BEGIN IMMEDIATE")
        for record in rebuilt.records:
            table = TABLES[type(record)]
            values = [str(key_of(record)), table.adapter.dump_json(record).decode()]
            connection.execute(f"INSERT INTO {table.name} VALUES (?, ?)", values)
        connection.executemany(
            "INSERT INTO events (sequence, vm, lease, doc) VALUES (?, ?, ?, ?)",
            [
                (number, event.vm, event.lease, EVENT.dump_json(event).decode())
                for number, event in sorted(rebuilt.events.items())
            ],
        )


def replace_journal(path: Path, fresh: Path, *, stamp: str) -> Path:
    """Replace the journal at `path` by a rebuilt one; return the new path of the old one. Raises `OSError`."""
    aside = path.with_name(f"{path.name}.broken-{stamp}")
    for part in reversed(_PARTS):
        if path.with_name(path.name + part).exists():
            path.with_name(path.name + part).rename(aside.with_name(aside.name + part))
    fresh.rename(path)
    return aside


def _may_be_in_use(old: Contents, name: str) -> bool:
    known = old.records[Vm].get(name)
    return old.damaged or known is None or known.state is VmState.LEASED


def _hold(name: str, now_s: float) -> Lease:
    parsed = names.parse(name)
    assert parsed is not None
    return Lease(f"held-{parsed.ulid}", parsed.pool, name, HOLDER, HOLD_S, now_s, now_s + HOLD_S)


def _unknown(name: str, image: str, sizes: Mapping[str, VmSize], now_s: float) -> Vm:
    """Return the record of a VM that is not in the old journal: its name, pool and image are known nevertheless."""
    parsed = names.parse(name)
    assert parsed is not None
    return Vm(name, parsed.pool, image, VmState.STARTING, sizes.get(parsed.pool, VmSize()), now_s, now_s)


def _adopt(vm: Vm, lease: Lease | None, now_s: float) -> Vm:
    if lease is not None:
        return replace(vm, state=VmState.LEASED, lease_id=lease.id, failure=None)
    if vm.state in ENDING:
        return vm
    return replace(vm, state=VmState.STARTING, since_s=now_s, ready_at_s=None, lease_id=None, failure=None)


def _read(connection: sqlite3.Connection, contents: Contents) -> None:
    try:
        contents.version = version_of(connection)
        problems = [text for (text,) in connection.execute("PRAGMA integrity_check") if text != "ok"]
        if 0 < contents.version < VERSION:
            migrate(connection, contents.version)  # only this copy: its records then have the fields of this agent
    except sqlite3.Error as error:
        problems = [str(error)]
    contents.damaged = bool(problems)
    contents.errors += [f"the file is damaged: {problem}" for problem in problems]
    if contents.version > VERSION:
        contents.errors.append(
            f"it was written by a newer agent (schema {contents.version}, this agent supports {VERSION})"
        )
    for kind, table in TABLES.items():
        for record in _values(connection, table.name, "key", table.adapter, contents).values():
            contents.records[kind][key_of(record)] = record
    contents.events |= _values(connection, "events", "sequence", EVENT, contents)


def _values(
    connection: sqlite3.Connection, table: str, key: str, adapter: TypeAdapter[T], contents: Contents
) -> dict[Any, T]:
    """Return the readable values of a table, which an older journal may lack, by key."""
    rows = _rows(connection, table, key, contents) if _exists(connection, table) else {}
    values = {row_key: _parse(contents, adapter, row_key, doc) for row_key, doc in rows.items()}
    return {row_key: value for row_key, value in values.items() if value is not None}


def _exists(connection: sqlite3.Connection, table: str) -> bool:
    try:
        found = connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [table]).fetchone()
    except sqlite3.Error:
        return False
    return found is not None


def _rows(connection: sqlite3.Connection, table: str, key: str, contents: Contents) -> dict[Any, str]:
    """Return the readable rows of a table: from its beginning, and from its end if a part is damaged."""
    found: dict[Any, str] = {}
    for order in ("ASC", "DESC"):
        try:
            for row in connection.execute(f"SELECT {key}, doc FROM {table} ORDER BY rowid {order}"):
                found[row[0]] = row[1]
        except sqlite3.Error as error:
            contents.damaged = True
            contents.errors.append(f"table {table} cannot be read completely: {error}")
        else:
            break
    return found


def _parse(contents: Contents, adapter: TypeAdapter[T], key: object, doc: str) -> T | None:
    """Return the value of a row, or None after noting that it is unreadable."""
    try:
        return adapter.validate_json(doc)
    except ValidationError as error:
        contents.damaged |= adapter is not EVENT  # an event of a newer agent says nothing about the records
        contents.errors.append(f"record {key!r} cannot be read: {error.errors()[0]['msg']}")
        return None


def _contradictions(contents: Contents) -> Iterator[str]:
    vms, leases = contents.records[Vm], contents.records[Lease]
    for lease in leases.values():
        vm = vms.get(lease.vm)
        if vm is None or vm.lease_id != lease.id or vm.state is not VmState.LEASED:
            yield f"lease {lease.id} is of {lease.vm}, which is {vm.state if vm else 'not recorded'}"
    for vm in vms.values():
        if vm.state is VmState.LEASED and vm.lease_id not in leases:
            yield f"{vm.name} is leased as {vm.lease_id}, but there is no such lease"
