"""Authorization for one registry: Basic, and Bearer with tokens cached per scope until shortly before they expire.

A scope is the access that a token must allow, in the registries' notation; several are separated by spaces. Each scope
has a lock: if many streams meet an expired token, one of them fetches a new token and the others use it. (distribution,
docs/content/spec/auth/token.md.)
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from yarl import URL

from agent.images.errors import RegistryDeniedError, RegistryError, TransferError
from agent.images.sources.http_headers import retry_after_s

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable

    from agent.images.sources.credentials import Credentials, CredentialStore
    from agent.images.sources.http_headers import Challenge

TOKEN_TIMEOUT_S: Final = 15.0
DEFAULT_LIFE_S: Final = 60.0
MARGIN_S: Final = 10.0
_MAX_REPLY_BYTES: Final = 1 << 20
_CLIENT_ID: Final = "hearth"


@dataclass(frozen=True, slots=True)
class _Grant:
    """An Authorization header and the time until which it is used."""

    header: str
    until_s: float


class Authorizer:
    """Returns Authorization headers for one registry, and fetches its tokens."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        host: str,
        credentials: CredentialStore,
        *,
        insecure: bool,
        trust: ssl.SSLContext | bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = session
        self._host = host
        self._credentials = credentials
        self._insecure = insecure
        self._trust = trust
        self._clock = clock
        self._known: Credentials | None = None
        self._grants: dict[str, _Grant] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def header(self, scope: str) -> str | None:
        """Return the cached Authorization header for `scope`; None if there is none or it has expired."""
        grant = self._grants.get(scope)
        return grant.header if grant and self._clock() < grant.until_s else None

    async def answer_challenge(self, challenges: Iterable[Challenge], scope: str, refused: str | None) -> str:
        """Return a new header after the registry answered 401 to the header `refused`.

        Raises `RegistryDeniedError` if the registry denies access, and `TransferError` if the token server fails.
        """
        async with self._locks[scope]:
            fresh = self.header(scope)
            if fresh is not None and fresh != refused:
                return fresh  # another stream has fetched it
            self._grants.pop(scope, None)
            self._known = await self._credentials.find(self._host)
            grant = await self._grant({c.scheme: c for c in challenges}, scope, self._known)
            if grant.header == refused:
                raise self.denied()
            self._grants[scope] = grant
            return grant.header

    def denied(self, detail: str = "") -> RegistryDeniedError:
        """Return the error for a registry that denies access; `detail` is appended to its message."""
        credentials = self._known
        account = (
            f"the user {credentials.username!r}" if credentials and credentials.username else "the configured token"
        )
        subject = account if credentials else "anonymous access"
        remedy = f'set username and password under [images.registries."{self._host}"] or run `docker login`'
        return RegistryDeniedError(f"the registry {self._host} denies access to {subject}{detail}", remedy=remedy)

    async def _grant(self, offers: dict[str, Challenge], scope: str, credentials: Credentials | None) -> _Grant:
        if bearer := offers.get("bearer"):
            return await self._token(bearer, scope, credentials)
        if "basic" in offers and credentials and credentials.username:
            return _Grant(_basic(credentials), float("inf"))
        if "basic" in offers:
            raise self.denied()
        names = ", ".join(sorted(offers)) or "none"
        raise RegistryError(f"the registry {self._host} offers only unsupported kinds of login ({names})")

    async def _token(self, challenge: Challenge, scope: str, credentials: Credentials | None) -> _Grant:
        realm = self._realm(challenge.parameters.get("realm", ""))
        service = challenge.parameters.get("service", "")
        requested_at_s = self._clock()
        try:
            async with (
                asyncio.timeout(TOKEN_TIMEOUT_S),
                self._request_token(realm, service, scope, credentials) as response,
            ):
                body = await response.content.read(_MAX_REPLY_BYTES)
                status, headers = response.status, response.headers
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise TransferError(f"fetching a token for {self._host} from {realm.host} failed: {reason}") from error
        if status in (400, 401, 403):
            raise self.denied(f" (its token server {realm.host} replied {status})")
        if status != 200:
            after_s = retry_after_s(headers.get("Retry-After"))
            raise TransferError(f"the token server {realm.host} replied {status}", retry_after_s=after_s)
        reply = _parse_reply(body, realm)
        # The lifetime counts from the request, because the token may have been issued at any time after it.
        life_s = max(DEFAULT_LIFE_S, _seconds(reply.get("expires_in")))
        return _Grant(f"Bearer {reply['token']}", requested_at_s + life_s - MARGIN_S)

    def _realm(self, text: str) -> URL:
        try:
            realm = URL(text)
        except ValueError:
            realm = URL()
        if realm.scheme not in ("https", "http") or not realm.host:
            raise RegistryError(f"the registry {self._host} names an invalid token server: {text[:200]!r}")
        if realm.scheme == "http" and not self._insecure:
            raise RegistryError(
                f"the registry {self._host} requests the password to be sent to {realm.host} over plain http"
            )
        return realm

    def _request_token(
        self, realm: URL, service: str, scope: str, credentials: Credentials | None
    ) -> aiohttp.client._BaseRequestContextManager[aiohttp.ClientResponse]:
        if credentials and credentials.identity_token:
            form = {"grant_type": "refresh_token", "refresh_token": credentials.identity_token, "client_id": _CLIENT_ID}
            form |= {"service": service, "scope": scope}
            return self._session.post(realm, data=form, allow_redirects=False, ssl=self._trust)
        headers = {"Authorization": _basic(credentials)} if credentials else {}
        query = realm.update_query([("service", service), *(("scope", part) for part in scope.split())])
        return self._session.get(query, headers=headers, allow_redirects=False, ssl=self._trust)


def _basic(credentials: Credentials) -> str:
    pair = f"{credentials.username}:{credentials.password}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"


def _parse_reply(body: bytes, realm: URL) -> dict[str, Any]:
    try:
        reply = json.loads(body)
    except ValueError:
        reply = None
    token = (reply.get("token") or reply.get("access_token")) if isinstance(reply, dict) else None
    if not isinstance(token, str) or not token.isprintable():
        raise RegistryError(f"the token server {realm.host} replied without a token")
    return {**reply, "token": token}


def _seconds(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else 0.0
