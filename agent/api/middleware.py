"""What every request passes through: an id, a measured and logged end, errors as problems, and the Host check."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import secrets
from collections.abc import Iterator
from functools import lru_cache
from time import perf_counter
from typing import TYPE_CHECKING, Final

import structlog
from aiohttp import hdrs, web
from yarl import URL

from agent.api import problems
from agent.api.auth import Caller, Role, RoleTooLowError
from agent.api.context import CALLER, CONTEXT, GATE, REQUEST_ID
from agent.domain.errors import HearthError

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

log = structlog.get_logger()

_ID_HEADER: Final = "X-Request-ID"
_CLIENT_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
NEEDS: Final = web.AppKey("needs", dict[tuple[str, str], Role])
"""The least role for every method and path."""

REQUEST_IDS: Final = web.AppKey("request_ids", Iterator[str])
_LOCAL: Final = Caller("socket", Role.ADMIN)
_ROOT_LOGGER: Final = logging.getLogger()
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


@web.middleware
async def observed(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request an id, the client's own if it sent a sane one; measure it; log it, writes above reads."""
    sent = request.headers.get(_ID_HEADER, "")
    ids = request.app[REQUEST_IDS]
    request_id = sent if sent and _CLIENT_ID.fullmatch(sent) else next(ids)
    request[REQUEST_ID] = request_id
    # Every request has a task, and so a context, of its own: nothing has to be unbound.
    structlog.contextvars.bind_contextvars(request_id=request_id)
    start_s, status = perf_counter(), "disconnected"
    try:
        response = await handler(request)
        status = str(response.status)
    finally:
        duration_s = perf_counter() - start_s
        _count(request, status, duration_s)
        level = logging.DEBUG if request.method in _READS else logging.INFO
        if _ROOT_LOGGER.isEnabledFor(level):  # asked here, since reads come by the thousand
            log.log(
                level,
                "api-request",
                method=request.method,
                path=request.path,
                status=status,
                caller=request[CALLER].name if CALLER in request else "",
                duration_s=round(duration_s, 4),
            )
    return response


@web.middleware
async def problems_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into problem details. What nobody expected is logged with its traceback and told as a 500."""
    request_id = request[REQUEST_ID]
    try:
        return await handler(request)
    except HearthError as error:
        return problems.from_error(error, request_id=request_id)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        kept = {str(name): error.headers[name] for name in (hdrs.ALLOW,) if name in error.headers}
        return problems.from_status(error.status, _detail(request, error), request_id=request_id, headers=kept)
    except (ConnectionError, asyncio.CancelledError):
        raise
    except Exception:
        log.exception("api-error", method=request.method, path=request.path)
        detail = f"the agent failed to answer; its log says why under request_id {request_id}"
        return problems.from_status(500, detail, request_id=request_id, headers={})


@web.middleware
async def no_foreign_pages(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what a web page from elsewhere makes a browser on this host send us over TCP.

    A page can point a name of its own at 127.0.0.1 (DNS rebinding): the Host header still tells. And it can post
    without asking first: the Origin header tells. The Unix socket has no such callers, and where a token is asked for
    a page has none to show.
    """
    if _by_tcp(request) and not request.app[GATE].asks:
        if _host_name(request.host) not in _LOOPBACK:
            raise problems.HostRefusedError(
                f"the Host header names {request.host}, not this machine", remedy="use http://127.0.0.1 and the port"
            )
        origin = request.headers.get(hdrs.ORIGIN)
        own = (f"http://{request.host}", f"https://{request.host}")
        reads = request.method in _READS and hdrs.UPGRADE not in request.headers  # a WebSocket may ask for anything
        if origin is not None and not reads and origin not in own:
            raise problems.OriginRefusedError(f"a page of {origin} may not write here", remedy="call from elsewhere")
    return await handler(request)


@web.middleware
async def admitted(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let the request in if its caller's role is enough for the operation. Unknown paths are for readers only."""
    resource = request.match_info.route.resource
    method = "GET" if request.method == "HEAD" else request.method
    needed = request.app[NEEDS].get((method, resource.canonical if resource else ""), Role.READ)
    if needed is not Role.NONE:
        authorization = request.headers.get(hdrs.AUTHORIZATION, "")
        caller = request.app[GATE].caller(authorization) if _by_tcp(request) else _LOCAL
        request[CALLER] = caller
        if caller.role < needed:
            raise RoleTooLowError(
                f"{caller.name!r} may {caller.role.name.lower()}, and this needs {needed.name.lower()}",
                remedy="use a token of that role",
            )
    return await handler(request)


def _by_tcp(request: web.Request) -> bool:
    address = request.transport.get_extra_info("sockname") if request.transport else None
    return isinstance(address, tuple)


@lru_cache(maxsize=256)
def _host_name(host: str) -> str:
    """Return the host of a Host header, without its port."""
    try:
        return URL.build(authority=host).host or ""
    except ValueError:
        return ""


async def name_the_answer(request: web.Request, response: web.StreamResponse) -> None:
    """Put the request's id on its response, and our name where the library would put its version."""
    response.headers[hdrs.SERVER] = "hearth"
    response.headers["X-Content-Type-Options"] = "nosniff"
    if REQUEST_ID in request:
        response.headers[_ID_HEADER] = request[REQUEST_ID]


def request_ids() -> Iterator[str]:
    """Yield ids that no other life of the agent gives: a random start and a count."""
    start = secrets.token_hex(5)
    return (f"{start}-{number}" for number in itertools.count(1))


def _count(request: web.Request, status: str, duration_s: float) -> None:
    resource = request.match_info.route.resource
    route = resource.canonical if resource else "unmatched"
    method = request.method if request.method in _METHODS else "other"
    metrics = request.app[CONTEXT].metrics
    metrics.request_child(route, method, status).observe(duration_s)


def _detail(request: web.Request, error: web.HTTPException) -> str:
    if isinstance(error, web.HTTPNotFound):
        return f"there is nothing at {request.path}; /openapi.json lists what there is"
    if isinstance(error, web.HTTPMethodNotAllowed):
        return f"{request.path} takes {', '.join(sorted(error.allowed_methods))}, not {request.method}"
    return error.text or error.reason
