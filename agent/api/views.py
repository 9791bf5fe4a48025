"""The host document, rendered once per change and not once per question: hundreds of controllers may poll."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from http import HTTPStatus
from time import monotonic
from typing import TYPE_CHECKING, Final

from aiohttp import hdrs

from agent.api.documents import host_document
from agent.api.front import SAME_FOR_ALL
from agent.api.ready import ReadyAnswer

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.api.ports import Engine

FRESH_S: Final = 0.25
"""How old a rendering may be. A change of the world is told at once; what moves without one (disk and pull figures,
what others do on this host) this much later at most."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A document as bytes with its entity tag, which names the content and survives a restart of the agent.

    `quoted` is the tag as headers have it. `whole` and `unchanged` are the two answers to who polls it.
    """

    body: bytes
    etag: str
    quoted: str
    whole: ReadyAnswer
    unchanged: ReadyAnswer

    @classmethod
    def of(cls, body: bytes, etag: str) -> Rendered:
        """Return a document with all that goes with it."""
        quoted = f'"{etag}"'
        headers = {hdrs.ETAG: quoted, hdrs.CACHE_CONTROL: "no-cache", **SAME_FOR_ALL}
        unchanged = ReadyAnswer(HTTPStatus.NOT_MODIFIED, headers)
        headers |= {hdrs.CONTENT_TYPE: "application/json", hdrs.CONTENT_LENGTH: str(len(body))}
        return cls(body, etag, quoted, ReadyAnswer(HTTPStatus.OK, headers, body), unchanged)


class HostView:
    """Renders `GET /v1/host` and remembers the last rendering."""

    def __init__(self, engine: Engine, *, clock: Callable[[], float] = monotonic) -> None:
        self._engine = engine
        self._clock = clock
        self._sequence = -1
        self._stale_at_s = 0.0
        self._rendered = Rendered.of(b"", "")

    def render(self) -> Rendered:
        """Return the document as of now, or of `FRESH_S` ago if nothing has happened since."""
        sequence, now_s = self._engine.sequence, self._clock()
        if sequence != self._sequence or now_s >= self._stale_at_s:
            body = host_document(self._engine).model_dump_json().encode()
            self._sequence, self._stale_at_s = sequence, now_s + FRESH_S
            if body != self._rendered.body:
                etag = f"{sequence}-{blake2b(body, digest_size=6).hexdigest()}"
                self._rendered = Rendered.of(body, etag)
        return self._rendered
