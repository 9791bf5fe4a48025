"""What handlers share: the engine behind the request, reading what came in, writing what goes out."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog
from aiohttp import hdrs, web
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from agent.api.auth import Caller, Gate
from agent.api.problem_schemas import FieldProblem
from agent.api.problems import BodyTimeoutError, BrokenBodyError, MalformedJsonError, MediaTypeError, RequestError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Mapping

    from pydantic_core import ErrorDetails

    from agent.api.events import EventHub
    from agent.api.ports import Engine
    from agent.api.views import HostView
    from agent.telemetry.metrics import Metrics

log = structlog.get_logger()

BODY_TIMEOUT_S: Final = 10.0
"""A body, once announced, must arrive in this time: a slow sender holds a connection, never a place in the engine."""

_MOST_EXACT: Final = 2**53
"""Up to here a double, which is what JSON's numbers are to most clients, tells every whole number from the next."""

_Model = TypeVar("_Model", bound=BaseModel)
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Context:
    """What every handler needs."""

    engine: Engine
    metrics: Metrics
    host_view: HostView
    events: EventHub
    unfinished: set[asyncio.Task[Any]] = field(default_factory=set)
    sockets: dict[web.WebSocketResponse, asyncio.Task[Any]] = field(default_factory=dict)
    """The WebSockets that are open, with the tasks that serve them."""


GATE: Final = web.AppKey("gate", Gate)
CALLER: Final = web.RequestKey("caller", Caller)
CONTEXT: Final = web.AppKey("context", Context)
REQUEST_ID: Final = web.RequestKey("request_id", str)


def context(request: web.Request) -> Context:
    """Return the application's context."""
    return request.app[CONTEXT]


async def read_json(request: web.Request) -> object:
    """Return the request's body as parsed JSON. Raises the `RequestError` that says what is wrong with it."""
    return _whole(_parse(await _read(request)))


async def read_body(request: web.Request, model: type[_Model]) -> _Model:
    """Return the request's JSON body as `model`. Raises the `RequestError` that names each field at fault."""
    raw = await _read(request)
    _parse(raw)
    with faults_told("body"):
        return model.model_validate_json(raw)


def read_query(request: web.Request, model: type[_Model]) -> _Model:
    """Return the query string as `model`. Raises `RequestError` for unknown, repeated or bad parameters."""
    if not request.query_string:
        return model()
    repeated = sorted({name for name in request.query if len(request.query.getall(name)) > 1})
    if repeated:
        raise RequestError(f"the query gives {', '.join(repeated)} more than once", remedy="give it once")
    with faults_told("query"):
        return model.model_validate(dict(request.query))


def answer(
    document: BaseModel | bytes, *, status: int = 200, etag: str = "", headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return a document, or its bytes, as a JSON response."""
    body = document if isinstance(document, bytes) else document.model_dump_json().encode()
    response = web.Response(status=status, body=body, content_type="application/json", headers=headers)
    response.headers[hdrs.CACHE_CONTROL] = "no-cache" if etag else "no-store"
    if etag:
        response.headers[hdrs.ETAG] = f'"{etag}"'
    return response


def not_modified(request: web.Request, etag: str) -> web.Response | None:
    """Return the 304 that spares the client a body it has, or None when it must be sent."""
    sent = request.headers.get(hdrs.IF_NONE_MATCH)
    if sent is None:
        return None
    if sent != f'"{etag}"':  # the common case needs no parsing
        known = request.if_none_match or ()
        if not any(tag.value in (etag, "*") for tag in known):
            return None
    return web.Response(status=304, headers={hdrs.ETAG: f'"{etag}"', hdrs.CACHE_CONTROL: "no-cache"})


async def unbroken(request: web.Request, work: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a write to its end, even when the client hangs up half-way."""
    unfinished = context(request).unfinished
    task = asyncio.create_task(work)
    unfinished.add(task)
    task.add_done_callback(unfinished.discard)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_tell_unheard)
        raise


def _tell_unheard(task: asyncio.Task[Any]) -> None:
    """Log how a write failed whose client is gone."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        log.warning("api-write-failed-unheard", error=str(error))


async def _read(request: web.Request) -> bytes:
    if request.content_type != "application/json":
        raise MediaTypeError(
            f"the body is declared as {request.content_type}", remedy="send JSON with Content-Type: application/json"
        )
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await request.read()
    except TimeoutError:
        raise BodyTimeoutError(f"the body did not arrive within {BODY_TIMEOUT_S:g} s", remedy="send it again") from None
    except web.RequestPayloadError as error:
        raise BrokenBodyError(f"the body did not arrive whole: {error}", remedy="send it again") from None


def _whole(value: object) -> object:
    """Make 2.0 a 2: to JSON and its schemas both are the same integer, to strict validation they are not."""
    match value:
        case float() if value.is_integer() and abs(value) <= _MOST_EXACT:
            return int(value)
        case dict():
            return {key: _whole(item) for key, item in value.items()}
        case list():
            return [_whole(item) for item in value]
        case _:
            return value


def _parse(raw: bytes) -> object:
    try:
        return from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise MalformedJsonError(f"the body is not JSON: {error}", remedy="mend it at that place") from None


@contextmanager
def faults_told(where: str) -> Iterator[None]:
    """Turn what pydantic finds wrong into the `RequestError` that names each field at fault."""
    try:
        yield
    except ValidationError as error:
        faults = tuple(_fault(item) for item in error.errors(include_input=False, include_url=False))
        told = "; ".join(f"{fault.pointer or '/'}: {fault.detail}" for fault in faults)
        raise RequestError(
            f"the {where} is not what this operation takes: {told}", remedy="see /openapi.json", errors=faults
        ) from None


def _fault(item: ErrorDetails) -> FieldProblem:
    parts = (str(part).replace("~", "~0").replace("/", "~1") for part in item["loc"])
    return FieldProblem(pointer="".join(f"/{part}" for part in parts), detail=item["msg"])
