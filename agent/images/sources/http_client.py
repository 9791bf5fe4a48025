"""Single HTTP requests to registries, their storage and their token servers, over shared connections.

All requests are made here, so that the rules about proxies, compressed answers and addresses of this host hold for each
of them. Redirects are left to the caller.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import aiohttp

from agent.images.errors import ImageError, RegistryError, TransferError
from agent.images.sources.addresses import ForbiddenAddressError, Zone, socket_factory, zone_of
from agent.images.sources.proxies import proxy_for

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Mapping

    from yarl import URL

    from agent.images.sources.proxies import Proxy

_PROXY_LOGIN: Final = 407
_PROXY_S: Final = 60.0
"""How long a proxy is used before the settings are read again."""
_MAX_PROXIES: Final = 1000
_RECEIVE_BYTES: Final = 512 << 10
REFUSED_REMEDY: Final = 'set local_redirects = true under [images.registries."{host}"] if the registry may do this'


class HttpClient:
    """Sends requests. `close` closes all connections."""

    def __init__(self) -> None:
        self._sessions: dict[frozenset[Zone] | None, aiohttp.ClientSession] = {}
        self._proxies: dict[URL, tuple[Proxy | None, float]] = {}

    async def request(
        self,
        method: str,
        url: URL,
        *,
        zones: frozenset[Zone] | None,
        headers: Mapping[str, str],
        data: AsyncIterator[bytes] | Mapping[str, str] | None = None,
        timeout: aiohttp.ClientTimeout | None = None,
        trust: ssl.SSLContext | bool = True,
    ) -> aiohttp.ClientResponse:
        """Return the response to one request; its body is not read.

        `zones` are the zones that the address may be in; None allows all, for an address that was configured. Raises
        aiohttp's errors, `OSError`, and `RegistryError` for a forbidden address or a proxy that cannot be used.
        """
        proxy = await self._find_proxy(url)
        zone = zone_of(url.host or "")
        if zones is not None and zone is not None and zone not in zones:
            raise ForbiddenAddressError(f"{url.host} is a {zone} address")
        # With a proxy, the connection is made to the proxy, which was configured.
        session = self._session(zones if proxy is None else None)
        return await session.request(
            method,
            url,
            headers=headers,
            data=data,
            allow_redirects=False,
            timeout=timeout,
            ssl=trust,
            proxy=proxy.url if proxy else None,
        )

    def proxy(self, url: URL) -> Proxy | None:
        """Return the proxy through which the last request to the origin of a URL was sent."""
        found = self._proxies.get(url.origin())
        return found[0] if found else None

    async def close(self) -> None:
        """Close all connections."""
        for session in self._sessions.values():
            await session.close()

    async def _find_proxy(self, url: URL) -> Proxy | None:
        """Return the proxy for a URL, in a thread: a Mac's settings can need the address of its host."""
        origin, now_s = url.origin(), time.monotonic()
        if origin not in self._proxies or self._proxies[origin][1] <= now_s:
            if len(self._proxies) >= _MAX_PROXIES:  # a server can redirect to ever new hosts
                self._proxies.clear()
            self._proxies[origin] = await asyncio.to_thread(proxy_for, url), now_s + _PROXY_S
        return self._proxies[origin][0]

    def _session(self, zones: frozenset[Zone] | None) -> aiohttp.ClientSession:
        """Return the session for a set of allowed zones. Each has its own connections, so none is reused by another."""
        if zones not in self._sessions:
            factory = None if zones is None else socket_factory(zones)
            self._sessions[zones] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, socket_factory=factory),
                cookie_jar=aiohttp.DummyCookieJar(),
                read_bufsize=_RECEIVE_BYTES,
                # Some servers compress nevertheless; aiohttp decodes their answers.
                headers={"User-Agent": "hearth", "Accept-Encoding": "identity"},
            )
        return self._sessions[zones]


def is_forbidden(error: BaseException) -> bool:
    """Return whether a request failed because of the zone of its address."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return isinstance(error.os_error, ForbiddenAddressError)
    return isinstance(error, ForbiddenAddressError)


def forbidden_error(host: str, url: URL, error: BaseException) -> RegistryError:
    """Return the error for a registry that sent the agent to a service of this host."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    return RegistryError(
        f"the registry {host} sends requests to {url.host}, which is refused: {cause}",
        remedy=REFUSED_REMEDY.format(host=host),
    )


def login_error(proxy: Proxy | None, status: int) -> RegistryError | None:
    """Return the error for a status with which a proxy requires a login; None for another status."""
    if proxy is None or status != _PROXY_LOGIN:
        return None
    return RegistryError(f"the proxy {proxy} requires a login", remedy=f"add it to {proxy.variable}")


def failure_reason(error: BaseException, *, quote: bool = True) -> str:
    """Return the cause of a failed request. Without `quote`, nothing that the server sent is part of it."""
    if isinstance(error, TimeoutError):
        return "no response in time"
    if not quote and isinstance(error, aiohttp.ClientResponseError | aiohttp.ClientPayloadError):
        return type(error).__name__
    if isinstance(error, aiohttp.ClientResponseError):
        return f"{error.status} {error.message}"  # its text has the URL, which can hold the password of a proxy
    return str(error) or type(error).__name__


async def read_body(
    response: aiohttp.ClientResponse, limit: int, what: str, *, error: type[ImageError] = RegistryError
) -> bytes:
    """Return a body of at most `limit` bytes, decoded. Raises `error` for a larger one."""
    body = bytearray()
    async for data in response.content.iter_any():
        body += data
        if len(body) > limit:
            raise error(f"{response.url.host} sent {what} larger than {limit} bytes")
    return bytes(body)


async def read_excerpt(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Return the start of a body within five seconds; empty if it cannot be read."""
    try:
        async with asyncio.timeout(5):
            return await response.content.read(limit)
    except (aiohttp.ClientError, TimeoutError, OSError, TransferError):
        return b""
