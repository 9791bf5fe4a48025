"""`/`: the status page. Static files of this package; the page loads nothing from other servers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from aiohttp import hdrs, web

from agent.api.handler_context import not_modified

if TYPE_CHECKING:
    from collections.abc import Mapping

FILES: Final[Mapping[str, tuple[str, str]]] = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/timeline.js": ("timeline.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""The file and media type of every path of the page."""

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True, slots=True)
class _Page:
    body: bytes
    media_type: str
    etag: str


async def page(request: web.Request) -> web.Response:
    """Return a file of the status page."""
    found = _read(request.path)
    known = not_modified(request, found.etag)
    if known is not None:
        return known
    return web.Response(
        body=found.body,
        content_type=found.media_type,
        charset="utf-8",
        headers={
            hdrs.ETAG: f'"{found.etag}"',
            hdrs.CACHE_CONTROL: "no-cache",
            "Content-Security-Policy": CONTENT_SECURITY_POLICY,
            "Referrer-Policy": "no-referrer",
        },
    )


@cache
def _read(path: str) -> _Page:
    name, media_type = FILES[path]
    body = files("agent.api").joinpath("page", name).read_bytes()
    return _Page(body, media_type, blake2b(body, digest_size=6).hexdigest())
