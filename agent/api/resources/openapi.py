"""`/openapi.json`, `/docs`: the contract for machines and reference_page, generated from the table of operations."""

from __future__ import annotations

import json
from base64 import b64encode
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from aiohttp import hdrs, web

from agent.api.auth import Role
from agent.api.docs_page import STYLE, reference
from agent.api.handler_context import json_response
from agent.api.openapi import openapi
from agent.api.operation import Operation

if TYPE_CHECKING:
    from collections.abc import Iterable

_STYLE_HASH: Final = b64encode(sha256(STYLE.encode()).digest()).decode()

REFERENCE_HEADERS: Final = {
    hdrs.CONTENT_TYPE: "text/html; charset=utf-8",
    hdrs.CACHE_CONTROL: "no-cache",
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
}
"""The page may load nothing; its one style sheet is inline and permitted by its hash."""


def contract(operations: Iterable[Operation]) -> tuple[Operation, ...]:
    """Return the operations that serve the OpenAPI document of `operations` and its reference page."""
    document = openapi(operations)
    body, page = json.dumps(document).encode(), reference(document).encode()

    async def openapi_json(_request: web.Request) -> web.Response:
        """Return the OpenAPI 3.1 document."""
        return json_response(body)

    async def reference_page(_request: web.Request) -> web.Response:
        """Return the reference page."""
        return web.Response(body=page, headers=REFERENCE_HEADERS)

    return (
        Operation(
            "openapi", "GET", "/openapi.json", openapi_json, "The OpenAPI document", "application/json", role=Role.NONE
        ),
        Operation("reference", "GET", "/docs", reference_page, "The reference page", "text/html", role=Role.NONE),
    )
