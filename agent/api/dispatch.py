"""The dispatcher: gives every request an id, authorizes it, returns errors as problems, measures and logs its end.

This is one function and not a chain of middlewares, because controllers send thousands of requests. A polled path is
answered before routing (`FastPath`).
"""

from __future__ import annotations

import itertools
import logging
import re
import secrets
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import TYPE_CHECKING, Final

import structlog
from aiohttp import hdrs, web

from agent.api import problems
from agent.api.authorization import Authorization, peer_of, writes
from agent.api.handler_context import CONTEXT
from agent.api.request_keys import CALLER, ID_HEADER, REQUEST_ID, ROUTE, common_headers
from agent.domain.errors import HearthError

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from aiohttp.typedefs import Handler

log = structlog.get_logger()

AUTHORIZATION: Final = web.AppKey("admission", Authorization)

_CLIENT_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_ROOT_LOGGER: Final = logging.getLogger()

FastPath = Callable[[web.Request], web.StreamResponse | None]
"""Answers a GET of one path before routing, or returns None to leave it to the route."""

FAST_PATHS: Final = web.AppKey("quick", dict[str, FastPath])


class Dispatcher:
    """The request handler of the server. It calls the application's own handler, `routed`."""

    def __init__(
        self, application: web.Application, routed: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> None:
        self._routed = routed
        self._quick = application[FAST_PATHS]
        self._authorization = application[AUTHORIZATION]
        self._times = application[CONTEXT].metrics.requests
        self._ids = request_ids()

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        """Answer a request."""
        sent = request.headers.get(ID_HEADER)
        request[REQUEST_ID] = sent if sent and _CLIENT_ID.fullmatch(sent) else next(self._ids)
        request[ROUTE] = "unmatched"
        start_s: float = perf_counter()
        status: int | str = "disconnected"
        try:
            response = await self._answer(request)
            status = response.status
        finally:
            self._record_end(request, status, perf_counter() - start_s)
        return response

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        """Answer a request, with errors as problem details. An unexpected error is logged with its traceback."""
        request_id = request[REQUEST_ID]
        try:
            self._authorization.refuse_web_pages(request)
            response = self._answer_fast(request)
            if response is not None:
                return response
            # Every request has its own task, hence its own context: nothing has to be unbound.
            structlog.contextvars.bind_contextvars(request_id=request_id)
            return await self._routed(request)
        except HearthError as error:
            problem = problems.from_error(error, request_id=request_id)
        except web.HTTPException as error:
            kept = {str(name): error.headers[name] for name in (hdrs.ALLOW,) if name in error.headers}
            detail = _detail(request, error)
            problem = problems.from_status(error.status, detail, request_id=request_id, headers=kept)
        except ConnectionError:
            raise
        except Exception:
            log.exception("api-error", method=request.method, path=request.path)
            detail = f"the agent failed to answer; its log says why under request_id {request_id}"
            problem = problems.from_status(500, detail, request_id=request_id, headers={})
        problem.headers.update(common_headers(request))  # the error may precede routing
        return problem

    def _answer_fast(self, request: web.Request) -> web.StreamResponse | None:
        """Answer a polled path without routing it."""
        path = request.raw_path
        quick = self._quick.get(path)
        response = quick(request) if quick is not None and not writes(request) else None
        if response is not None:
            request[ROUTE] = path
            self._authorization.authorize(request, path)
        return response

    def _record_end(self, request: web.Request, status: int | str, duration_s: float) -> None:
        method = request.method if request.method in _METHODS else "other"
        self._times.note(request[ROUTE], method, status, duration_s)
        writing = writes(request)
        if not writing and not _ROOT_LOGGER.isEnabledFor(logging.DEBUG):
            return  # checked here because reads are frequent
        caller = request.get(CALLER)
        fields = {
            "request_id": request[REQUEST_ID],
            "method": request.method,
            "path": request.path,
            "status": str(status),
            "caller": caller.name if caller else "",
            "role": caller.role.name.lower() if caller else "",
            "peer": peer_of(request) or "socket",
            "duration_s": round(duration_s, 4),
        }
        if writing:
            log.info("audit", **fields)
        else:
            log.debug("api-request", **fields)


@web.middleware
async def authorize_route(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Authorize a routed request."""
    resource = request.match_info.route.resource
    path = resource.canonical if resource else "unmatched"
    request[ROUTE] = path
    request.app[AUTHORIZATION].authorize(request, path)
    return await handler(request)


async def add_common_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Add the headers of every response."""
    response.headers.update(common_headers(request))


def request_ids() -> Iterator[str]:
    """Yield ids that no other run of the agent yields: a random prefix and a count."""
    start = secrets.token_hex(5)
    return (f"{start}-{number}" for number in itertools.count(1))


def _detail(request: web.Request, error: web.HTTPException) -> str:
    if isinstance(error, web.HTTPNotFound):
        return f"there is no resource at {request.path}; /openapi.json lists all resources"
    if isinstance(error, web.HTTPMethodNotAllowed):
        return f"{request.path} supports {', '.join(sorted(error.allowed_methods))}, not {request.method}"
    return error.text or error.reason
