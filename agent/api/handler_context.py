"""What handlers share: the engine, and functions that read requests and write responses."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog
from aiohttp import hdrs, web
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from agent.api.problem_schemas import FieldProblem
from agent.api.problems import BodyTimeoutError, BrokenBodyError, MalformedJsonError, MediaTypeError, RequestError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Mapping

    from pydantic_core import ErrorDetails

    from agent.api.engine_protocols import EngineParts
    from agent.api.events import EventHub
    from agent.api.host_document_cache import HostDocumentCache
    from agent.telemetry.metrics import Metrics

log = structlog.get_logger()

BODY_TIMEOUT_S: Final = 10.0
"""A body must arrive within this time, so that a slow sender holds only its connection."""

_MOST_EXACT: Final = 2**53
"""Up to this number a double, the number type of most JSON clients, represents every integer exactly."""

_Model = TypeVar("_Model", bound=BaseModel)
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Context:
    """What every handler needs."""

    engine: EngineParts
    metrics: Metrics
    host_cache: HostDocumentCache
    events: EventHub
    unfinished: set[asyncio.Task[Any]] = field(default_factory=set)
    sockets: dict[web.WebSocketResponse, asyncio.Task[Any]] = field(default_factory=dict)
    """The open WebSockets, with the tasks that serve them."""


CONTEXT: Final = web.AppKey("context", Context)


def context(request: web.Request) -> Context:
    """Return the application's context."""
    return request.app[CONTEXT]


async def read_json(request: web.Request) -> object:
    """Return the request's body as parsed JSON. Raises `RequestError`."""
    return _with_integers(_parse(await _read(request)))


async def read_body(request: web.Request, model: type[_Model]) -> _Model:
    """Return the request's JSON body as `model`. Raises a `RequestError` that names each invalid field."""
    raw = await _read(request)
    _parse(raw)
    with raise_field_errors("body"):
        return model.model_validate_json(raw)


def read_query(request: web.Request, model: type[_Model]) -> _Model:
    """Return the query string as `model`. Raises `RequestError` for unknown, repeated or bad parameters."""
    if not request.query_string:
        return model()
    repeated = sorted({name for name in request.query if len(request.query.getall(name)) > 1})
    if repeated:
        raise RequestError(f"the query repeats {', '.join(repeated)}", remedy="send each parameter once")
    with raise_field_errors("query"):
        return model.model_validate(dict(request.query))


def json_response(
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
    """Return a 304 response if the client has the document with this tag, else None."""
    sent = request.headers.get(hdrs.IF_NONE_MATCH)
    if sent is None:
        return None
    if sent != f'"{etag}"':  # the common case needs no parsing
        known = request.if_none_match or ()
        if not any(tag.value in (etag, "*") for tag in known):
            return None
    return web.Response(status=304, headers={hdrs.ETAG: f'"{etag}"', hdrs.CACHE_CONTROL: "no-cache"})


async def finish_write(request: web.Request, work: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a write to its end, even if the client disconnects."""
    unfinished = context(request).unfinished
    task = asyncio.create_task(work)
    unfinished.add(task)
    task.add_done_callback(unfinished.discard)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_log_failed_write)
        raise


def _log_failed_write(task: asyncio.Task[Any]) -> None:
    """Log the failure of a write after its client disconnected."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        log.warning("api-write-failed", error=str(error))


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
        raise BrokenBodyError(f"the body did not arrive completely: {error}", remedy="send it again") from None


def _with_integers(value: object) -> object:
    """Replace 2.0 by 2: JSON Schema treats both as the same integer, strict validation does not."""
    match value:
        case float() if value.is_integer() and abs(value) <= _MOST_EXACT:
            return int(value)
        case dict():
            return {key: _with_integers(item) for key, item in value.items()}
        case list():
            return [_with_integers(item) for item in value]
        case _:
            return value


def _parse(raw: bytes) -> object:
    try:
        return from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise MalformedJsonError(f"the body is not JSON: {error}", remedy="correct it at that position") from None


@contextmanager
def raise_field_errors(where: str) -> Iterator[None]:
    """Raise validation errors of the block as a `RequestError` that names each invalid field."""
    try:
        yield
    except ValidationError as error:
        fields = tuple(_field_problem(item) for item in error.errors(include_input=False, include_url=False))
        details = "; ".join(f"{field.pointer or '/'}: {field.detail}" for field in fields)
        raise RequestError(
            f"the {where} is invalid: {details}", remedy="read the schema in /openapi.json", errors=fields
        ) from None


def _field_problem(item: ErrorDetails) -> FieldProblem:
    parts = (str(part).replace("~", "~0").replace("/", "~1") for part in item["loc"])
    return FieldProblem(pointer="".join(f"/{part}" for part in parts), detail=item["msg"])
