"""The cache of the host document: rendered once per change, because hundreds of controllers poll it."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from http import HTTPStatus
from time import monotonic
from typing import TYPE_CHECKING, Final

from aiohttp import hdrs

from agent.api.documents import host_document
from agent.api.prebuilt_response import PrebuiltResponse
from agent.api.request_keys import COMMON_HEADERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.api.engine_protocols import EngineParts

FRESH_S: Final = 0.25
"""Maximum age of a rendering. A change of the stored state renders it again immediately; values that change without one
(disk and pull figures, VMs of other owners) appear at most this much later."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A document as bytes with its entity tag, which is the same for the same content, also after a restart.

    `quoted` is the tag in header syntax. `whole` and `unchanged` are the two responses to a poll.
    """

    body: bytes
    etag: str
    quoted: str
    whole: PrebuiltResponse
    unchanged: PrebuiltResponse

    @classmethod
    def of(cls, body: bytes, etag: str) -> Rendered:
        """Return a document with its tag and responses."""
        quoted = f'"{etag}"'
        headers = {hdrs.ETAG: quoted, hdrs.CACHE_CONTROL: "no-cache", **COMMON_HEADERS}
        unchanged = PrebuiltResponse(HTTPStatus.NOT_MODIFIED, headers)
        headers |= {hdrs.CONTENT_TYPE: "application/json", hdrs.CONTENT_LENGTH: str(len(body))}
        return cls(body, etag, quoted, PrebuiltResponse(HTTPStatus.OK, headers, body), unchanged)


class HostDocumentCache:
    """Renders `GET /v1/host` and remembers the last rendering."""

    def __init__(self, engine: EngineParts, *, clock: Callable[[], float] = monotonic) -> None:
        self._engine = engine
        self._clock = clock
        self._sequence = -1
        self._stale_at_s = 0.0
        self._rendered = Rendered.of(b"", "")

    def render(self) -> Rendered:
        """Return the document as of now, or of `FRESH_S` ago if nothing has happened since."""
        sequence, now_s = self._engine.host.sequence, self._clock()
        if sequence != self._sequence or now_s >= self._stale_at_s:
            body = host_document(self._engine).model_dump_json().encode()
            self._sequence, self._stale_at_s = sequence, now_s + FRESH_S
            if body != self._rendered.body:
                etag = f"{sequence}-{blake2b(body, digest_size=6).hexdigest()}"
                self._rendered = Rendered.of(body, etag)
        return self._rendered
