"""Who may come in: the caller by token or by listener, the role an operation needs, the rate, and no web pages."""

from __future__ import annotations

from functools import lru_cache
from time import monotonic
from typing import TYPE_CHECKING, Final

from aiohttp import hdrs, web
from yarl import URL

from agent.api.auth import Caller, Role, RoleTooLowError, UnauthenticatedError
from agent.api.connection import Connection
from agent.api.context import CALLER
from agent.api.problems import HostRefusedError, OriginRefusedError, RateLimitedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent.api.auth import Gate
    from agent.api.limits import RateLimiter

LOCAL: Final = Caller("socket", Role.ADMIN)
READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


class Admission:
    """Decides on every request. `needs` is the least role for every method and path of a route."""

    def __init__(
        self,
        gate: Gate,
        limiter: RateLimiter,
        needs: Mapping[tuple[str, str], Role],
        *,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._gate = gate
        self._limiter = limiter
        self._needs = needs
        self._clock = clock

    def refuse_pages(self, request: web.Request) -> None:
        """Refuse what a web page from elsewhere makes a browser on this host send us over TCP.

        A page can point a name of its own at 127.0.0.1 (DNS rebinding): the Host header still tells. And it can post
        without asking first: the Origin header tells. The Unix socket has no such callers, and a page has no token.
        """
        headers = request.headers
        if self._gate.asks or hdrs.AUTHORIZATION in headers or not peer_of(request):
            return
        if _host_name(request.host) not in _LOOPBACK:
            raise HostRefusedError(
                f"the Host header names {request.host}, not this machine", remedy="use http://127.0.0.1 and the port"
            )
        origin = headers.get(hdrs.ORIGIN)
        own = (f"http://{request.host}", f"https://{request.host}")
        if origin is not None and writes(request) and origin not in own:
            raise OriginRefusedError(f"a page of {origin} may not write here", remedy="call from elsewhere")

    def admit(self, request: web.Request, path: str) -> None:
        """Let a request for the route `path` in, or raise why not. What is no route is for readers only.

        What needs no role is not limited by rate either: it is cheap, and asked by who watches over the agent.
        """
        method = request.method
        needed = self._needs.get(("GET" if method == "HEAD" else method, path))
        if needed is None:  # no route: what is open to all says so of its methods too
            needed = Role.NONE if self._needs.get(("GET", request.path)) is Role.NONE else Role.READ
        peer = peer_of(request)
        if needed is Role.NONE:
            return
        if not peer:
            request[CALLER] = LOCAL
            return
        try:
            caller = request[CALLER] = self._gate.caller(request.headers.get(hdrs.AUTHORIZATION, ""))
        except UnauthenticatedError:
            self._limit(peer)
            raise
        self._limit(peer if caller.anonymous else caller.name)
        if caller.role < needed:
            raise _too_low(caller, needed)

    def _limit(self, caller: str) -> None:
        wait_s = self._limiter.wait_s(caller, self._clock())
        if wait_s:
            rate = self._limiter.rate
            raise RateLimitedError(
                f"{caller} asks too often: {rate.per_s:g} requests a second in the long run, {rate.burst} at once",
                wait_s=wait_s,
            )


def peer_of(request: web.Request) -> str:
    """Return the address of a TCP caller; empty on the Unix socket."""
    protocol = request.protocol
    return protocol.peer if isinstance(protocol, Connection) else ""


def writes(request: web.Request) -> bool:
    """Whether a request may change something: a WebSocket may, whatever it begins with."""
    return request.method not in READS or hdrs.UPGRADE in request.headers


def _too_low(caller: Caller, needed: Role) -> UnauthenticatedError | RoleTooLowError:
    if caller.anonymous:
        return UnauthenticatedError(
            f"without a token callers may only {caller.role.name.lower()}, and this needs {needed.name.lower()}",
            remedy="send Authorization: Bearer TOKEN (hearth token create NAME), or use the Unix socket",
        )
    return RoleTooLowError(
        f"{caller.name!r} may {caller.role.name.lower()}, and this needs {needed.name.lower()}",
        remedy="use a token of that role",
    )


@lru_cache(maxsize=256)
def _host_name(host: str) -> str:
    """Return the host of a Host header, without its port."""
    try:
        return URL.build(authority=host).host or ""
    except ValueError:
        return ""
