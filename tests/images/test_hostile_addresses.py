"""Addresses and values of hostile servers: each ends in one named error, or in bounds, and never inside this host."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from agent.config import RegistryConfig
from agent.images.errors import RegistryError
from agent.images.reference import parse_reference
from agent.images.repositories import Repositories
from agent.images.sources import registry_http
from agent.images.sources.addresses import BadAddressError, Zone, parse_address, zone_of
from tests.images.faulty_registry import FaultyRegistry, run_faulty

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SECRET = "the secret of a local service"
BASE = URL("https://registry.example/v2/a/blobs/uploads/")
BAD_LOCATIONS = [
    "",
    "http://host.example:99999/",
    "http://host.example:0/",
    "http://host.example:-1/",
    f"http://{'a' * 64}.example/",
    "http://a..example/",
    "http://.example/",
    "http://a\udcff.example/",
    "http://ä.example/",
    "http://[::1/",
    "http://[::g]/",
    "http://127.1/",
    "http://2130706433/",
    "http:///path",
    "http://user:password@host.example/",
    "file:///etc/passwd",
    "ftp://host.example/",
    "javascript:alert(1)",
    "http://host.example/a b",
    "http://host.example/\x1b[2J",
    "/" * 9000,
]


@pytest.mark.parametrize("text", BAD_LOCATIONS)
def test_bad_address_is_refused_with_a_reason(text: str) -> None:
    with pytest.raises(BadAddressError, match=r"\w"):
        parse_address(text, BASE)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("/upload?x=%2F&y=a%20b", "https://registry.example/upload?x=%2F&y=a%20b"),
        ("next", "https://registry.example/v2/a/blobs/uploads/next"),
        ("//storage.example/x", "https://storage.example/x"),
        ("https://[fd00::1]:5000/x", "https://[fd00::1]:5000/x"),
        ("https://my_bucket.s3.example./x", "https://my_bucket.s3.example./x"),
    ],
)
def test_good_address_is_kept_as_it_is(text: str, url: str) -> None:
    assert str(parse_address(text, BASE)) == url


@given(st.text(max_size=200))
def test_any_address_is_parsed_or_refused(text: str) -> None:
    try:
        url = parse_address(text, BASE)
    except BadAddressError:
        return
    assert url.scheme in ("http", "https")
    assert 1 <= (url.port or 0) <= 65535
    assert url.host


@pytest.mark.parametrize(
    ("address", "zone"),
    [
        ("127.0.0.1", Zone.LOOPBACK),
        ("127.9.9.9", Zone.LOOPBACK),
        ("::1", Zone.LOOPBACK),
        ("0.0.0.0", Zone.LOOPBACK),
        ("::", Zone.LOOPBACK),
        ("::ffff:127.0.0.1", Zone.LOOPBACK),
        ("LocalHost.", Zone.LOOPBACK),
        ("169.254.1.1", Zone.LINK_LOCAL),
        ("fe80::1%eth0", Zone.LINK_LOCAL),
        ("169.254.169.254", Zone.METADATA),
        ("::ffff:169.254.169.254", Zone.METADATA),
        ("fd00:ec2::254", Zone.METADATA),
        ("100.100.100.200", Zone.METADATA),
        ("192.168.1.1", None),
        ("10.0.0.1", None),
        ("fd00::1", None),
        ("8.8.8.8", None),
        ("registry.example", None),
    ],
)
def test_zone_of_an_address(address: str, zone: Zone | None) -> None:
    assert zone_of(address) is zone


async def _read_manifest(registry: FaultyRegistry, *, host: str = "", local_redirects: bool = False) -> bytes:
    host = host or registry.host
    settings = RegistryConfig(insecure=True, local_redirects=local_redirects)
    repositories = Repositories({host: settings}, credential_files=())
    try:
        return await repositories.open(parse_reference(f"{host}/tests/image:v1")).manifest("v1")
    finally:
        await repositories.close()


def redirect_to(target: str, *, status: int = 307) -> object:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        del request, handler
        return web.Response(status=status, headers={"Location": target})

    return middleware


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every registry look as if its address were not on this host."""

    async def zones(_host: str) -> frozenset[Zone]:
        return frozenset()

    monkeypatch.setattr(registry_http, "zones_of_host", zones)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resolve `inside.example` to loopback."""
    resolve = socket.getaddrinfo

    def fake(host: object, *arguments: object, **options: object) -> object:
        return resolve("127.0.0.1" if host == "inside.example" else host, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", fake)


@pytest.mark.usefixtures("elsewhere", "names")
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "inside.example", "0x7f000001"])
async def test_redirect_into_this_host_is_refused_without_a_request(name: str) -> None:
    service = FaultyRegistry()
    async with run_faulty(service):
        port = service.host.rpartition(":")[2]
        target = f"http://{name}:{port}/v2/tests/image/blobs/x"
        registry = FaultyRegistry()
        async with run_faulty(registry, redirect_to(target)):
            with pytest.raises(RegistryError, match="loopback address") as raised:
                await _read_manifest(registry)
        assert service.seen == []
        assert "local_redirects" in raised.value.remedy


@pytest.mark.parametrize("address", ["169.254.169.254", "169.254.7.7"])
async def test_registry_on_loopback_cannot_redirect_to_other_zones(address: str) -> None:
    registry = FaultyRegistry()
    async with run_faulty(registry, redirect_to(f"http://{address}/latest/meta-data/")):
        with pytest.raises(RegistryError, match="which is refused"):
            await _read_manifest(registry)


async def test_registry_on_loopback_may_redirect_to_loopback() -> None:
    service, registry = FaultyRegistry(manifests={"v1": b"{}"}), FaultyRegistry()
    async with run_faulty(service):
        target = f"http://{service.host}/v2/tests/image/manifests/v1"
        async with run_faulty(registry, redirect_to(target)):
            assert await _read_manifest(registry) == b"{}"


@pytest.mark.usefixtures("elsewhere")
async def test_configuration_allows_redirects_into_this_host() -> None:
    service, registry = FaultyRegistry(manifests={"v1": b"{}"}), FaultyRegistry()
    async with run_faulty(service):
        target = f"http://{service.host}/v2/tests/image/manifests/v1"
        async with run_faulty(registry, redirect_to(target)):
            assert await _read_manifest(registry, local_redirects=True) == b"{}"


@pytest.mark.usefixtures("elsewhere")
async def test_token_server_on_this_host_is_refused() -> None:
    service, registry = FaultyRegistry(), FaultyRegistry()

    @web.middleware
    async def challenge(request: web.Request, handler: Handler) -> web.StreamResponse:
        del request, handler
        return web.Response(status=401, headers={"WWW-Authenticate": f'Bearer realm="http://{service.host}/token"'})

    async with run_faulty(service), run_faulty(registry, challenge):
        with pytest.raises(RegistryError, match="loopback address"):
            await _read_manifest(registry)
        assert service.seen == []


async def test_body_of_another_server_is_not_quoted() -> None:
    registry = FaultyRegistry()

    @web.middleware
    async def reveal(request: web.Request, handler: Handler) -> web.StreamResponse:
        del request, handler
        return web.Response(status=500, text=SECRET)

    async with (
        run_faulty(FaultyRegistry(), reveal) as service,
        run_faulty(registry, redirect_to(f"http://{service.host}/")),
    ):
        with pytest.raises(RegistryError, match="replied 500") as raised:
            await _read_manifest(registry)
    assert SECRET not in str(raised.value)


async def test_banner_of_another_protocol_is_not_quoted() -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"SSH-2.0-{SECRET}\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        registry = FaultyRegistry()
        async with run_faulty(registry, redirect_to(f"http://127.0.0.1:{port}/")):
            with pytest.raises(RegistryError, match="failed") as raised:
                await _read_manifest(registry)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("location", [text for text in BAD_LOCATIONS if text.isprintable() and "ä" not in text])
async def test_bad_location_is_a_named_error(location: str) -> None:
    registry = FaultyRegistry()
    async with run_faulty(registry, redirect_to(location)):
        with pytest.raises(RegistryError, match=registry.host):
            await _read_manifest(registry)


async def raw_answer(answer: bytes) -> RegistryError:
    """Return the error for a registry that sends these bytes to every request."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        port = writer.get_extra_info("sockname")[1]
        writer.write(answer.replace(b"PORT", str(port).encode()))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        registry = FaultyRegistry(host=f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(RegistryError) as raised:
            await _read_manifest(registry)
        return raised.value


@pytest.mark.parametrize(
    "head",
    [
        b"307 x\r\nLocation: http://\xff\xfe.example/",
        b"307 x\r\nLocation: \xff",
        b"429 x\r\nRetry-After: Mon, 01 Jan 2024 00:00:00 +99999999999999999999",
        b"429 x\r\nRetry-After: \xff\xff",
        b'401 x\r\nWWW-Authenticate: Bearer realm="http://127.0.0.1:PORT/token",service="\xff\xfe",scope="\xff"',
        b'401 x\r\nWWW-Authenticate: Bearer realm="http://\xff/"',
        b'401 x\r\nWWW-Authenticate: Bearer realm="http://127.0.0.1:99999/"',
        b"401 x\r\nWWW-Authenticate: " + b"\xff" * 5000,
        b"500 \xff\xfe\r\nX: y",
        b"200 x\r\nContent-Encoding: gzip",
    ],
)
async def test_bytes_outside_ascii_end_in_a_named_error(head: bytes) -> None:
    error = await raw_answer(b"HTTP/1.1 " + head + b"\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody")
    assert "127.0.0.1" in error.message


@pytest.mark.parametrize(
    ("reply", "works"),
    [
        ("[" * 100_000, False),
        ('{"token":' + "[" * 100_000, False),
        ('{"token": "t", "expires_in": ' + "9" * 400 + "}", True),
        ('{"token": "t", "expires_in": ' + "9" * 5000 + "}", False),
        ('{"token": "t", "expires_in": NaN}', True),
        ('{"token": "t", "expires_in": Infinity}', True),
        ('{"token": "t", "expires_in": -5}', True),
        ('{"token": "t", "expires_in": "300"}', True),
        ('{"token": "a\\r\\nX: y"}', False),
        ('{"token": "\\u00e4"}', False),
        ('{"token": "\\ud800"}', False),
        (json.dumps({"token": "t" * 100_000}), False),
        ('{"token": 3}', False),
        ('{"token": ""}', False),
        ("x" * (2 << 20), False),
    ],
)
async def test_reply_of_a_token_server_is_parsed_into_bounds(reply: str, works: bool) -> None:
    registry = FaultyRegistry(manifests={"v1": b"{}"})

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path == "/token":
            return web.Response(text=reply)
        if "Authorization" in request.headers:
            return await handler(request)
        realm = f"http://{request.host}/token"
        return web.Response(status=401, headers={"WWW-Authenticate": f'Bearer realm="{realm}"'})

    async with run_faulty(registry, guard):
        if works:
            assert await _read_manifest(registry) == b"{}"
        else:
            with pytest.raises(RegistryError, match="token"):
                await _read_manifest(registry)
