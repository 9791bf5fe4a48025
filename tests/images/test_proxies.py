"""Proxies of the environment, as people write them, and the errors that name them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from yarl import URL

from agent.config import RegistryConfig
from agent.images.errors import RegistryError
from agent.images.reference import parse_reference
from agent.images.repositories import Repositories
from agent.images.sources.proxies import proxy_for
from tests.support.registry import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REGISTRY = URL("https://registry.example:5000/v2/")


def chosen(environment: dict[str, str], url: URL = REGISTRY) -> str | None:
    proxy = proxy_for(url, environment)
    return None if proxy is None else str(proxy)


@pytest.mark.parametrize(
    ("environment", "proxy"),
    [
        ({}, None),
        ({"https_proxy": ""}, None),
        ({"https_proxy": "proxy:3128"}, "http://proxy:3128 of https_proxy"),
        ({"https_proxy": "10.0.0.1:3128"}, "http://10.0.0.1:3128 of https_proxy"),
        ({"HTTPS_PROXY": "http://proxy:3128/"}, "http://proxy:3128 of HTTPS_PROXY"),
        ({"https_proxy": "a:1", "HTTPS_PROXY": "b:1"}, "http://a:1 of https_proxy"),
        ({"all_proxy": "proxy.lan"}, "http://proxy.lan of all_proxy"),
        ({"http_proxy": "proxy:3128"}, None),
        ({"https_proxy": "https://user:se%40cret@proxy:3128"}, "https://proxy:3128 of https_proxy"),
        ({"https_proxy": "user:secret@proxy:3128"}, "http://proxy:3128 of https_proxy"),
    ],
)
def test_proxy_is_found_as_it_is_written(environment: dict[str, str], proxy: str | None) -> None:
    assert chosen(environment) == proxy


@pytest.mark.parametrize(
    ("no_proxy", "url", "is_direct"),
    [
        ("*", "https://registry.example/", True),
        ("registry.example", "https://registry.example:5000/", True),
        (".example", "https://registry.example/", True),
        ("*.example", "https://registry.example/", True),
        ("example", "https://registry.example/", True),
        ("REGISTRY.example", "https://registry.EXAMPLE/", True),
        ("istry.example", "https://registry.example/", False),
        ("registry.example:5000", "https://registry.example:5000/", True),
        ("registry.example:5000", "https://registry.example/", False),
        ("registry.example:443", "https://registry.example/", True),
        ("10.0.0.0/8", "https://10.1.2.3:5000/", True),
        ("10.0.0.0/8", "https://11.1.2.3/", False),
        ("10.1.2.3", "https://10.1.2.3/", True),
        ("10.1.2.3:5000", "https://10.1.2.3/", False),
        ("fd00::/8", "https://[fd00::1]:5000/", True),
        ("[fd00::1]:5000", "https://[fd00::1]:5000/", True),
        ("fd00::1", "https://[fd00::1]/", True),
        ("a.example, registry.example", "https://registry.example/", True),
        ("a.example registry.example", "https://registry.example/", True),
        ("", "https://registry.example/", False),
        ("garbage/99 ::: /8", "https://registry.example/", False),
    ],
)
def test_exceptions_hold_names_addresses_ranges_and_ports(no_proxy: str, url: str, is_direct: bool) -> None:
    assert (chosen({"https_proxy": "proxy:1", "no_proxy": no_proxy}, URL(url)) is None) == is_direct


@pytest.mark.parametrize("url", ["https://localhost:5000/", "https://127.0.0.1/", "https://[::1]/"])
def test_loopback_is_never_reached_through_a_proxy(url: str) -> None:
    assert chosen({"https_proxy": "proxy:1", "no_proxy": "other"}, URL(url)) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("socks5://user:secret@proxy:1080", "the SOCKS proxy proxy:1080"),
        ("socks4a://proxy:1080", "SOCKS proxies are not supported"),
        ("ftp://proxy", "scheme"),
        ("http://proxy:99999", "invalid proxy"),
        ("proxy:port", "invalid proxy"),
        ("http://", "invalid proxy"),
    ],
)
def test_unusable_proxy_is_refused_by_name_without_its_password(text: str, says: str) -> None:
    with pytest.raises(RegistryError, match="https_proxy") as raised:
        chosen({"https_proxy": text})
    assert says in raised.value.message
    assert "secret" not in str(raised.value)
    assert raised.value.remedy


@asynccontextmanager
async def run_proxy(status: int = 200) -> AsyncIterator[tuple[str, list[str]]]:
    """Run a proxy that answers each request itself. Yield its address and the requested URLs."""
    seen: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(str(request.url))
        return web.Response(status=status, body=b"{}")

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}", seen
    finally:
        await runner.cleanup()


async def read_through(proxy: str, monkeypatch: pytest.MonkeyPatch) -> bytes:
    for variable in ("HTTP_PROXY", "NO_PROXY", "no_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("http_proxy", proxy)
    repositories = Repositories({"registry.example": RegistryConfig(insecure=True)}, credential_files=())
    try:
        return await repositories.open(parse_reference("registry.example/tests/image:v1")).manifest("v1")
    finally:
        await repositories.close()


async def test_proxy_without_a_scheme_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with run_proxy() as (address, seen):
        assert await read_through(address, monkeypatch) == b"{}"
        assert seen == ["http://registry.example/v2/tests/image/manifests/v1"]


@pytest.mark.parametrize(("status", "says"), [(407, "requires a login"), (503, "replied 503"), (403, r"\(403 ")])
async def test_error_answered_by_a_proxy_names_it(status: int, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with run_proxy(status) as (address, _):
        with pytest.raises(RegistryError, match=says) as raised:
            await read_through(address, monkeypatch)
        assert f"http://{address} of http_proxy" in raised.value.message


async def test_unreachable_proxy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(RegistryError, match=f"through the proxy http://{address} of http_proxy"):
        await read_through(f"user:secret@{address}", monkeypatch)


@pytest.mark.parametrize(("status", "says"), [(407, "requires a login"), (502, "502 Refused")])
async def test_refused_tunnel_names_the_proxy_without_its_password(
    status: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status} Refused\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        monkeypatch.setenv("https_proxy", f"http://user:hush@{address}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        repositories = Repositories({}, credential_files=())
        with pytest.raises(RegistryError, match=says) as raised:
            await repositories.open(parse_reference("registry.example/tests/image:v1")).manifest("v1")
        await repositories.close()
        assert f"http://{address} of https_proxy" in raised.value.message
        assert "hush" not in str(raised.value)
