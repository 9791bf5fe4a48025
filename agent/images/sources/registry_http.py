"""HTTP client of one registry: logins, redirects and errors, with a limit on every wait.

Every address that a server gives, by a redirect or as the location of an upload, passes `RegistryHttp.follow`: it must
not end encryption and not lead to services of this host. Credentials are sent only to the registry's own origin.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import aiohttp
from yarl import URL

from agent.images.errors import ImageNotFoundError, RegistryError, TransferError
from agent.images.sources.addresses import BadAddressError, parse_address, zones_of_host
from agent.images.sources.http_client import failure_reason, forbidden_error, is_forbidden, login_error, read_excerpt
from agent.images.sources.http_headers import parse_challenges, retry_after_s

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from agent.images.sources.addresses import Zone
    from agent.images.sources.auth import Authorizer
    from agent.images.sources.http_client import HttpClient
    from agent.images.transfer_limits import BandwidthLimiter

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS: Final = 5
_MAX_LOGINS: Final = 2
_TEMPORARY: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_OVERLOADED: Final = frozenset({429, 503})
_EXCERPT_BYTES: Final = 2000
UNRANGED_S: Final = 60.0
"""How long only whole blobs are requested from a registry that ignored a range."""
_ZONES_S: Final = 60.0
"""How long the resolved addresses of the registry are used."""


@dataclass(frozen=True, slots=True)
class RegistryTimeouts:
    """Timeouts of one attempt of a request to a registry. `RetryPolicy` limits the number of attempts."""

    connect_s: float = 10.0
    stall_s: float = 15.0
    """A transfer ends if no byte arrives for this time."""
    slow_window_s: float = 20.0
    slow_bytes_per_s: float = 16384.0
    """A transfer also ends if its rate over a whole window is lower than this."""
    answer_s: float = 60.0
    """For a request with a small response. For an upload, added to the time for its bytes."""

    def timeout(self) -> aiohttp.ClientTimeout:
        """Return the timeouts of one request for aiohttp."""
        return aiohttp.ClientTimeout(total=None, sock_connect=self.connect_s, sock_read=self.stall_s)


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `path` is below `/v2/`, or a URL that `RegistryHttp.follow` returned. `body` makes a new body for
    each attempt.
    """

    method: str
    path: str | URL
    scope: str
    accept: frozenset[int]
    headers: Mapping[str, str]
    body: Callable[[], AsyncIterator[bytes]] | None = None
    limit_s: float | None = None  # for the whole exchange with its body; None: only the transfer rate is checked


class RegistryAddress:
    """The origin of a registry, and the zones of this host that its servers may name."""

    def __init__(self, host: str, origin: URL, *, local_redirects: bool) -> None:
        self.host = host
        self.origin = origin
        self._local_redirects = local_redirects
        self._zones: frozenset[Zone] = frozenset()
        self._zones_until_s = 0.0

    async def zones(self, url: URL) -> frozenset[Zone] | None:
        """Return the zones that `url`, given by a server, may be in; None for all.

        A registry on this host may name other services of this host.
        """
        if self._local_redirects or url.origin() == self.origin:
            return None
        if time.monotonic() >= self._zones_until_s:
            self._zones = await zones_of_host(self.origin.host or "")
            self._zones_until_s = time.monotonic() + _ZONES_S
        return self._zones


@dataclass(slots=True)
class _Exchange:
    """The URL of the current request, for messages."""

    url: URL


