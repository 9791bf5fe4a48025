"""`/v1/assignment`: the desired state, as one document that is read, edited and replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent.api.handler_context import context, finish_write, json_response, not_modified, read_json
from agent.api.operation import Operation
from agent.config import Assignment, parse_assignment

if TYPE_CHECKING:
    from aiohttp import web


async def assignment(request: web.Request) -> web.Response:
    """Return the assignment in force."""
    held = context(request).engine.assignments.held
    return not_modified(request, held.etag) or json_response(held.document, etag=held.etag)


async def put_assignment(request: web.Request) -> web.Response:
    """Replace the assignment, durable before the response; with If-Match only if it did not change since it was
    read."""
    engine = context(request).engine
    document = parse_assignment(await read_json(request), source="the body")
    if_match = _if_match(request, engine.assignments.held.etag)
    held = await finish_write(request, engine.assignments.put(document, if_match=if_match))
    return json_response(held.document, etag=held.etag)


def _if_match(request: web.Request, current: str) -> str | None:
    """Return the entity tag that the write requires: the current one if the client named it, None without a
    condition."""
    tags = request.if_match
    if not tags or any(tag.value == "*" for tag in tags):
        return None
    strong = [tag.value for tag in tags if not tag.is_weak]
    return current if current in strong else (strong or ["weak tags never match"])[0]


OPERATIONS: Final = (
    Operation("assignment", "GET", "/v1/assignment", assignment, "The desired state in force", Assignment, etag=True),
    Operation("put-assignment", "PUT", "/v1/assignment", put_assignment, "Replace the desired state", Assignment,
              body=Assignment, etag=True, errors=(409, 412)),
)  # fmt: skip
