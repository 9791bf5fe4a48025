"""The records that the journal holds, and changes to them. Pure values: the engine loads, commits and stores them."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from agent.domain.breaker import Breaker, BreakerKey
from agent.domain.model import OPEN, ClockAnchor, HostMode, Lease, Resolution, StoredAssignment, Vm
from agent.domain.rollout import Rollout
from agent.domain.states import ENDING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent.domain.events import Event

T = TypeVar("T")
Record: TypeAlias = Vm | Lease | Rollout | Breaker | Resolution | StoredAssignment | HostMode | ClockAnchor
Key: TypeAlias = str | BreakerKey

KEYS: Final[Mapping[type[Record], Callable[[Any], Key]]] = MappingProxyType(
    {
        Vm: lambda vm: vm.name,
        Lease: lambda lease: lease.id,
        Rollout: lambda rollout: rollout.pool,
        Breaker: lambda breaker: breaker.key,
        Resolution: lambda resolution: resolution.reference,
        StoredAssignment: lambda stored: stored.key,
        HostMode: lambda mode: mode.key,
        ClockAnchor: lambda anchor: anchor.key,
    }
)
"""Each kind of record with the function that returns a record's key."""
_NO_RECORDS: Final[Mapping[Any, Any]] = MappingProxyType({})


def key_of(record: Record) -> Key:
    """Return the key a record is stored under."""
    return KEYS[type(record)](record)


@dataclass(frozen=True, slots=True)
class Put:
    """Write a record, new or changed."""

    record: Record


@dataclass(frozen=True, slots=True)
class Drop:
    """Remove a record. Removing an absent record succeeds."""

    kind: type[Record]
    key: Key


Change: TypeAlias = Put | Drop


@dataclass(frozen=True, slots=True)
class Changes:
    """Record changes in order, and the events that report them. They are committed together or not at all."""

    records: tuple[Change, ...] = ()
    events: tuple[Event, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.records or self.events)

    @property
    def needs_no_free_space(self) -> bool:
        """Whether they are also written on a full disk: they end a lease or a VM, so that its disk can be deleted, or
        follow the clock, which ends leases."""
        return any(
            change.kind in {Lease, Vm}
            if isinstance(change, Drop)
            else isinstance(change.record, ClockAnchor)
            or (isinstance(change.record, Vm) and change.record.state in ENDING)
            for change in self.records
        )

    def __add__(self, other: Changes) -> Changes:
        return Changes(self.records + other.records, self.events + other.events)


@dataclass(frozen=True, slots=True)
class StoredState:
    """Every record by kind and key, at one moment."""

    tables: Mapping[type[Record], Mapping[Any, Any]] = field(default_factory=dict)

    def table(self, kind: type[T]) -> Mapping[Any, T]:
        """Return the records of one kind by key."""
        return self.tables.get(kind, _NO_RECORDS)  # type: ignore[arg-type]

    def apply(self, changes: Changes) -> StoredState:
        """Return the state after `changes`. Copies only the tables they touch."""
        tables = dict(self.tables)
        copied: dict[type[Record], dict[Any, Any]] = {}
        for change in changes.records:
            kind = type(change.record) if isinstance(change, Put) else change.kind
            table = copied.get(kind)
            if table is None:
                table = copied[kind] = dict(tables.get(kind, _NO_RECORDS))
                tables[kind] = table
            if isinstance(change, Put):
                table[key_of(change.record)] = change.record
            else:
                table.pop(change.key, None)
        return StoredState(tables)

    @property
    def vms(self) -> Mapping[str, Vm]:
        """VMs by name."""
        return self.table(Vm)

    @property
    def leases(self) -> Mapping[str, Lease]:
        """Leases by id."""
        return self.table(Lease)

    @property
    def rollouts(self) -> Mapping[str, Rollout]:
        """Rollouts by pool."""
        return self.table(Rollout)

    @property
    def clock_anchor(self) -> ClockAnchor | None:
        """The clocks as the last agent read them; None in the journal of an older agent."""
        return self.table(ClockAnchor).get("clock")

    @property
    def resolutions(self) -> Mapping[str, Resolution]:
        """Resolutions by reference."""
        return self.table(Resolution)

    @property
    def breakers(self) -> Mapping[BreakerKey, Breaker]:
        """Breakers by key."""
        return self.table(Breaker)

    @property
    def assignment(self) -> StoredAssignment | None:
        """The last valid assignment."""
        return self.table(StoredAssignment).get("current")

    @property
    def mode(self) -> HostMode:
        """The mode of this host."""
        return self.table(HostMode).get("host", OPEN)
