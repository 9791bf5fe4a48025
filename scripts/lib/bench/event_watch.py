"""Subscriber to an agent's events that records when each arrived."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Callable

    from scripts.lib.host import Host


@dataclass(frozen=True, slots=True)
class ReceivedEvent:
    """One event, and when it arrived (monotonic seconds)."""

    document: dict[str, Any]
    at_s: float


class EventWatch:
    """A subscriber to `/v1/events`, as a context manager: it is subscribed while the block runs."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._received: list[ReceivedEvent] = []
        self._news = asyncio.Condition()
        self._listening = asyncio.Event()

    async def __aenter__(self) -> EventWatch:
        self._task = asyncio.create_task(self._listen())
        await asyncio.wait_for(self._listening.wait(), 10)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def first(
        self, predicate: Callable[[dict[str, Any]], bool], *, since_s: float, timeout_s: float = 120
    ) -> ReceivedEvent:
        """Wait for the first event at or after `since_s` for which `predicate` is true; return it."""
        async with asyncio.timeout(timeout_s), self._news:
            while True:
                for event in self._received:
                    if event.at_s >= since_s and predicate(event.document):
                        return event
                await self._news.wait()

    async def _listen(self) -> None:
        timeout = aiohttp.ClientTimeout(total=None)
        headers = {"Accept": "text/event-stream"}
        connector = aiohttp.UnixConnector(str(self._host.socket))
        async with (
            aiohttp.ClientSession("http://hearth", connector=connector, timeout=timeout) as http,
            http.get("/v1/events", headers=headers) as response,
        ):
            self._listening.set()
            async for line in response.content:
                if line.startswith(b"data: "):
                    async with self._news:
                        self._received.append(ReceivedEvent(json.loads(line[6:]), time.monotonic()))
                        self._news.notify_all()
