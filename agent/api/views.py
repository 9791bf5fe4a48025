"""The host document, rendered once per change and not once per question: hundreds of controllers may poll."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

from agent.api.documents import host_document

if TYPE_CHECKING:
    from agent.api.ports import Engine


@dataclass(frozen=True, slots=True)
class Rendered:
    """A document as bytes with its entity tag, which names the content and survives a restart of the agent."""

    body: bytes
    etag: str


class HostView:
    """Renders `GET /v1/host` and remembers the last rendering."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._key: object = None
        self._rendered = Rendered(b"", "")

    def render(self) -> Rendered:
        """Return the document as of now.

        Disk and pull figures move without a change of the world, so they are part of what a rendering is good for.
        """
        engine = self._engine
        key = (engine.sequence, engine.disk(), engine.vitals(), engine.pulls(), engine.conditions())
        if key != self._key:
            body = host_document(engine).model_dump_json().encode()
            self._rendered = Rendered(body, f"{engine.sequence}-{blake2b(body, digest_size=6).hexdigest()}")
            self._key = key
        return self._rendered
