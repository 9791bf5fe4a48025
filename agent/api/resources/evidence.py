"""`/v1/vms/{name}/evidence`: the evidence of a failed VM, also after its teardown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aiohttp import hdrs, web

from agent.api import operator_schemas
from agent.api.auth import Role
from agent.api.documents import evidence_list
from agent.api.handler_context import context, json_response
from agent.api.operation import Operation

if TYPE_CHECKING:
    from collections.abc import Mapping

MEDIA_TYPES: Final[Mapping[str, str]] = {"json": "application/json", "png": "image/png"}
"""Media types by file name extension. Every other file is a log, and served as text."""


async def evidence(request: web.Request) -> web.Response:
    """List the evidence of a VM."""
    vm, kept = request.match_info["name"], context(request).engine.evidence
    return json_response(evidence_list(vm, kept.root, await kept.files(vm)))


async def file(request: web.Request) -> web.StreamResponse:
    """Return one file."""
    path = await context(request).engine.evidence.path(request.match_info["name"], request.match_info["file"])
    media_type = MEDIA_TYPES.get(path.suffix.removeprefix("."), "text/plain; charset=utf-8")
    return web.FileResponse(path, headers={hdrs.CONTENT_TYPE: media_type, hdrs.CACHE_CONTROL: "no-store"})


OPERATIONS: Final = (
    Operation("evidence", "GET", "/v1/vms/{name}/evidence", evidence, "The evidence of a failed VM",
              operator_schemas.EvidenceList, errors=(404,)),
    Operation("evidence-file", "GET", "/v1/vms/{name}/evidence/{file}", file, "One file of a failed VM's evidence",
              "text/plain", errors=(404,), role=Role.ADMIN),
)  # fmt: skip
