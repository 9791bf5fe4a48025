"""Clients that are broken, slow or many: they get problems or no response, and other clients are served."""

from __future__ import annotations

import asyncio
import json
import random
import select
import socket
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from agent.api.authorization import caller_of
from agent.api.connection import Connection, connection_limit, connections
from agent.api.rate_limit import Rate, RateLimiter
from tests.api.conftest import Running, run
from tests.api.real_engine import RealEngine, vm

if TYPE_CHECKING:
    from pathlib import Path

NOISE = [
    b"BREW /pot HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nHost localhost\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"POST /v1/leases HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 500 + b"\r\n",
]


async def exchange(port: int, request: bytes) -> bytes:
    """Send raw bytes and return the bytes that the server sends until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        await writer.drain()
        async with asyncio.timeout(10):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("request_bytes", NOISE, ids=lambda noise: noise[:24].decode("latin-1"))
async def test_invalid_http_gets_a_problem_and_is_disconnected(api: Running, request_bytes: bytes) -> None:
    answer = await exchange(api.server.port, request_bytes)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.")
    assert b" 400 " in head.splitlines()[0]
    assert b"application/problem+json" in head
    assert b"Server: hearth" in head
    problem = json.loads(body)
    assert (problem["status"], problem["code"]) == (400, "bad-request")
    assert problem["request_id"].encode() in head


async def test_unfinished_request_head_is_disconnected(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.api.connection.IDLE_S", 0.05)
    assert await exchange(api.server.port, b"GET /livez HTTP/1.1\r\nHost: loc") == b""


async def test_new_connection_replaces_the_oldest_without_a_token(
    api: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Unix socket has a limit of its own."""
    monkeypatch.setattr("agent.api.connection.MAX_CONNECTIONS", 3)
    ask = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    opened = [await asyncio.open_connection("127.0.0.1", api.server.port) for _ in range(3)]
    with capture_logs() as logged:
        assert b" 200 " in await exchange(api.server.port, ask)
    assert [line["event"] for line in logged].count("api-connection-refused") == 1
    async with asyncio.timeout(5):
        assert await opened[0][0].read() == b"", "the oldest is closed"
    async with api.unix.get("/livez") as response:
        assert response.status == 200
    for _, writer in opened:
        writer.close()


class FakeTransport(asyncio.Transport):
    """A TCP connection that records its end."""

    is_aborted = False

    def get_extra_info(self, name: str, default: object = None) -> object:
        return ("192.0.2.1", 1) if name == "peername" else default

    def abort(self) -> None:
        self.is_aborted = True

    def close(self) -> None:
        self.is_aborted = True

    def is_closing(self) -> bool:
        return self.is_aborted


async def test_strangers_do_not_take_the_places_of_token_holders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.api.connection.MAX_CONNECTIONS", 4)

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        raise NotImplementedError

    connect = connections(web.Server(answer))

    def open_connection() -> tuple[Connection, FakeTransport]:
        connection, transport = connect(), FakeTransport()
        connection.connection_made(transport)
        return connection, transport

    holders = [open_connection() for _ in range(3)]
    for holder, _ in holders:
        holder.keep()
    with capture_logs() as logged:
        strangers = [open_connection()[1] for _ in range(500)]
    assert [transport.is_aborted for _, transport in holders] == [False] * 3
    assert [transport.is_aborted for transport in strangers] == [True] * 499 + [False]
    assert len(logged) == 1, "one line per outage"


