"""The prebuilt response of the host document equals the response of its handler, header by header."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.api.conftest import Running

Answer = tuple[str, dict[str, str], bytes]

VOLATILE = {"date", "x-request-id", "connection"}
"""Headers that differ between equal responses."""


async def raw(api: Running, *requests: str) -> list[Answer]:
    """Send requests in one write and return each response: status line, headers by lower-case name, body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", api.server.port)
    try:
        async with asyncio.timeout(10):
            writer.write("".join(f"{request}\r\n" for request in requests).encode())
            return [await _answer(reader) for _ in requests]
    finally:
        writer.transport.abort()


async def _answer(reader: asyncio.StreamReader) -> Answer:
    status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    assert len(headers) == len(lines), "a header comes twice"
    body = await reader.readexactly(0 if " 304 " in status else int(headers["content-length"]))
    return status, headers, body


def get(*headers: str, version: str = "1.1") -> str:
    """Return a request for the host document."""
    return "".join(f"{line}\r\n" for line in (f"GET /v1/host HTTP/{version}", "Host: localhost", *headers))


def stable_parts(answer: Answer) -> Answer:
    """Return the parts that two responses to one request must have in common."""
    status, headers, body = answer
    return status, {name: value for name, value in headers.items() if name not in VOLATILE}, body


@pytest.mark.parametrize(
    ("prebuilt", "handled"),
    [
        ([], ["Connection: close"]),
        (['If-None-Match: "another"'], ['If-None-Match: "another", "or-two"']),
        (["If-None-Match: {etag}"], ["If-None-Match: {etag}", "Connection: close"]),
        (["If-None-Match: {etag}"], ['If-None-Match: "another", {etag}']),
    ],
)
async def test_prebuilt_response_equals_the_handlers(api: Running, prebuilt: list[str], handled: list[str]) -> None:
    [(_, headers, _)] = await raw(api, get())
    [short] = await raw(api, get(*(line.format(etag=headers["etag"]) for line in prebuilt)))
    [long] = await raw(api, get(*(line.format(etag=headers["etag"]) for line in handled)))
    assert stable_parts(short) == stable_parts(long)
    assert {"date", "x-request-id"} <= set(short[1])


async def test_pipelined_requests_are_answered_in_order(api: Running) -> None:
    answers = await raw(api, *(get(f"X-Request-ID: number-{count}") for count in range(5)))
    assert [headers["x-request-id"] for _, headers, _ in answers] == [f"number-{count}" for count in range(5)]
    assert {json.loads(body)["host"] is not None for _, _, body in answers} == {True}


async def test_client_that_does_not_read_is_paused(api: Running) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", api.server.port, limit=1024)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    try:
        with pytest.raises(TimeoutError):
            for _ in range(200):  # the responses have some 800 MB
                writer.write(f"{get()}\r\n".encode() * 1000)
                async with asyncio.timeout(2):
                    await writer.drain()
    finally:
        writer.transport.abort()


async def test_http_1_0_connection_closes_after_its_response(api: Running) -> None:
    [(status, headers, _)] = await raw(api, get(version="1.0"))
    assert status == "HTTP/1.0 200 OK"
    assert headers.get("connection", "close") == "close"


async def test_scrape_counts_prebuilt_responses(api: Running) -> None:
    for _ in range(3):
        await raw(api, *([get()] * 200))
    async with api.tcp.get("/metrics") as response:
        text = await response.text()
    [line] = [
        line
        for line in text.splitlines()
        if line.startswith("hearth_api_request_duration_seconds_count") and '"/v1/host"' in line
    ]
    assert line.endswith(" 600.0")
    assert 'status="200"' in line
