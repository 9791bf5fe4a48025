"""HTTP client of one registry: logins, redirects and errors, with a limit on every wait.

This client follows redirects itself instead of aiohttp. So it sends credentials only to the registry's own origin,
never falls back from https to http, and distinguishes an expired signed URL from a registry that denies access.
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
from agent.images.sources.http_headers import parse_challenges, retry_after_s

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from agent.images.sources.auth import Authorizer
    from agent.images.transfer_limits import BandwidthLimiter

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS: Final = 5
_MAX_LOGINS: Final = 2
_TEMPORARY: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_OVERLOADED: Final = frozenset({429, 503})
_EXCERPT_BYTES: Final = 2000
UNRANGED_S: Final = 60.0
"""How long only whole blobs are requested from a registry that ignored a range."""


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
    """One request. `path` is below `/v2/`, or a URL from the registry. `body` makes a new body for each attempt."""

    method: str
    path: str | URL
    scope: str
    accept: frozenset[int]
    headers: Mapping[str, str]
    body: Callable[[], AsyncIterator[bytes]] | None = None
    limit_s: float | None = None  # for the whole exchange with its body; None: only the transfer rate is checked


class RegistryHttp:
    """Sends requests to one registry."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        host: str,
        authorizer: Authorizer,
        *,
        insecure: bool,
        timeouts: RegistryTimeouts,
        bandwidth: BandwidthLimiter,
        trust: ssl.SSLContext | bool = True,
    ) -> None:
        self.host = host
        self.timeouts = timeouts
        self.bandwidth = bandwidth
        self._trust = trust
        self._unranged_until_s = 0.0
        self._session = session
        self._authorizer = authorizer
        self._origin = URL(f"{'http' if insecure else 'https'}://{host}").origin()

    @property
    def ranged(self) -> bool:
        """Whether the registry serves ranges of blobs, as far as is known."""
        return time.monotonic() >= self._unranged_until_s

    def record_ignored_range(self) -> None:
        """Record that a range request got the whole blob. Caches do this for blobs that they do not have yet."""
        self._unranged_until_s = time.monotonic() + UNRANGED_S

    def url(self, path: str | URL) -> URL:
        """Return the absolute URL of a path below `/v2/`, or of a location from the registry."""
        return self._origin.join(path) if isinstance(path, URL) else self._origin.join(URL(f"/v2/{path}", encoded=True))

    @asynccontextmanager
    async def send(self, request: Request) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yield the response if its status is one of `request.accept`.

        Raises the errors of `Source`, also for failures while the caller reads the body.
        """
        try:
            async with asyncio.timeout(request.limit_s):
                response = await self._follow(request)
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
            raise self._connection_error(error) from error

    async def _follow(self, request: Request) -> aiohttp.ClientResponse:
        url = self.url(request.path)
        redirects = logins = 0
        while True:
            is_origin = url.origin() == self._origin
            authorization = self._authorizer.header(request.scope) if is_origin else None
            response = await self._send_once(request, url, authorization)
            if response.status in request.accept:
                return response
            if response.status == 401 and is_origin and logins < _MAX_LOGINS:
                logins += 1
                challenges = parse_challenges(response.headers.getall("WWW-Authenticate", []))
                response.release()
                await self._authorizer.answer_challenge(challenges, request.scope, authorization)
            elif response.status in _REDIRECTS and request.body is None and redirects < _MAX_REDIRECTS:
                redirects += 1
                url = self._redirect_target(url, response)
                response.release()
            else:
                raise await self._status_error(request, response, is_origin=is_origin)

    async def _send_once(self, request: Request, url: URL, authorization: str | None) -> aiohttp.ClientResponse:
        headers = {"Accept-Encoding": "identity", **request.headers}
        if authorization:
            headers["Authorization"] = authorization
        body = request.body() if request.body else None
        return await self._session.request(
            request.method,
            url,
            headers=headers,
            data=body,
            allow_redirects=False,
            timeout=self.timeouts.timeout(),
            ssl=self._trust,
        )

    def _redirect_target(self, url: URL, response: aiohttp.ClientResponse) -> URL:
        try:
            target = url.join(URL(response.headers.get("Location", ""), encoded=True))
        except ValueError:
            target = URL()
        if target.scheme not in ("http", "https") or not target.host:
            raise RegistryError(f"the registry {self.host} redirects to an invalid location")
        if url.scheme == "https" and target.scheme == "http":
            raise RegistryError(f"the registry {self.host} redirects from https to http at {target.host}")
        return target

    async def _status_error(
        self, request: Request, response: aiohttp.ClientResponse, *, is_origin: bool
    ) -> RegistryError | ImageNotFoundError:
        status, headers = response.status, response.headers
        excerpt = await _excerpt(response)
        response.close()
        server = self.host if is_origin else f"{response.url.host} (redirected from {self.host})"
        if status in _TEMPORARY or not is_origin:
            after_s = retry_after_s(headers.get("Retry-After"))
            overloaded = status in _OVERLOADED
            text = f"the registry {server} replied {status}{excerpt}"
            return TransferError(text, retry_after_s=after_s, overloaded=overloaded)
        if status in (401, 403):
            return self._authorizer.denied(f" ({status}{excerpt})")
        if status == 404:
            return ImageNotFoundError(f"the registry {self.host} has no {request.path}{excerpt}")
        return RegistryError(f"the registry {server} replied {status} to {request.method} {request.path}{excerpt}")

    def _connection_error(self, error: BaseException) -> TransferError:
        reason = "no response in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
        is_tls_error = isinstance(error, aiohttp.ClientConnectorSSLError | ssl.SSLError)
        remedy = (
            f'if it serves plain http, set insecure = true under [images.registries."{self.host}"]'
            if is_tls_error
            else ""
        )
        return TransferError(f"the request to the registry {self.host} failed: {reason}", remedy=remedy)


async def _excerpt(response: aiohttp.ClientResponse) -> str:
    """Return the start of an error's body on one line, for the message."""
    try:
        async with asyncio.timeout(5):
            body = await response.content.read(_EXCERPT_BYTES)
    except (aiohttp.ClientError, TimeoutError, OSError):
        return ""
    text = " ".join(body.decode(errors="replace").split())
    return f": {text[:300]}" if text else ""
