"""Brings the chunks of an image to the disk, many at once: fetched whole, or put together from what is here.

Each worker owns one chunk from its first byte to its line in the journal, so an interruption costs at most one chunk
per worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog

from agent.images.chunk import ChunkBuilder, ChunkWriter, CorruptChunkError, RawWriter
from agent.images.errors import CorruptImageError
from agent.images.plan import Fetch, Rebuild
from agent.images.sparse import make_hole
from agent.images.threads import all_or_first_error, in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from agent.images.download import Downloader, Tools
    from agent.images.meter import Meter

log = structlog.get_logger()

CORRUPT_ATTEMPTS: Final = 3


class ChunkWorkers:
    """Makes the chunks of one image whole in one open disk file.

    `base` is the disk that it was cloned from, if any; `dirty` says that it may hold bytes of an interrupted try.
    """

    def __init__(
        self,
        downloader: Downloader,
        descriptor: int,
        tools: Tools,
        meter: Meter,
        *,
        base: Path | None = None,
        dirty: bool = False,
    ) -> None:
        self._downloader = downloader
        self._descriptor = descriptor
        self._tools = tools
        self._meter = meter
        self._base = base
        self._dirty = dirty

    async def run(self, jobs: Iterable[Fetch | Rebuild], finished: Callable[[Fetch], None]) -> None:
        """Do all jobs, calling `finished` for each chunk that is verified and in place. The first error ends all."""
        queue = iter(jobs)

        async def worker() -> None:
            for job in queue:
                fetch = job.fetch if isinstance(job, Rebuild) else job
                if not (isinstance(job, Rebuild) and await self._rebuild(job)):
                    await self._fetch(fetch, dirty=self._dirty or isinstance(job, Rebuild))
                finished(fetch)
                self._meter.done(fetch.blob.size)

        await all_or_first_error([worker() for _ in range(self._tools.streams)])

    async def _rebuild(self, rebuild: Rebuild) -> bool:
        """Put a chunk together; whether that gave the right bytes."""
        if rebuild.remote and not self._downloader.source.ranged:
            return False
        if self._dirty:
            await self._thread(self._clear, rebuild.fetch)
        writer = RawWriter(rebuild.fetch, self._descriptor, base=self._base)
        builder = ChunkBuilder(rebuild, writer, self._tools.codec)
        ranges = ((step.start, step.size) for step in rebuild.remote)
        try:
            await self._downloader.ranges(rebuild.fetch.blob, ranges, lambda piece: self._thread(builder.feed, piece))
            await self._thread(builder.finish)
        except CorruptChunkError as error:
            log.info("rebuild-failed", blob=rebuild.fetch.blob.digest, error=str(error))
            return False
        finally:
            builder.close()
        return True

    async def _fetch(self, fetch: Fetch, *, dirty: bool) -> None:
        source = self._downloader.source.name
        for attempt in range(1, CORRUPT_ATTEMPTS + 1):
            if dirty or self._base is not None:
                await self._thread(self._clear, fetch)
            writer = ChunkWriter(fetch, RawWriter(fetch, self._descriptor), self._tools.codec)
            try:
                await self._downloader.whole(
                    fetch.blob,
                    lambda piece: self._thread(writer.feed, piece),  # noqa: B023
                )
                await self._thread(writer.finish)
            except CorruptChunkError as error:
                log.warning("chunk-corrupt", blob=fetch.blob.digest, source=source, error=str(error))
                self._downloader.source.distrust(fetch.blob)
                dirty = True
                reason = str(error)
                if attempt < CORRUPT_ATTEMPTS:
                    await self._tools.retry.sleep(self._tools.retry.delay_s(attempt, None))
            else:
                return
        raise CorruptImageError(
            f"{source} sends a corrupt blob {fetch.blob.digest}, {CORRUPT_ATTEMPTS} times over: {reason}",
            remedy="push the image again, or check the registry's storage",
        )

    async def _thread(self, function: Callable[..., None], *arguments: object) -> None:
        await in_thread(self._tools.executor, function, *arguments)

    def _clear(self, fetch: Fetch) -> None:
        for offset in fetch.offsets:
            make_hole(self._descriptor, offset, fetch.chunk.raw_size)
