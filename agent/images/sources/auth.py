"""Answers registries' challenges: Basic, and Bearer with tokens kept per scope until shortly before they expire.

A scope is what the token must allow, as registries write it; several are parted by spaces.
One lock per scope: when many streams meet an expired token at once, one of them fetches the new one and the others use
it. (distribution, docs/content/spec/auth/token.md.)
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
_MAX_ANSWER_BYTES: Final = 1 << 20
_CLIENT_ID: Final = "hearth"


@dataclass(frozen=True, slots=True)
class _Grant:
    """An Authorization header and when to stop using it."""

    header: str
    until_s: float


class Authorizer:
    """The way into one registry."""

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
        """Return the Authorization header to try first for `scope`, if one is known and fresh."""
        grant = self._grants.get(scope)
        return grant.header if grant and self._clock() < grant.until_s else None

    async def answer(self, challenges: Iterable[Challenge], scope: str, refused: str | None) -> str:
        """Return a new header after a 401 to `refused`.

        Raises `RegistryDeniedError` when the registry will not have us, `TransferError` when that is yet unclear.
        """
        async with self._locks[scope]:
            fresh = self.header(scope)
            if fresh is not None and fresh != refused:
                return fresh  # another stream was faster
            self._grants.pop(scope, None)
            self._known = await self._credentials.find(self._host)
            grant = await self._grant({c.scheme: c for c in challenges}, scope, self._known)
            if grant.header == refused:
                raise self.denied()
            self._grants[scope] = grant
            return grant.header

    def denied(self, said: str = "") -> RegistryDeniedError:
        """Return the error for a registry that refuses us for good; `said` is what it gave as the reason."""
        credentials = self._known
        who = f"the user {credentials.username!r}" if credentials and credentials.username else "our token"
        subject = who if credentials else "anonymous use"
        remedy = f'set username and password under [images.registries."{self._host}"] or log in with docker'
        return RegistryDeniedError(f"the registry {self._host} refuses {subject}{said}", remedy=remedy)

    async def _grant(self, offers: dict[str, Challenge], scope: str, credentials: Credentials | None) -> _Grant:
        if bearer := offers.get("bearer"):
            return await self._token(bearer, scope, credentials)
        if "basic" in offers and credentials and credentials.username:
            return _Grant(_basic(credentials), float("inf"))
        if "basic" in offers:
            raise self.denied()
        names = ", ".join(sorted(offers)) or "none"
        raise RegistryError(f"the registry {self._host} wants a login of a kind unknown here ({names})")

    async def _token(self, challenge: Challenge, scope: str, credentials: Credentials | None) -> _Grant:
        realm = self._realm(challenge.parameters.get("realm", ""))
        service = challenge.parameters.get("service", "")
        asked_at_s = self._clock()
        try:
            async with asyncio.timeout(TOKEN_TIMEOUT_S), self._ask(realm, service, scope, credentials) as response:
                body = await response.content.read(_MAX_ANSWER_BYTES)
                status, headers = response.status, response.headers
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise TransferError(f"no token for {self._host} from {realm.host}: {reason}") from error
        if status in (400, 401, 403):
            raise self.denied(f" (its token server {realm.host} says {status})")
        if status != 200:
            after_s = retry_after_s(headers.get("Retry-After"))
            raise TransferError(f"the token server {realm.host} answers {status}", retry_after_s=after_s)
        answer = _parse_answer(body, realm)
        # The clock starts when we asked: the token may have been made at any moment since.
        life_s = max(DEFAULT_LIFE_S, _seconds(answer.get("expires_in")))
        return _Grant(f"Bearer {answer['token']}", asked_at_s + life_s - MARGIN_S)

    def _realm(self, text: str) -> URL:
        try:
            realm = URL(text)
        except ValueError:
            realm = URL()
        if realm.scheme not in ("https", "http") or not realm.host:
            raise RegistryError(f"the registry {self._host} names no usable token server, but {text[:200]!r}")
        if realm.scheme == "http" and not self._insecure:
            raise RegistryError(f"the registry {self._host} wants our password sent to {realm.host} in the clear")
        return realm

    def _ask(
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


def _parse_answer(body: bytes, realm: URL) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    token = (answer.get("token") or answer.get("access_token")) if isinstance(answer, dict) else None
    if not isinstance(token, str) or not token.isprintable():
        raise RegistryError(f"the token server {realm.host} answers without a token")
    return {**answer, "token": token}


def _seconds(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else 0.0
