"""What every request passes through once: an id, admission, errors as problems, a measured and logged end.

One function and no chain of middlewares, since controllers ask by the thousand. What they ask for again and again is
answered before it is routed (`Quick`).
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
from multidict import istr

from agent.api import problems
from agent.api.admission import Admission, peer_of, writes
from agent.api.context import CALLER, CONTEXT, REQUEST_ID
from agent.domain.errors import HearthError

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from aiohttp.typedefs import Handler

log = structlog.get_logger()

ID_HEADER: Final = istr("X-Request-ID")
ROUTE: Final = web.RequestKey("route", str)
"""The route a request belongs to, for metrics."""

ADMISSION: Final = web.AppKey("admission", Admission)
SAME_FOR_ALL: Final = {hdrs.SERVER: "hearth", "X-Content-Type-Options": "nosniff"}
"""Headers of every answer, beside its id: our name where the library would put its version."""

_CLIENT_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_ROOT_LOGGER: Final = logging.getLogger()

Quick = Callable[[web.Request], web.StreamResponse | None]
"""Answers a GET of one path before it is routed, or leaves it to the route."""

QUICK: Final = web.AppKey("quick", dict[str, Quick])


class Front:
    """The request handler of the server, in front of the application's own (`routed`)."""

    def __init__(
        self, application: web.Application, routed: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> None:
        self._routed = routed
        self._quick = application[QUICK]
        self._admission = application[ADMISSION]
        self._times = application[CONTEXT].metrics.requests
        self._ids = request_ids()

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        """Answer a request, whatever comes."""
        sent = request.headers.get(ID_HEADER)
        request[REQUEST_ID] = sent if sent and _CLIENT_ID.fullmatch(sent) else next(self._ids)
        request[ROUTE] = "unmatched"
        start_s: float = perf_counter()
        status: int | str = "disconnected"
        try:
            response = await self._answer(request)
            status = response.status
        finally:
            self._note(request, status, perf_counter() - start_s)
        return response

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        """Answer a request, errors as problem details. What nobody expected is logged with its traceback."""
        request_id = request[REQUEST_ID]
        try:
            self._admission.refuse_pages(request)
            response = self._at_once(request)
            if response is not None:
                return response
            # Every request has a task, and so a context, of its own: nothing has to be unbound.
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
        problem.headers.update(answer_headers(request))  # it may not have come as far as to a route
        return problem

    def _at_once(self, request: web.Request) -> web.StreamResponse | None:
        """Answer what is asked again and again without routing it."""
        path = request.raw_path
        quick = self._quick.get(path)
        response = quick(request) if quick is not None and not writes(request) else None
        if response is not None:
            request[ROUTE] = path
            self._admission.admit(request, path)
        return response

    def _note(self, request: web.Request, status: int | str, duration_s: float) -> None:
        method = request.method if request.method in _METHODS else "other"
        self._times.note(request[ROUTE], method, status, duration_s)
        writing = writes(request)
        if not writing and not _ROOT_LOGGER.isEnabledFor(logging.DEBUG):
            return  # asked here, since reads come by the thousand
        caller = request.get(CALLER)
        told = {
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
            log.info("audit", **told)
        else:
            log.debug("api-request", **told)


@web.middleware
async def admitted(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let a routed request in if its caller may do what it asks for."""
    resource = request.match_info.route.resource
    path = resource.canonical if resource else "unmatched"
    request[ROUTE] = path
    request.app[ADMISSION].admit(request, path)
    return await handler(request)


async def name_the_answer(request: web.Request, response: web.StreamResponse) -> None:
    """Put on a response what every answer carries."""
    response.headers.update(answer_headers(request))


def answer_headers(request: web.Request) -> dict[str, str]:
    """Return the headers that every answer carries."""
    return {**SAME_FOR_ALL, ID_HEADER: request[REQUEST_ID]}


def request_ids() -> Iterator[str]:
    """Yield ids that no other life of the agent gives: a random start and a count."""
    start = secrets.token_hex(5)
    return (f"{start}-{number}" for number in itertools.count(1))


def _detail(request: web.Request, error: web.HTTPException) -> str:
    if isinstance(error, web.HTTPNotFound):
        return f"there is nothing at {request.path}; /openapi.json lists what there is"
    if isinstance(error, web.HTTPMethodNotAllowed):
        return f"{request.path} takes {', '.join(sorted(error.allowed_methods))}, not {request.method}"
    return error.text or error.reason
