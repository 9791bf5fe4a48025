"""The changes of one fact in the making: what handlers read from and write to."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from agent.domain.breaker import Breaker, count_failure
from agent.domain.events import Event
from agent.domain.states import advance
from agent.domain.stored_state import Changes, Drop, Put, key_of
from agent.domain.text import clip

if TYPE_CHECKING:
    from agent.domain.breaker import BreakerKey
    from agent.domain.events import EventKind
    from agent.domain.model import Vm
    from agent.domain.states import VmEvent
    from agent.domain.stored_state import Change, Key, Record, StoredState

T = TypeVar("T")


@dataclass(slots=True)
class Draft:
    """A state, and the changes made to it so far. Reads see these changes."""

    state: StoredState
    now_s: float
    jitter: float
    _changes: dict[tuple[type[Record], Key], Change] = field(default_factory=dict)
    _events: list[Event] = field(default_factory=list)

    def get(self, kind: type[T], key: Key) -> T | None:
        """Return a record, or None."""
        change = self._changes.get((kind, key))  # type: ignore[arg-type]
        if change is None:
            return self.state.table(kind).get(key)
        return change.record if isinstance(change, Put) else None  # type: ignore[return-value]

    def all(self, kind: type[T]) -> tuple[T, ...]:
        """Return every record of a kind."""
        found = dict(self.state.table(kind))
        for (changed, key), change in self._changes.items():
            if changed is kind:
                found.pop(key, None)
                if isinstance(change, Put):
                    found[key] = change.record
        return tuple(found.values())

    def put(self, new: Record) -> None:
        """Write a record."""
        self._changes[type(new), key_of(new)] = Put(new)

    def drop(self, kind: type[Record], key: Key) -> None:
        """Remove a record."""
        self._changes[kind, key] = Drop(kind, key)

    def event(self, kind: EventKind, *, detail: str = "", **about: Any) -> None:  # noqa: ANN401 - the fields of Event
        """Add an event of this moment. Its detail is cut to `DETAIL_LIMIT_BYTES`."""
        self._events.append(Event(kind, self.now_s, detail=clip(detail), **about))

    def vm_event(self, kind: EventKind, vm: Vm, **about: Any) -> None:  # noqa: ANN401 - the fields of Event
        """Add an event of a VM, its pool and its image."""
        self.event(kind, vm=vm.name, pool=vm.pool, image=vm.image, **about)

    def move(self, vm: Vm, event: VmEvent, **fields: Any) -> Vm:  # noqa: ANN401 - the fields of Vm
        """Move a VM along its transition table."""
        moved = replace(vm, state=advance(vm.state, event), since_s=self.now_s, **fields)
        self.put(moved)
        return moved

    def trip(self, key: BreakerKey, reason: str, *, jitter: float | None = None, free: int = 0) -> None:
        """Count one more failure of the thing that `key` names."""
        before = self.get(Breaker, key) or Breaker(key)
        jitter = self.jitter if jitter is None else jitter
        self.put(count_failure(before, now_s=self.now_s, jitter=jitter, reason=clip(reason), free=free))

    def changes(self) -> Changes:
        """Return everything written so far."""
        return Changes(tuple(self._changes.values()), tuple(self._events))
