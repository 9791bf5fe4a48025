"""Reader of the agent's journal, by its own read-only connection."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The records at one moment, by key, and the sequence number of the latest event."""

    vms: dict[str, Document] = field(default_factory=dict)
    leases: dict[str, Document] = field(default_factory=dict)
    rollouts: dict[str, Document] = field(default_factory=dict)
    breakers: dict[str, Document] = field(default_factory=dict)
    last_event: int = 0

    def leased(self, vm: str) -> str | None:
        """Return the id of a VM's lease, or None."""
        lease: str | None = self.vms[vm].get("lease_id") if vm in self.vms else None
        return lease


@dataclass(frozen=True, slots=True)
class JournalReader:
    """A journal file. Each read is one consistent snapshot and writes nothing. Raises `sqlite3.Error`."""

    path: Path

    def snapshot(self) -> Snapshot:
        """Return all current records."""
        with closing(self._connect()) as connection:
            connection.execute("BEGIN")
            tables = {
                name: {key: json.loads(doc) for key, doc in connection.execute(f"SELECT key, doc FROM {name}")}
                for name in ("vms", "leases", "rollouts", "breakers")
            }
            (last,) = connection.execute("SELECT coalesce(max(sequence), 0) FROM events").fetchone()
        return Snapshot(**tables, last_event=last)

    def events(self, *, after: int) -> list[Document]:
        """Return the events after a sequence number, in order, each with its `sequence`."""
        with closing(self._connect()) as connection:
            rows = connection.execute("SELECT sequence, doc FROM events WHERE sequence > ? ORDER BY sequence", [after])
            return [{**json.loads(doc), "sequence": sequence} for sequence, doc in rows]

    def assigned(self) -> dict[str, Document]:
        """Return the pools of the last good assignment, by name."""
        with closing(self._connect()) as connection:
            row = connection.execute("SELECT doc FROM assignments").fetchone()
        pools: dict[str, Document] = json.loads(json.loads(row[0])["document"])["pools"] if row else {}
        return pools

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(f"file:{self.path}?mode=ro", uri=True, timeout=10, isolation_level=None)
