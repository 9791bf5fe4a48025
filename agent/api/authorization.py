"""Authorization of requests: caller, role and rate, and no requests of foreign web pages."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address, ip_network
from time import monotonic
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from aiohttp import hdrs, web
from yarl import URL

from agent.api.auth import Caller, Role, RoleTooLowError, UnauthenticatedError
from agent.api.connection import Connection
from agent.api.problems import HostRefusedError, OriginRefusedError, RateLimitedError
from agent.api.request_keys import CALLER

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent.api.auth import Authenticator
    from agent.api.rate_limit import RateLimiter

LOCAL: Final = Caller("socket", Role.ADMIN, is_local=True)
READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


class Authorization:
    """Authorizes every request. `needs` has the least role for every method and path of a route, `costs` the cost of
    a read of a path that is not 1."""

    def __init__(
        self,
        authenticator: Authenticator,
        limiter: RateLimiter,
        needs: Mapping[tuple[str, str], Role],
        costs: Mapping[str, Callable[[web.Request], float]] = MappingProxyType({}),
        *,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._authenticator = authenticator
        self._limiter = limiter
        self._needs = needs
        self._costs = costs
        self._clock = clock

    def refuse_web_pages(self, request: web.Request) -> None:
        """Refuse requests that a foreign web page makes a browser on this host send over TCP.

        A page can point its own name at 127.0.0.1 (DNS rebinding); the Host header then has that name. A page can post
        without a preflight request; the Origin header then names the page. Browsers cannot use the Unix socket, and a
        page has no token. Raises `HostRefusedError` and `OriginRefusedError`."""
        headers, peer = request.headers, peer_of(request)
        # An empty Authorization header, which a page can make a browser send, is not a token.
        if self._authenticator.requires_token or headers.get(hdrs.AUTHORIZATION) or not peer:
            return
        if _host_name(request.host) not in _LOOPBACK:
            self._limit(caller_of(peer))
            raise HostRefusedError(
                f"the Host header names {request.host}, not this machine", remedy="use http://127.0.0.1 and the port"
            )
        origin = headers.get(hdrs.ORIGIN)
        own = (f"http://{request.host}", f"https://{request.host}")
        if origin is not None and writes(request) and origin not in own:
            self._limit(caller_of(peer))
            raise OriginRefusedError(
                f"a web page of {origin} may not change this agent", remedy="use the Unix socket, or a token"
            )

    def authorize(self, request: web.Request, path: str) -> None:
        """Authorize a request for the route `path`. A path without a route needs the read role.

        An operation that needs no role has no rate limit: it is cheap, and monitoring calls it. Raises
        `UnauthenticatedError`, `RoleTooLowError` and `RateLimitedError`.
        """
        method = request.method
        needed = self._needs.get(("GET" if method == "HEAD" else method, path))
        if needed is None:  # no route; an operation open to all reports its methods to all
            needed = Role.NONE if self._needs.get(("GET", request.path)) is Role.NONE else Role.READ
        peer = peer_of(request)
        if needed is Role.NONE:
            return
        if not peer:
            request[CALLER] = LOCAL
            return
        try:
            caller = request[CALLER] = self._authenticator.caller(request.headers.get(hdrs.AUTHORIZATION, ""))
        except UnauthenticatedError:
            self._limit(caller_of(peer))
            raise
        if not caller.anonymous and isinstance(request.protocol, Connection):
            request.protocol.keep()
        cost = self._costs.get(path)
        self._limit(caller_of(peer) if caller.anonymous else caller.name, cost(request) if cost else 1.0)
        if caller.role < needed:
            raise _role_error(caller, needed)

    def _limit(self, caller: str, cost: float = 1.0) -> None:
        wait_s = self._limiter.wait_s(caller, self._clock(), cost)
        if wait_s:
            rate = self._limiter.rate
            raise RateLimitedError(
                f"{caller} sends too many requests: the limit is {rate.per_s:g} a second, with bursts of {rate.burst}",
                wait_s=wait_s,
            )


def peer_of(request: web.Request) -> str:
    """Return the address of a TCP caller; empty on the Unix socket."""
    protocol = request.protocol
    return protocol.peer if isinstance(protocol, Connection) else ""


@lru_cache(maxsize=1024)
def caller_of(peer: str) -> str:
    """Return the name of a caller without a token. All loopback addresses are one caller, as is an IPv6 network."""
    try:
        address = ip_address(peer.partition("%")[0])
    except ValueError:
        return peer
    mapped = getattr(address, "ipv4_mapped", None)
    address = mapped or address
    if address.is_loopback:
        return "loopback"
    return str(ip_network((address, 64), strict=False)) if address.version == 6 else str(address)


def writes(request: web.Request) -> bool:
    """Whether a request may change something. A WebSocket may, although it begins with a GET."""
    return request.method not in READS or hdrs.UPGRADE in request.headers


def _role_error(caller: Caller, needed: Role) -> UnauthenticatedError | RoleTooLowError:
    if caller.anonymous:
        return UnauthenticatedError(
            f"without a token callers have the role {caller.role.name.lower()}, and this needs {needed.name.lower()}",
            remedy="send Authorization: Bearer TOKEN (hearth token create NAME), or use the Unix socket",
        )
    return RoleTooLowError(
        f"{caller.name!r} has the role {caller.role.name.lower()}, and this needs {needed.name.lower()}",
        remedy="use a token of that role",
    )


@lru_cache(maxsize=256)
def _host_name(host: str) -> str:
    """Return the host of a Host header, without its port."""
    try:
        return URL.build(authority=host).host or ""
    except ValueError:
        return ""
