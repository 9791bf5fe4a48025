"""The event stream: live, resumable over restarts, shared by subscribers, and not blocked by slow ones."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from agent.domain.events import Event, EventKind
from tests.api.conftest import Running, run
from tests.api.real_engine import NOW_S, RealEngine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

STREAM = {"Accept": "text/event-stream"}


def happened(number: int, *, name: str = "hearth-small-1") -> Event:
    return Event(EventKind.VM_READY, NOW_S + number, vm=name, pool="small")


async def messages(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """Yield the events of a stream without comments. Asserts that id and data agree."""
    block: dict[str, str] = {}
    async for line in response.content:
        text = line.decode().rstrip("\n")
        if text and not text.startswith(":"):
            key, _, value = text.partition(": ")
            block[key] = value
        elif "data" in block:
            data: dict[str, Any] = json.loads(block["data"])
            assert (str(data["number"]), data["kind"]) == (block["id"], block["event"])
            yield data
            block = {}


async def take(response: aiohttp.ClientResponse, count: int) -> list[int]:
    numbers: list[int] = []
    async with asyncio.timeout(10):
        async for message in messages(response):
            numbers.append(message["number"])
            if len(numbers) == count:
                return numbers
    return numbers


async def test_stream_begins_with_the_next_event(api: Running) -> None:
    await api.engine.commit(happened(1))
    await wait_for_last(api, 1)
    async with api.tcp.get("/v1/events", headers=STREAM) as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        assert await response.content.readline() == b"retry: 2000\n"
        await api.engine.commit(happened(2), happened(3))
        assert await take(response, 2) == [2, 3]


async def wait_for_last(api: Running, number: int) -> None:
    async with asyncio.timeout(5):
        while True:
            async with api.unix.get("/v1/events") as response:
                if (await response.json())["last"] == number:
                    return


@pytest.mark.parametrize("resume", ["header", "query", "both"])
async def test_stream_resumes_after_the_last_received_event(tmp_path: Path, resume: str) -> None:
    engine = RealEngine()  # without VMs: their adoption after the restart is an event too
    async with run(engine, tmp_path) as api:
        await engine.commit(*(happened(number) for number in range(1, 4)))
        async with api.tcp.get("/v1/events", params={"after": 0}, headers=STREAM) as response:
            assert await take(response, 2) == [1, 2]
        await engine.commit(happened(4))
    headers = STREAM | ({"Last-Event-ID": "2"} if resume != "query" else {})
    params = {"query": {"after": "2"}, "both": {"after": "0"}}.get(resume, {})
    async with run(engine, tmp_path) as api, api.tcp.get("/v1/events", params=params, headers=headers) as response:
        assert await take(response, 2) == [3, 4]
        await engine.commit(happened(5))
        assert await take(response, 1) == [5]


async def test_stream_sends_a_long_history_in_order(api: Running) -> None:
    for _ in range(30):
        await api.engine.commit(*(happened(number) for number in range(100)))
    async with api.tcp.get("/v1/events", params={"after": 0}, headers=STREAM) as response:
        assert await take(response, 3000) == list(range(1, 3001))


async def test_stream_of_one_vm_has_only_its_events(api: Running) -> None:
    async with api.tcp.get("/v1/events", params={"vm": "b", "after": 0}, headers=STREAM) as response:
        await api.engine.commit(happened(1, name="a"), happened(2, name="b"))
        await api.engine.commit(happened(3, name="a"), happened(4, name="b"))
        assert await take(response, 2) == [2, 4]


async def test_event_pages_link_to_the_next_page(api: Running) -> None:
    await api.engine.commit(*(happened(number, name="ab"[number % 2]) for number in range(1, 6)))
    await wait_for_last(api, 5)
    numbers, after = [], 0
    while True:
        async with api.tcp.get("/v1/events", params={"after": after, "limit": 2}) as response:
            page = await response.json()
        if not page["events"]:
            break
        numbers += [event["number"] for event in page["events"]]
        after = page["next"]
    assert numbers == [1, 2, 3, 4, 5]
    async with api.tcp.get("/v1/events", params={"vm": "b"}) as response:
        assert [event["number"] for event in (await response.json())["events"]] == [1, 3, 5]


@pytest.mark.parametrize("value", ["x", "-1", "1.5", "\u0661", str(2**63), "9" * 5000])
async def test_invalid_last_event_id_is_refused(api: Running, value: str) -> None:
    headers = {**STREAM, "Last-Event-ID": value}
    async with api.tcp.get("/v1/events", headers=headers) as response:
        assert response.status == 422
        assert (await response.json(content_type=None))["code"] == "invalid-request"


async def test_quiet_stream_is_kept_alive(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.api.resources.events.KEEP_ALIVE_S", 0.05)
    async with asyncio.timeout(5), api.tcp.get("/v1/events", headers=STREAM) as response:
        while not (await response.content.readline()).startswith(b": "):
            pass


async def test_stream_ends_when_the_agent_stops(tmp_path: Path) -> None:
    async with run(RealEngine(), tmp_path) as api, api.tcp.get("/v1/events", headers=STREAM) as response:
        closing = asyncio.create_task(api.server.close())
        async with asyncio.timeout(5):
            assert await response.content.read() == b"retry: 2000\n\n"
            await closing


async def test_subscriber_that_does_not_read_is_disconnected(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.api.resources.events.SEND_TIMEOUT_S", 0.1)
    reader, writer = await asyncio.open_unix_connection(str(api.socket), limit=1024)
    writer.write(b"GET /v1/events?after=0 HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n")
    await reader.readline()
    async with asyncio.timeout(20):
        while not reader.at_eof():
            await api.engine.commit(*(happened(number) for number in range(500)))
            if api.metrics.registry.get_sample_value(
                "hearth_api_request_duration_seconds_count",
                {"route": "/v1/events", "method": "GET", "status": "disconnected"},
            ):
                break
            await asyncio.sleep(0)
    writer.close()


async def test_subscribers_share_reads_of_the_history(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async with aiohttp.ClientSession(
        f"http://127.0.0.1:{api.server.port}", connector=aiohttp.TCPConnector(limit=0)
    ) as client:
        streams = [await client.get("/v1/events", headers=STREAM) for _ in range(300)]
        reads, read = 0, api.engine.history.events

        async def count_reads(*, after: int, vm: str | None = None, limit: int = 500) -> list[tuple[int, Event]]:
            nonlocal reads
            reads += 1
            return await read(after=after, vm=vm, limit=limit)

        monkeypatch.setattr(api.engine.history, "events", count_reads)
        start_s = time.perf_counter()
        await api.engine.commit(happened(1))
        assert await asyncio.gather(*(take(stream, 1) for stream in streams)) == [[1]] * 300
        assert time.perf_counter() - start_s < 2
        assert reads <= 3
        for stream in streams:
            stream.close()


async def test_host_request_waits_for_a_change(api: Running) -> None:
    async with api.tcp.get("/v1/host") as response:
        sequence = (await response.json())["sequence"]
    waiting = asyncio.create_task(api.tcp.get("/v1/host", params={"after": sequence, "wait_s": 60}))
    async with api.unix.get("/livez"):
        pass
    assert not waiting.done()
    await api.engine.commit(happened(1))
    async with asyncio.timeout(5), await waiting as response:
        assert (await response.json())["sequence"] == sequence + 1


async def test_host_wait_ends_with_304_without_a_change(api: Running) -> None:
    async with api.tcp.get("/v1/host") as response:
        sequence, etag = (await response.json())["sequence"], response.headers["ETag"]
    params = {"after": sequence, "wait_s": "0.05"}
    async with asyncio.timeout(5), api.tcp.get("/v1/host", params=params, headers={"If-None-Match": etag}) as response:
        assert response.status == 304
