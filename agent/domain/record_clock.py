"""Steps of the host's clock: the moments of all records move with it, so that every duration stays what it was.

The agent's own time runs evenly (`agent.host.clock`). When the host's clock is set, for example from 1970 to today, the
difference is recorded as one fact. A lease then expires as long after its start as before, and shows the new time."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from agent.domain.events import EventKind

if TYPE_CHECKING:
    from agent.domain.draft import Draft
    from agent.domain.facts import ClockRead, ClockStepped
    from agent.domain.model import ClockAnchor

T = TypeVar("T")

STEP_S: Final = 2.0
"""Difference from which the records move. A clock that is slewed by less keeps the records as they are."""

_MOMENTS: Final = ("at_s", "since_s", "until_s")
"""Endings of the names of fields that hold a moment. Other fields in seconds hold durations."""


def missed_step_s(anchor: ClockAnchor | None, current: ClockAnchor) -> float:
    """Return by how much the host's clock was set since `anchor` was read; 0 if that is not known.

    After a reboot of the host it is not known. No VM survives a reboot, so no lease depends on it.
    """
    if anchor is None or not anchor.boot or anchor.boot != current.boot:
        return 0.0
    return current.now_s - (anchor.now_s + current.elapsed_s - anchor.elapsed_s)


def move_moments(record: T, delta_s: float) -> T:
    """Return a record with its moments moved by `delta_s`. A moment of 0 was never set."""
    changes: dict[str, Any] = {}
    for item in fields(record):  # type: ignore[arg-type]
        value = getattr(record, item.name)
        if is_moment(item.name) and value:
            changes[item.name] = value + delta_s
        elif is_dataclass(value) and not isinstance(value, type):
            moved = move_moments(value, delta_s)
            if moved != value:
                changes[item.name] = moved
    return replace(record, **changes) if changes else record  # type: ignore[type-var]


def is_moment(name: str) -> bool:
    """Whether a field of that name holds a moment, in seconds since the epoch."""
    return name in _MOMENTS or name.endswith(tuple(f"_{ending}" for ending in _MOMENTS))


def read_clock(draft: Draft, fact: ClockRead) -> None:
    draft.put(fact.anchor)


def step_clock(draft: Draft, fact: ClockStepped) -> None:
    for table in draft.state.tables.values():
        for record in table.values():
            moved = move_moments(record, fact.delta_s)
            if moved is not record:
                draft.put(moved)
    draft.put(fact.anchor)
    draft.event(EventKind.CLOCK_STEPPED, detail=f"the host's clock was set by {fact.delta_s:+.1f} s")