class RegistryHttp:
    """Sends requests to one registry."""

    def __init__(
        self,
        client: HttpClient,
        address: RegistryAddress,
        authorizer: Authorizer,
        *,
        timeouts: RegistryTimeouts,
        bandwidth: BandwidthLimiter,
        trust: ssl.SSLContext | bool = True,
    ) -> None:
        self.host = address.host
        self.timeouts = timeouts
        self.bandwidth = bandwidth
        self._client = client
        self._address = address
        self._trust = trust
        self._unranged_until_s = 0.0
        self._authorizer = authorizer

    @property
    def ranged(self) -> bool:
        """Whether the registry serves ranges of blobs, as far as is known."""
        return time.monotonic() >= self._unranged_until_s

    def record_ignored_range(self) -> None:
        """Record that a range request got the whole blob. Caches do this for blobs that they do not have yet."""
        self._unranged_until_s = time.monotonic() + UNRANGED_S

    def follow(self, response: aiohttp.ClientResponse, *, query: str = "") -> URL:
        """Return the address in the `Location` of a response, with `query` added. Raises `RegistryError`.

        The query is added as text, because signed parameters must not change.
        """
        location, url = response.headers.get("Location", ""), response.url
        if location and query:
            location = f"{location}{'&' if '?' in location else '?'}{query}"
        try:
            target = parse_address(location, url)
        except BadAddressError as error:
            raise RegistryError(f"the registry {self.host} names an invalid location: {error}") from None
        if url.scheme == "https" and target.scheme == "http":
            raise RegistryError(
                f"the registry {self.host} leads from https to http at {target.host}",
                remedy="make the proxy in front of it pass X-Forwarded-Proto, or set its external URL to https",
            )
        return target

    @asynccontextmanager
    async def send(self, request: Request) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yield the response if its status is one of `request.accept`.

        Raises the errors of `Source`, also for failures while the caller reads the body.
        """
        path = request.path
        url = path if isinstance(path, URL) else self._address.origin.join(URL(f"/v2/{path}", encoded=True))
        exchange = _Exchange(url)
        try:
            async with asyncio.timeout(request.limit_s):
                response = await self._follow(request, exchange)
                try:
                    yield response
                finally:
                    # A connection whose body was read to the end is in the pool already. Others are closed, not
                    # drained.
                    response.close()
        except aiohttp.ClientConnectorCertificateError as error:
            remedy = f'set ca_file under [images.registries."{self.host}"]'
            text = f"the registry {self.host} has a certificate that is not trusted: {error}"
            raise RegistryError(text, remedy=remedy) from error
        except (aiohttp.ClientError, TimeoutError, ssl.SSLError, OSError) as error:
            raise self._connection_error(error, exchange.url) from error

    async def _follow(self, request: Request, exchange: _Exchange) -> aiohttp.ClientResponse:
        redirects = logins = 0
        while True:
            is_origin = exchange.url.origin() == self._address.origin
            authorization = self._authorizer.header(request.scope) if is_origin else None
            response = await self._send_once(request, exchange.url, authorization)
            is_redirect = response.status in _REDIRECTS
            if is_origin and (is_redirect or (response.status in request.accept and response.status < 400)):
                self._authorizer.record_success(request.scope)
            if response.status in request.accept:
                return response
            if response.status == 401 and is_origin and logins < _MAX_LOGINS:
                logins += 1
                challenges = parse_challenges(response.headers.getall("WWW-Authenticate", []))
                response.release()
                await self._authorizer.answer_challenge(challenges, request.scope, authorization)
            elif is_redirect and request.body is None and redirects < _MAX_REDIRECTS:
                redirects += 1
                response.release()
                exchange.url = self.follow(response)
            else:
                raise await self._status_error(request, response, is_origin=is_origin)

    async def _send_once(self, request: Request, url: URL, authorization: str | None) -> aiohttp.ClientResponse:
        headers = {**request.headers, "Authorization": authorization} if authorization else request.headers
        # An upload waits for its answer until its body is sent; `limit_s` bounds it.
        async with asyncio.timeout(None if request.body else self.timeouts.answer_s):
            return await self._client.request(
                request.method,
                url,
                zones=await self._address.zones(url),
                headers=headers,
                data=request.body() if request.body else None,
                timeout=self.timeouts.timeout(),
                trust=self._trust,
            )

    async def _status_error(
        self, request: Request, response: aiohttp.ClientResponse, *, is_origin: bool
    ) -> RegistryError | ImageNotFoundError:
        status, headers = response.status, response.headers
        # Nothing that another server sends is quoted: it may be a service that only this host can reach.
        try:
            excerpt = await _excerpt(response) if is_origin else ""
        finally:
            response.close()
        server = self.host if is_origin else f"{response.url.host} (redirected from {self.host})"
        proxy = self._client.proxy(response.url)
        if (login := login_error(proxy, status)) is not None:
            return login
        through = f" through the proxy {proxy}" if proxy else ""
        server += through
        if status in _TEMPORARY or not is_origin:
            after_s = retry_after_s(headers.get("Retry-After"))
            overloaded = status in _OVERLOADED
            text = f"the registry {server} replied {status}{excerpt}"
            return TransferError(text, retry_after_s=after_s, overloaded=overloaded)
        if status in (401, 403):
            return self._authorizer.refusal(request.scope, f" ({status}{through}{excerpt})")
        if status == 404:
            return ImageNotFoundError(f"the registry {server} has no {request.path}{excerpt}")
        return RegistryError(f"the registry {server} replied {status} to {request.method} {request.path}{excerpt}")

    def _connection_error(self, error: BaseException, url: URL) -> RegistryError:
        if is_forbidden(error):
            return forbidden_error(self.host, url, error)
        is_origin = url.origin() == self._address.origin
        target = "" if is_origin else f", redirected to {url.host},"
        proxy = self._client.proxy(url)
        if isinstance(error, aiohttp.ClientHttpProxyError) and (login := login_error(proxy, error.status)) is not None:
            return login
        through = f" through the proxy {proxy}" if proxy else ""
        is_tls_error = isinstance(error, aiohttp.ClientConnectorSSLError | ssl.SSLError)
        remedy = (
            f'if it serves plain http, set insecure = true under [images.registries."{self.host}"]'
            if is_tls_error and is_origin
            else ""
        )
        reason = failure_reason(error, quote=is_origin)
        return TransferError(
            f"the request to the registry {self.host}{target}{through} failed: {reason}", remedy=remedy
        )


async def _excerpt(response: aiohttp.ClientResponse) -> str:
    """Return the start of an error's body on one line, for the message."""
    text = " ".join((await read_excerpt(response, _EXCERPT_BYTES)).decode(errors="replace").split())
    return f": {text[:300]}" if text else ""
