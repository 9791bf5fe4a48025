"""One API operation as data: the router, the OpenAPI document and the tests all read the same table."""

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
    """What one method on one path does.

    `answer` is the document of `status`, or the media type of a body that is no document, or None for an empty body.
    `also` lists other statuses that carry the answer's document, and `errors` the statuses of problems that belong to
    this operation (those any operation can have are not repeated). `stream` is the media type that a client can ask
    for instead, to be told as things happen. `takes` and `tells` are the messages of a WebSocket. `role` is the least
    that a caller must have, where that is not what `needs` concludes from the method.
    """

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
    takes: tuple[type[BaseModel], ...] = ()
    tells: tuple[type[BaseModel], ...] = ()

    @property
    def needs(self) -> Role:
        """The least role of a caller: what is not said is open to readers if it reads, else for administrators."""
        if self.role is not None:
            return self.role
        return Role.READ if self.method == "GET" else Role.ADMIN
