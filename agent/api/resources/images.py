"""`/v1/images`: the image versions, with their pulls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent.api import schemas
from agent.api.documents import image_list
from agent.api.handler_context import context, json_response
from agent.api.operation import Operation

if TYPE_CHECKING:
    from aiohttp import web


async def images(request: web.Request) -> web.Response:
    """List the image versions with their pulls."""
    engine = context(request).engine
    return json_response(image_list(engine.host.world(), engine.host.pulls()))


OPERATIONS: Final = (
    Operation("images", "GET", "/v1/images", images, "The image versions, with their pulls", schemas.ImageList),
)
