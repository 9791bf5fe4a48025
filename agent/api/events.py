"""The event stream: one reader of the journal, any number of subscribers.

The hub reads each new event once, renders it once, and keeps the latest. Subscribers request the events
after a number: recent events come from memory, older ones from the journal. A subscriber has no buffer in the hub, so a
slow one costs only its own connection.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from agent.api.documents import event_document
from agent.domain.errors import HearthError

if TYPE_CHECKING:
    from agent.api.auth import Caller
    from agent.api.engine_protocols import EngineParts
    from agent.api.schemas import EventDocument
    from agent.domain.events import Event

log = structlog.get_logger()

RECENT: Final = 1000
_PAGE: Final = 500
_REPLAY_PAGE: Final = 100  # each of many slow subscribers may hold one
_RETRY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class NumberedEvent:
    """One event with its number, its document, and its bytes as a server-sent event.

    `sse_without_lease` is for callers that may not see the id of its lease, which `lease_owner` requested.
    """

    number: int
    document: EventDocument
    sse: bytes
    sse_without_lease: bytes
    lease_owner: str | None

    def sse_for(self, caller: Caller) -> bytes:
        """Return the bytes for a caller."""
        return self.sse if caller.can_see_lease(self.lease_owner) else self.sse_without_lease


def number_event(number: int, event: Event) -> NumberedEvent:
    """Return an event in the forms that subscribers send."""
    document = event_document(number, event)
    sse = _sse(document)
    masked = sse if event.lease is None else _sse(without_lease(document))
    return NumberedEvent(number, document, sse, masked, event.owner)


def without_lease(document: EventDocument) -> EventDocument:
    """Return an event without the id of its lease."""
    return document.model_copy(update={"lease": None})


def _sse(document: EventDocument) -> bytes:
    data = document.model_dump_json(exclude_defaults=True)
    return f"id: {document.number}\nevent: {document.kind}\ndata: {data}\n\n".encode()


class EventHub:
    """Follows the history (`run`) and returns events (`after`)."""

    def __init__(self, engine: EngineParts) -> None:
        self._engine = engine
        self._recent: list[NumberedEvent] = []
        self._last = 0
        self._new_events = asyncio.Event()
        self._closed = False

    @property
    def last(self) -> int:
        """The number of the latest event in the hub."""
        return self._last

    async def start(self) -> None:
        """Store the number of the latest event: older events are read from the journal on request."""
        self._last = await self._engine.history.last()

    async def run(self) -> None:
        """Follow the history until cancelled."""
        while True:
            sequence = self._engine.host.sequence
            try:
                await self._read_new()
            except HearthError as error:
                log.warning("events-unreadable", error=str(error))
                await asyncio.sleep(_RETRY_S)
            else:
                await self._engine.history.changed(sequence)

    async def after(self, number: int) -> list[NumberedEvent]:
        """Return the next events after `number`; wait for one if there is none. Empty when the agent stops."""
        while not self._closed:
            if number < self._last:
                if self._recent and self._recent[0].number <= number + 1:
                    return self._recent[bisect_right(self._recent, number, key=lambda item: item.number) :]
                page = await self._engine.history.events(after=number, limit=_REPLAY_PAGE)
                if page:
                    return [number_event(*item) for item in page]
                number = self._last  # the events up to here cannot be read
                continue
            await self._new_events.wait()
        return []

    def close(self) -> None:
        """End every subscriber."""
        self._closed = True
        self._wake()

    async def _read_new(self) -> None:
        """Read the events since the last call."""
        while page := await self._engine.history.events(after=self._last, limit=_PAGE):
            self._recent += [number_event(*item) for item in page]
            del self._recent[:-RECENT]
            self._last = page[-1][0]
            self._wake()

    def _wake(self) -> None:
        self._new_events.set()
        self._new_events = asyncio.Event()
