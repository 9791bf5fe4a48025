"""A repository with mirrors. Content named by a digest comes from the mirrors first, other content from the origin.

Manifests and blobs named by digest are read from the mirrors in the configured order, then from the origin. A failed
mirror is skipped for `COOL_S`. Tags are resolved by the origin, and by the mirrors only if the origin does not answer.
Referrers are read from the origin, and all writes go to the origin.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, TypeVar

import structlog

from agent.images.errors import CorruptImageError, ImageError, TransferError
from agent.images.manifest import digest_of
from agent.images.reference import is_digest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from agent.images.manifest import Blob
    from agent.images.sources.contract import Repository, Source, Write

log = structlog.get_logger()

_Result = TypeVar("_Result")

COOL_S: Final = 30.0
"""How long a failed mirror is skipped."""


class MirroredRepository:
    """A `Repository` that combines a registry's repository with its mirrors."""

    def __init__(
        self, origin: Repository, mirrors: Sequence[Source], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._origin = origin
        self._mirrors = mirrors
        self._clock = clock
        self._skipped_until_s: dict[str, float] = {}
        self._distrusted: set[str] = set()

    @property
    def name(self) -> str:
        """See `Source.name`."""
        return self._origin.name

    async def digest(self, tag: str) -> str | None:
        """See `Source.digest`."""
        return await self._first_result((self._origin, *self._mirrors), lambda source: source.digest(tag))

    async def manifest(self, target: str) -> bytes:
        """See `Source.manifest`."""
        if not is_digest(target):
            return await self._first_result((self._origin, *self._mirrors), lambda source: source.manifest(target))

        async def read_verified(source: Source) -> bytes:
            raw = await source.manifest(target)
            if digest_of(raw) != target:
                raise CorruptImageError(f"{source.name} sent a manifest whose digest is not {target}")
            return raw

        return await self._first_result((*self._usable_mirrors(), self._origin), read_verified)

    @property
    def ranged(self) -> bool:
        """See `Source.ranged`."""
        return all(source.ranged for source in (*self._usable_mirrors(), self._origin))

    async def read(self, blob: Blob, start: int, size: int, write: Write) -> None:
        """See `Source.read`. If a source fails, the next one resumes at the first missing byte."""
        got = 0

        async def count(piece: memoryview) -> None:
            nonlocal got
            await write(piece)
            got += len(piece)

        async def rest(source: Source) -> None:
            await source.read(blob, start + got, size - got, count)

        mirrors = () if blob.digest in self._distrusted else self._usable_mirrors()
        await self._first_result((*mirrors, self._origin), rest)

    def distrust(self, blob: Blob) -> None:
        """See `Source.distrust`. The blob is read from the origin from now on."""
        self._distrusted.add(blob.digest)

    async def has(self, blob: Blob) -> bool:
        """See `Sink.has`."""
        return await self._origin.has(blob)

    async def mount(self, blob: Blob, repository: str) -> bool:
        """See `Sink.mount`."""
        return await self._origin.mount(blob, repository)

    async def put(self, blob: Blob, content: bytes | bytearray) -> None:
        """See `Sink.put`."""
        await self._origin.put(blob, content)

    async def put_manifest(self, content: bytes, *, media_type: str, tag: str | None) -> bool:
        """See `Sink.put_manifest`."""
        return await self._origin.put_manifest(content, media_type=media_type, tag=tag)

    async def referrers(self, digest: str) -> bytes | None:
        """See `Repository.referrers`."""
        return await self._origin.referrers(digest)

    def _usable_mirrors(self) -> tuple[Source, ...]:
        now_s = self._clock()
        return tuple(mirror for mirror in self._mirrors if self._skipped_until_s.get(mirror.name, 0.0) <= now_s)

    async def _first_result(self, sources: Sequence[Source], query: Callable[[Source], Awaitable[_Result]]) -> _Result:
        """Return the first successful result. If all sources fail, raise the error of the origin."""
        origin_error: ImageError | None = None
        for source in sources:
            try:
                return await query(source)
            except ImageError as error:
                if source is self._origin:
                    origin_error = error
                    if not isinstance(error, TransferError):
                        break
                else:
                    self._skipped_until_s[source.name] = self._clock() + COOL_S
                    log.warning("mirror-failed", source=source.name, error=str(error))
        assert origin_error is not None
        raise origin_error
