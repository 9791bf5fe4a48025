"""Authorization for one registry: Basic, and Bearer with tokens cached per scope until shortly before they expire.

A scope is the access that a request needs, in the registries' notation; several are separated by spaces. A token is
requested for the scope that the registry's challenge names, because its names and actions are those the token server
accepts. Each scope has a lock: if many streams meet an expired token, one of them fetches a new token and the others
use it. (distribution, docs/content/spec/auth/token.md.)
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from agent.images.errors import BadImageError, RegistryDeniedError, RegistryError, TransferError
from agent.images.manifest import parse_json
from agent.images.sources.addresses import BadAddressError, parse_address
from agent.images.sources.http_client import failure_reason, forbidden_error, is_forbidden, login_error, read_body
from agent.images.sources.http_headers import retry_after_s

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from yarl import URL

    from agent.images.sources.addresses import Zone
    from agent.images.sources.credentials import Credentials, CredentialStore
    from agent.images.sources.http_client import HttpClient
    from agent.images.sources.http_headers import Challenge

TOKEN_TIMEOUT_S: Final = 15.0
DEFAULT_LIFE_S: Final = 60.0
LONGEST_LIFE_S: Final = 24 * 3600.0
MARGIN_S: Final = 10.0
RECENT_S: Final = 600.0
"""A refusal within this time after a success on the same scope is treated as temporary."""
_MAX_REPLY_BYTES: Final = 1 << 20
_MAX_TOKEN_BYTES: Final = 64 << 10
_MAX_REDIRECTS: Final = 5
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_OVERLOADED: Final = frozenset({429, 503})
_CLIENT_ID: Final = "hearth"


@dataclass(frozen=True, slots=True)
class _Grant:
    """An Authorization header and the time until which it is used."""

    header: str
    until_s: float


class Authorizer:
    """Returns Authorization headers for one registry, and fetches its tokens.

    `zones` returns the zones of this host that the registry's token server may be in; None for all.
    """

    def __init__(
        self,
        client: HttpClient,
        host: str,
        credentials: CredentialStore,
        *,
        insecure: bool,
        zones: Callable[[URL], Awaitable[frozenset[Zone] | None]],
        trust: ssl.SSLContext | bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._host = host
        self._credentials = credentials
        self._insecure = insecure
        self._zones = zones
        self._trust = trust
        self._clock = clock
        self._known: Credentials | None = None
        self._missing: RegistryDeniedError | None = None
        self._grants: dict[str, _Grant] = {}
        self._allowed_at_s: dict[str, float] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def header(self, scope: str) -> str | None:
        """Return the cached Authorization header for `scope`; None if there is none or it has expired."""
        grant = self._grants.get(scope)
        return grant.header if grant and self._clock() < grant.until_s else None

    def record_success(self, scope: str) -> None:
        """Record that the registry allowed a request of this scope."""
        self._allowed_at_s[scope] = self._clock()

    async def answer_challenge(self, challenges: Iterable[Challenge], scope: str, refused: str | None) -> str:
        """Return a new header after the registry answered 401 to the header `refused`.

        Raises the errors of `refusal` if the registry denies access, and `TransferError` if the token server fails.
        """
        async with self._locks[scope]:
            fresh = self.header(scope)
            if fresh is not None and fresh != refused:
                return fresh  # another stream has fetched it
            self._grants.pop(scope, None)
            self._known = await self._find_credentials(scope)
            grant = await self._grant({c.scheme: c for c in challenges}, scope, self._known)
            if grant.header == refused:
                raise self.refusal(scope)
            self._grants[scope] = grant
            return grant.header

    def refusal(self, scope: str, detail: str = "") -> RegistryDeniedError | TransferError:
        """Return the error for a registry that denies access; `detail` is appended to its message.

        It is temporary if the same scope was allowed shortly before: balancers and storage of registries refuse single
        requests for no reason of ours.
        """
        allowed_at_s = self._allowed_at_s.get(scope)
        if allowed_at_s is not None and self._clock() - allowed_at_s < RECENT_S:
            text = f"the registry {self._host} denied a request{detail} although it allowed earlier ones"
            return TransferError(text, remedy="if this stays, check whether the account may still read the repository")
        credentials = self._known
        account = (
            f"the user {credentials.username!r}" if credentials and credentials.username else "the configured token"
        )
        subject = account if credentials else "anonymous access"
        remedy = f'set username and password under [images.registries."{self._host}"] or run `docker login`'
        if credentials is None and self._missing is not None:
            detail, remedy = f"{detail}; {self._missing.message}", self._missing.remedy
        return RegistryDeniedError(f"the registry {self._host} denies access to {subject}{detail}", remedy=remedy)

    async def _find_credentials(self, scope: str) -> Credentials | None:
        """Return the credentials for a scope. If they cannot be read, public images remain accessible."""
        self._missing = None
        try:
            return await self._credentials.find(self._host, _repository(scope))
        except RegistryDeniedError as error:
            self._missing = error
            return None

    async def _grant(self, offers: dict[str, Challenge], scope: str, credentials: Credentials | None) -> _Grant:
        if bearer := offers.get("bearer"):
            return await self._token(bearer, scope, credentials)
        if "basic" in offers and credentials and credentials.username:
            return _Grant(_basic(credentials), float("inf"))
        if "basic" in offers or scope in self._allowed_at_s:
            raise self.refusal(scope)
        names = ", ".join(sorted(offers))[:200] or "none"
        raise RegistryError(f"the registry {self._host} offers only unsupported kinds of login ({names})")

    async def _token(self, challenge: Challenge, scope: str, credentials: Credentials | None) -> _Grant:
        if credentials and credentials.registry_token:
            return _Grant(f"Bearer {credentials.registry_token}", float("inf"))
        realm = self._realm(challenge.parameters.get("realm", ""))
        query = {
            "service": challenge.parameters.get("service", ""),
            "scope": requested_scope(challenge.parameters.get("scope", ""), scope),
        }
        requested_at_s = self._clock()
        try:
            async with asyncio.timeout(TOKEN_TIMEOUT_S):
                response = await self._request_token(realm, query, credentials)
                try:
                    body = await read_body(response, _MAX_REPLY_BYTES, "a token")
                finally:
                    response.close()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if is_forbidden(error):
                raise forbidden_error(self._host, realm, error) from error
            proxy = self._client.proxy(realm)
            if isinstance(error, aiohttp.ClientHttpProxyError) and (login := login_error(proxy, error.status)):
                raise login from None
            through = f" through the proxy {proxy}" if proxy else ""
            reason = failure_reason(error, quote=False)
            raise TransferError(
                f"fetching a token for {self._host} from {realm.host}{through} failed: {reason}"
            ) from error
        if response.status in (400, 401, 403):
            raise self.refusal(scope, f" (its token server {realm.host} replied {response.status})")
        if response.status != 200:
            raise TransferError(
                f"the token server {realm.host} replied {response.status}",
                retry_after_s=retry_after_s(response.headers.get("Retry-After")),
                overloaded=response.status in _OVERLOADED,
            )
        reply = _parse_reply(body, realm)
        # The lifetime counts from the request, because the token may have been issued at any time after it.
        life_s = max(DEFAULT_LIFE_S, _seconds(reply.get("expires_in")))
        return _Grant(f"Bearer {reply['token']}", requested_at_s + life_s - MARGIN_S)

    def _realm(self, text: str) -> URL:
        try:
            realm = parse_address(text)
        except BadAddressError as error:
            message = f"the registry {self._host} names an invalid token server {text[:200]!r}: {error}"
            raise RegistryError(message) from None
        if realm.scheme == "http" and not self._insecure:
            raise RegistryError(
                f"the registry {self._host} requests the password to be sent to {realm.host} over plain http"
            )
        return realm

    async def _request_token(
        self, realm: URL, query: Mapping[str, str], credentials: Credentials | None
    ) -> aiohttp.ClientResponse:
        """Return the token server's response. Follows redirects within its origin."""
        zones, url, form = await self._zones(realm), realm, None
        headers = {"Authorization": _basic(credentials)} if credentials and credentials.username else {}
        if credentials and credentials.identity_token:
            form = {"grant_type": "refresh_token", "refresh_token": credentials.identity_token, "client_id": _CLIENT_ID}
            form |= query
        else:
            pairs = [("service", query["service"]), *(("scope", part) for part in query["scope"].split())]
            url = realm.update_query(pairs)
        for _ in range(_MAX_REDIRECTS + 1):
            method = "GET" if form is None else "POST"
            response = await self._client.request(
                method, url, zones=zones, headers=headers, data=form, trust=self._trust
            )
            if response.status not in _REDIRECTS:
                return response
            response.close()
            url = self._redirect_target(url, response.headers.get("Location", ""))
        raise RegistryError(f"the token server {realm.host} redirects more than {_MAX_REDIRECTS} times")

    def _redirect_target(self, url: URL, location: str) -> URL:
        try:
            target = parse_address(location, url)
        except BadAddressError as error:
            raise RegistryError(f"the token server {url.host} redirects to an invalid location: {error}") from None
        if target.origin() != url.origin():
            raise RegistryError(
                f"the token server {url.host} redirects to {target.host}, which is not sent the password",
                remedy="correct the address of the token server in the registry's configuration",
            )
        return target