@pytest.mark.parametrize(("files", "limit"), [(256, 32), (128, 8), (1024, 224), (65536, 2048), (-1, 2048)])
def test_connection_limit_follows_the_limit_of_open_files(
    files: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.api.connection.resource.getrlimit", lambda _: (files, files))
    assert connection_limit() == limit


async def test_invalid_and_slow_clients_do_not_block_others(api: Running) -> None:
    """`scripts/bench/api` measures how long other clients wait."""
    half = (
        b"POST /v1/leases HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
    )
    slow = [await asyncio.open_connection("127.0.0.1", api.server.port) for _ in range(200)]
    for _, writer in slow:
        writer.write(half)

    async def noise(count: int) -> list[bytes]:
        return [await exchange(api.server.port, NOISE[number % len(NOISE)]) for number in range(count)]

    noises = [asyncio.create_task(noise(250)) for _ in range(4)]
    rounds = 0
    while not all(task.done() for task in noises):
        for session in (api.unix, api.tcp):
            async with session.get("/livez") as response:
                assert response.status == 200
        rounds += 1
    assert rounds > 10
    for task in noises:
        assert all(b" 500 " not in answer.split(b"\r\n")[0] for answer in task.result())
    for _, writer in slow:
        writer.transport.abort()


ODD_VALUES = [
    b"\xff",
    b"Bearer \xff\xfe",
    b"\xed\xa0\x80",
    b"\xc3\xa4",
    b"Bearer " + b"a" * 7000,
    b"[::1",
    b"%00",
    b"a@b:c",
    b"W/",
]
HEADERS = ["Authorization", "Host", "Origin", "If-None-Match", "If-Match", "Last-Event-ID", "X-Request-ID", "Accept",
           "Content-Type", "Accept-Encoding", "Cookie", "X-Forwarded-For", "Range"]  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
async def test_odd_header_values_cause_no_internal_error(api: Running, name: str) -> None:
    with capture_logs() as logged:
        for value in ODD_VALUES:
            for target in (b"GET /v1/host", b"PUT /v1/assignment", b"GET /v1/events?limit=1"):
                head = b"" if name == "Host" else b"Host: localhost\r\n"
                request = b"%b HTTP/1.1\r\n%b%b: %b\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}" % (
                    target, head, name.encode(), value,
                )  # fmt: skip
                answer = await exchange(api.server.port, request)
                status = int(answer.split(b" ", 2)[1])
                assert status < 500, (value, target, answer[:200])
    assert [line for line in logged if line["log_level"] == "error"] == []


@pytest.mark.parametrize(
    "authorization", [b"Authorization:\r\n", b"Authorization: \r\n", b"Authorization: \r\nAuthorization: Bearer x\r\n"]
)
async def test_empty_token_does_not_pass_the_host_check(api: Running, authorization: bytes) -> None:
    """A page that points its name at 127.0.0.1 can send this header; with api.auth = "open" it would be admin."""
    body = b'{"pools": {}}'
    request = (
        b"PUT /v1/assignment HTTP/1.1\r\nHost: evil.example\r\n%bContent-Type: application/json\r\nIf-Match: *\r\n"
        b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (authorization, len(body), body)
    )
    assert (await exchange(api.server.port, request)).split(b" ", 2)[1] == b"421"


async def test_refused_hosts_are_rate_limited(tmp_path: Path) -> None:
    limiter = RateLimiter(Rate(1e-6, 3))
    async with run(RealEngine(), tmp_path, limiter=limiter) as api:
        request = b"GET /v1/host HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
        answers = [(await exchange(api.server.port, request)).split(b" ", 2)[1] for _ in range(5)]
    assert answers == [b"421"] * 3 + [b"429"] * 2


@pytest.mark.parametrize(
    ("peers", "count"),
    [
        (("127.0.0.1", "127.9.8.7", "::1", "::ffff:127.0.0.1"), 1),
        (("10.0.0.1", "10.0.0.2"), 2),
        (("2001:db8::1", "2001:db8::2", "fe80::1%eth0"), 2),
        (("10.0.0.1", "::ffff:10.0.0.1"), 1),
    ],
)
def test_loopback_addresses_are_one_caller(peers: tuple[str, ...], count: int) -> None:
    assert len({caller_of(peer) for peer in peers}) == count


async def test_clients_that_hang_up_leave_no_lease(tmp_path: Path) -> None:
    """At random moments within 12 ms. Either the client has received its lease, or there is none."""
    engine = RealEngine(*(vm(f"hearth-small-{number}") for number in range(60)))
    body = b'{"pool": "small", "holder": "job"}'
    request = (
        b"POST /v1/leases HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        % (len(body), body)
    )
    delays = random.Random(1)
    async with run(engine, tmp_path) as api:
        for _ in range(60):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(api.socket))
                client.sendall(request)
                await asyncio.sleep(delays.uniform(0, 0.012))
                # The server runs in this event loop: it sends nothing between this check and the end of the connection.
                answer = client.recv(1 << 16) if select.select([client], [], [], 0)[0] else b""
            if b" 201 " in answer[:20]:
                lease = json.loads(answer.partition(b"\r\n\r\n")[2])
                async with api.unix.delete(f"/v1/leases/{lease['id']}") as response:
                    assert response.status == 204
        async with asyncio.timeout(10):
            while engine.leases:  # noqa: ASYNC110 - the end of an abandoned request has no event
                await asyncio.sleep(0.005)
