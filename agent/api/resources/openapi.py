"""`/openapi.json`: the contract, generated from the same table the router is built from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from agent.api.auth import Role
from agent.api.context import answer
from agent.api.openapi import openapi
from agent.api.operation import Operation

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiohttp import web


def operation(operations: Iterable[Operation]) -> Operation:
    """Return the operation that serves the OpenAPI document of `operations`."""
    body = json.dumps(openapi(operations)).encode()

    async def document(_request: web.Request) -> web.Response:
        """Answer the OpenAPI 3.1 document."""
        return answer(body)

    return Operation("openapi", "GET", "/openapi.json", document, "This document", "application/json", role=Role.NONE)
