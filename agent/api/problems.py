"""Errors on the wire: RFC 9457 problem details, made in one place from one table of codes.

Problem types are URNs of the form `urn:hearth:problem:CODE`: names to compare, not addresses to fetch. An error that is
only its HTTP status has the type `about:blank`, as the RFC asks.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, ClassVar, Final, Literal

from aiohttp import web

from agent.api.problem_schemas import FieldProblem, LeaseEnding, Problem
from agent.domain.errors import ErrorOrigin, HearthError
from agent.domain.events import EventKind
from agent.engine.leases import LeaseEndedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.domain.events import Event

MEDIA_TYPE: Final = "application/problem+json"

STATUS_BY_CODE: Final[Mapping[str, int]] = {
    "malformed-json": 400,
    "broken-body": 400,
    "unauthenticated": 401,
    "origin-refused": 403,
    "role-too-low": 403,
    "pool-unknown": 404,
    "lease-not-found": 404,
    "vm-not-found": 404,
    "evidence-not-found": 404,
    "image-not-found": 404,
    "body-timeout": 408,
    "vm-leased": 409,
    "vm-not-running": 409,
    "lease-conflict": 409,
    "lease-wait-refused": 409,
    "draining": 409,
    "nothing-to-retry": 409,
    "nothing-to-undo": 409,
    "assignment-read-only": 409,
    "lease-ended": 410,
    "assignment-conflict": 412,
    "unsupported-media-type": 415,
    "host-refused": 421,
    "invalid-request": 422,
    "bad-configuration": 422,
    "bad-ttl": 422,
    "upgrade-required": 426,
    "rate-limited": 429,
    "hypervisor-error": 502,
    "guest-error": 502,
    "no-vm-free": 503,
}
"""The HTTP status of every code. A code that is not here is 400 when the request is to blame and 503 otherwise."""

RETRY_AFTER_S: Final = 5
"""What a client that found no VM free is told to wait: about the boot time of a small guest."""


_HOW: Final[Mapping[EventKind, Literal["released", "expired", "broken"]]] = {
    EventKind.LEASE_RELEASED: "released",
    EventKind.LEASE_EXPIRED: "expired",
    EventKind.LEASE_BROKEN: "broken",
}


_HEADERS_BY_STATUS: Final[Mapping[int, Mapping[str, str]]] = {
    401: {"WWW-Authenticate": "Bearer"},
    426: {"Upgrade": "websocket", "Connection": "Upgrade"},
    503: {"Retry-After": str(RETRY_AFTER_S)},
}


class RequestError(HearthError):
    """A request that cannot be served as it stands, whatever the state of the host."""

    code = "invalid-request"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.REQUEST

    def __init__(self, message: str, *, remedy: str = "", errors: tuple[FieldProblem, ...] = ()) -> None:
        super().__init__(message, remedy=remedy)
        self.errors = errors


class MalformedJsonError(RequestError):
    """The body is not JSON."""

    code = "malformed-json"


class BrokenBodyError(RequestError):
    """The body did not arrive whole."""

    code = "broken-body"


class BodyTimeoutError(RequestError):
    """The body took too long to arrive."""

    code = "body-timeout"


class MediaTypeError(RequestError):
    """The body is not declared as JSON."""

    code = "unsupported-media-type"


class RateLimitedError(RequestError):
    """The caller asks more often than the configuration allows; `wait_s` is how long it should wait."""

    code = "rate-limited"

    def __init__(self, message: str, *, wait_s: float) -> None:
        super().__init__(message, remedy="wait as Retry-After says; wait for changes by long poll or events")
        self.wait_s = wait_s


class UpgradeRequiredError(RequestError):
    """The operation speaks WebSocket, and the request does not ask for it."""

    code = "upgrade-required"


class HostRefusedError(RequestError):
    """The Host header does not name this listener: a browser led astray by DNS, most likely."""

    code = "host-refused"


class OriginRefusedError(RequestError):
    """The Origin header tells of a web page from elsewhere."""

    code = "origin-refused"


class VmUnknownError(RequestError):
    """No VM of ours has that name."""

    code = "vm-not-found"


def status_of(error: HearthError) -> int:
    """Return the HTTP status of an expected error."""
    return STATUS_BY_CODE.get(error.code, 400 if error.origin is ErrorOrigin.REQUEST else 503)


def problem_of(error: HearthError, *, request_id: str) -> Problem:
    """Return an expected error as a document."""
    return Problem(
        type=f"urn:hearth:problem:{error.code}",
        title=error.code.replace("-", " ").capitalize(),
        status=status_of(error),
        detail=error.message,
        code=error.code,
        remedy=error.remedy,
        request_id=request_id,
        errors=error.errors if isinstance(error, RequestError) else (),
        ending=_ending(error.ending) if isinstance(error, LeaseEndedError) else None,
    )


def from_error(error: HearthError, *, request_id: str) -> web.Response:
    """Return the response to an expected error."""
    problem = problem_of(error, request_id=request_id)
    headers = _HEADERS_BY_STATUS.get(problem.status, {})
    if isinstance(error, RateLimitedError):
        headers = {"Retry-After": str(math.ceil(error.wait_s))}
    return respond(problem, headers)


def from_status(status: int, detail: str, *, request_id: str, headers: Mapping[str, str]) -> web.Response:
    """Return the response to an error that HTTP itself has a name for."""
    phrase = HTTPStatus(status).phrase
    code = phrase.lower().replace(" ", "-")
    return respond(
        Problem(type="about:blank", title=phrase, status=status, detail=detail, code=code, request_id=request_id),
        headers,
    )


def respond(problem: Problem, headers: Mapping[str, str]) -> web.Response:
    """Return the problem as a response."""
    body = problem.model_dump_json(exclude_none=True).encode()
    return web.Response(status=problem.status, body=body, content_type=MEDIA_TYPE, headers=headers)


def _ending(event: Event) -> LeaseEnding:
    broken = event.kind is EventKind.LEASE_BROKEN
    return LeaseEnding(
        how=_HOW[event.kind],
        at=datetime.fromtimestamp(event.at_s, UTC),
        pool=event.pool,
        vm=event.vm,
        cause=event.cause,
        detail=event.detail,
        evidence=f"/v1/vms/{event.vm}/evidence" if broken else None,
    )
