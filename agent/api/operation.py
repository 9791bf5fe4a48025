"""API operations as data: router, OpenAPI document and tests read the same table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from agent.api.auth import Role

if TYPE_CHECKING:
    from pydantic import BaseModel

    from agent.api.schemas import Schema

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One method on one path.

    `answer` is the document of `status`, or the media type of another body, or None for an empty body. `also` lists
    other statuses with the same document, and `errors` the statuses of problems specific to this operation. `stream` is
    the media type of a live stream that a client can request instead. `receives` and `sends` are the messages of a
    WebSocket. `cost` returns how many requests of the rate limit a request counts as, by default one. `role` is the
    least role of a caller, if it differs from the default in `needs`."""

    id: str
    method: str
    path: str
    handler: Handler
    summary: str
    answer: type[BaseModel] | str | None
    status: int = 200
    also: tuple[int, ...] = ()
    body: type[BaseModel] | None = None
    query: type[Schema] | None = None
    etag: bool = False
    errors: tuple[int, ...] = ()
    role: Role | None = None
    stream: str = ""
    receives: tuple[type[BaseModel], ...] = ()
    sends: tuple[type[BaseModel], ...] = ()
    cost: Callable[[web.Request], float] | None = None

    @property
    def needs(self) -> Role:
        """The least role of a caller. The default is read for GET, else admin."""
        if self.role is not None:
            return self.role
        return Role.READ if self.method == "GET" else Role.ADMIN
