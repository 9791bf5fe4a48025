"""Errors of the API: RFC 9457 problem details, from one table of codes.

Problem types are URNs of the form `urn:hearth:problem:CODE`: names to compare, not addresses to fetch. An error without
a code has the type `about:blank`, as the RFC requires."""

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
"""The HTTP status of every code. An absent code gets 400 if its origin is the request, and 503 otherwise."""

RETRY_AFTER_S: Final = 5
"""Retry-After when no VM is free: about the boot time of a small guest."""


_END_REASONS: Final[Mapping[EventKind, Literal["released", "expired", "broken"]]] = {
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
    """A request that is invalid in any state of the host."""

    code = "invalid-request"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.REQUEST

    def __init__(self, message: str, *, remedy: str = "", errors: tuple[FieldProblem, ...] = ()) -> None:
        super().__init__(message, remedy=remedy)
        self.errors = errors


class MalformedJsonError(RequestError):
    """The body is not JSON."""

    code = "malformed-json"


class BrokenBodyError(RequestError):
    """The body did not arrive completely."""

    code = "broken-body"


class BodyTimeoutError(RequestError):
    """The body took too long to arrive."""

    code = "body-timeout"


class MediaTypeError(RequestError):
    """The body is not declared as JSON."""

    code = "unsupported-media-type"


class RateLimitedError(RequestError):
    """The caller exceeds the configured rate; it should wait for `wait_s`."""

    code = "rate-limited"

    def __init__(self, message: str, *, wait_s: float) -> None:
        super().__init__(message, remedy="wait as long as Retry-After; use long polls or events for changes")
        self.wait_s = wait_s


class UpgradeRequiredError(RequestError):
    """The operation needs a WebSocket, and the request is not an upgrade."""

    code = "upgrade-required"


class HostRefusedError(RequestError):
    """The Host header does not name this listener, probably because of DNS rebinding in a browser."""

    code = "host-refused"


class OriginRefusedError(RequestError):
    """The Origin header names a foreign web page."""

    code = "origin-refused"


class VmUnknownError(RequestError):
    """This agent has no VM of that name."""

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
    """Return the response to an HTTP error without a code."""
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
        reason=_END_REASONS[event.kind],
        at=datetime.fromtimestamp(event.at_s, UTC),
        pool=event.pool,
        vm=event.vm,
        cause=event.cause,
        detail=event.detail,
        evidence=f"/v1/vms/{event.vm}/evidence" if broken else None,
    )
