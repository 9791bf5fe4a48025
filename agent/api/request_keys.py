"""What a request carries through the API: its id, its caller, its route, and the headers of every response."""

from __future__ import annotations

from typing import Final

from aiohttp import hdrs, web
from multidict import istr

from agent.api.auth import Caller

CALLER: Final = web.RequestKey("caller", Caller)
REQUEST_ID: Final = web.RequestKey("request_id", str)
ROUTE: Final = web.RequestKey("route", str)
"""The route a request belongs to, for metrics."""

ID_HEADER: Final = istr("X-Request-ID")
COMMON_HEADERS: Final = {hdrs.SERVER: "hearth", "X-Content-Type-Options": "nosniff"}
"""Headers of every response, in addition to its id. `Server` replaces the library's name and version."""


def common_headers(request: web.Request) -> dict[str, str]:
    """Return the headers that every response carries."""
    return {**COMMON_HEADERS, ID_HEADER: request[REQUEST_ID]}