def requested_scope(challenged: str, needed: str) -> str:
    """Return the scope of a token request: the challenge's, with the needed actions on the same repositories.

    Without a scope in the challenge, it is the needed one.
    """
    actions = {name: wanted for name, _, wanted in (part.rpartition(":") for part in needed.split())}
    merged = []
    for part in challenged.split():
        name, _, offered = part.rpartition(":")
        both = dict.fromkeys([*offered.split(","), *filter(None, actions.get(name, "").split(","))])
        merged.append(f"{name}:{','.join(both)}")
    return " ".join(merged) or needed


def _repository(scope: str) -> str:
    return scope.partition(" ")[0].removeprefix("repository:").rpartition(":")[0]


def _basic(credentials: Credentials) -> str:
    pair = f"{credentials.username}:{credentials.password}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"


def _parse_reply(body: bytes, realm: URL) -> dict[str, Any]:
    try:
        reply = parse_json(body, f"the reply of the token server {realm.host}")
    except BadImageError as error:
        raise RegistryError(error.message) from None
    token = reply.get("token") or reply.get("access_token")
    if not isinstance(token, str) or not token.isascii() or not token.isprintable() or len(token) > _MAX_TOKEN_BYTES:
        raise RegistryError(f"the token server {realm.host} replied without a token")
    return {**reply, "token": token}


def _seconds(value: object) -> float:
    """Return a lifetime in bounds; 0 for anything else than a positive number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        return 0.0
    return float(min(value, LONGEST_LIFE_S))
