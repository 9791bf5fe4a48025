"""HTTP to one registry: logins, redirects and refusals dealt with in one place, every wait bounded.

Redirects are followed here and not by aiohttp: credentials go to the registry's own origin only, https never falls back
to http, and a signed URL that expired is told apart from a registry that refuses us.
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
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_OVERLOADED: Final = frozenset({429, 503})
_EXCERPT_BYTES: Final = 2000
UNRANGED_S: Final = 60.0
"""How long a registry that ignored a range is asked for whole blobs only."""


@dataclass(frozen=True, slots=True)
class RegistryTimeouts:
    """How long a registry is waited for. All of it is per try; `retry` decides how many there are."""

    connect_s: float = 10.0
    stall_s: float = 15.0
    """No byte for this long ends a transfer."""
    slow_window_s: float = 20.0
    slow_bytes_per_s: float = 16384.0
    """A transfer slower than this over a whole window ends too: a drip is a stall with manners."""
    answer_s: float = 60.0
    """For a request with a small answer, and on top of an upload's own time."""

    def timeout(self) -> aiohttp.ClientTimeout:
        """Return it as aiohttp's limits on one request."""
        return aiohttp.ClientTimeout(total=None, sock_connect=self.connect_s, sock_read=self.stall_s)


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `path` is below `/v2/`, or a URL the registry gave us; `body` makes a fresh body per try."""

    method: str
    path: str | URL
    scope: str
    accept: frozenset[int]
    headers: Mapping[str, str]
    body: Callable[[], AsyncIterator[bytes]] | None = None
    limit_s: float | None = None  # for the whole exchange, its body included; None: bounded by its pace alone


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
        """Whether the registry serves parts of blobs, as far as is known."""
        return time.monotonic() >= self._unranged_until_s

    def ranges_ignored(self) -> None:
        """Note that it has answered a request for a part with the whole: a cache does so with what it lacks yet."""
        self._unranged_until_s = time.monotonic() + UNRANGED_S

    def url(self, path: str | URL) -> URL:
        """Return the absolute URL of a path below `/v2/`, or of a location that the registry gave."""
        return self._origin.join(path) if isinstance(path, URL) else self._origin.join(URL(f"/v2/{path}", encoded=True))

    @asynccontextmanager
    async def send(self, request: Request) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yield the answer, once its status is one of `request.accept`.

        Raises the errors named in `Source`; also for what breaks while the caller reads the body.
        """
        try:
            async with asyncio.timeout(request.limit_s):
                response = await self._follow(request)
                try:
                    yield response
                finally:
                    # What was read to its end is back in the pool by now; the rest is cut, never drained.
                    response.close()
        except aiohttp.ClientConnectorCertificateError as error:
            remedy = f'set ca_file under [images.registries."{self.host}"]'
            text = f"the registry {self.host} shows a certificate that is not trusted: {error}"
            raise RegistryError(text, remedy=remedy) from error
        except (aiohttp.ClientError, TimeoutError, ssl.SSLError, OSError) as error:
            raise self._unreachable(error) from error

    async def _follow(self, request: Request) -> aiohttp.ClientResponse:
        url = self.url(request.path)
        redirects = logins = 0
        while True:
            ours = url.origin() == self._origin
            authorization = self._authorizer.header(request.scope) if ours else None
            response = await self._once(request, url, authorization)
            if response.status in request.accept:
                return response
            if response.status == 401 and ours and logins < _MAX_LOGINS:
                logins += 1
                challenges = parse_challenges(response.headers.getall("WWW-Authenticate", []))
                response.release()
                await self._authorizer.answer(challenges, request.scope, authorization)
            elif response.status in _REDIRECTS and request.body is None and redirects < _MAX_REDIRECTS:
                redirects += 1
                url = self._next(url, response)
                response.release()
            else:
                raise await self._refusal(request, response, ours=ours)

    async def _once(self, request: Request, url: URL, authorization: str | None) -> aiohttp.ClientResponse:
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

    def _next(self, url: URL, response: aiohttp.ClientResponse) -> URL:
        try:
            target = url.join(URL(response.headers.get("Location", ""), encoded=True))
        except ValueError:
            target = URL()
        if target.scheme not in ("http", "https") or not target.host:
            raise RegistryError(f"the registry {self.host} redirects to nowhere")
        if url.scheme == "https" and target.scheme == "http":
            raise RegistryError(f"the registry {self.host} redirects from https to http at {target.host}")
        return target

    async def _refusal(
        self, request: Request, response: aiohttp.ClientResponse, *, ours: bool
    ) -> RegistryError | ImageNotFoundError:
        status, headers = response.status, response.headers
        said = await _excerpt(response)
        response.close()
        where = self.host if ours else f"{response.url.host}, where {self.host} redirects to,"
        if status in _PASSING or not ours:
            after_s = retry_after_s(headers.get("Retry-After"))
            overloaded = status in _OVERLOADED
            text = f"the registry {where} answers {status}{said}"
            return TransferError(text, retry_after_s=after_s, overloaded=overloaded)
        if status in (401, 403):
            return self._authorizer.denied(f" ({status}{said})")
        if status == 404:
            return ImageNotFoundError(f"the registry {self.host} has no {request.path}{said}")
        return RegistryError(f"the registry {where} answers {status} to {request.method} {request.path}{said}")

    def _unreachable(self, error: BaseException) -> TransferError:
        reason = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
        plain = isinstance(error, aiohttp.ClientConnectorSSLError | ssl.SSLError)
        remedy = (
            f'if it speaks plain http, set insecure = true under [images.registries."{self.host}"]' if plain else ""
        )
        return TransferError(f"the registry {self.host} cannot be used: {reason}", remedy=remedy)


async def _excerpt(response: aiohttp.ClientResponse) -> str:
    """Return the start of an error's body for the message, on one line."""
    try:
        async with asyncio.timeout(5):
            body = await response.content.read(_EXCERPT_BYTES)
    except (aiohttp.ClientError, TimeoutError, OSError):
        return ""
    text = " ".join(body.decode(errors="replace").split())
    return f": {text[:300]}" if text else ""
