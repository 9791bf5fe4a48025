"""Brings the chunks of an image to the disk, many at once: fetched whole, or put together from what is here.

Each worker owns one chunk from its first byte to its line in the journal, so an interruption costs at most one chunk
per worker.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from agent.images.chunk import ChunkBuilder, ChunkWriter, CorruptChunkError, RawWriter
from agent.images.errors import CorruptImageError
from agent.images.plan import Rebuild
from agent.images.sparse import make_hole, start_writeback
from agent.images.threads import all_or_first_error, in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from agent.images.download import Downloader, Tools
    from agent.images.meter import Meter
    from agent.images.plan import Fetch, Plan

log = structlog.get_logger()

CORRUPT_ATTEMPTS: Final = 3


class _Placed:
    """The chunks that are in place, for those who need them."""

    def __init__(self) -> None:
        self._numbers: set[int] = set()
        self._news = asyncio.Condition()

    async def wait_for(self, numbers: frozenset[int]) -> None:
        """Wait until all of these are in place."""
        async with self._news:
            await self._news.wait_for(lambda: numbers <= self._numbers)

    async def add(self, numbers: tuple[int, ...]) -> None:
        """Tell that these are."""
        async with self._news:
            self._numbers.update(numbers)
            self._news.notify_all()


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

    async def run(self, plans: Iterator[Plan], finished: Callable[[Fetch], None]) -> None:
        """Do all that is planned, calling `finished` for each chunk that is verified and in place.

        A plan is made in a thread when the one before is nearly done. The first error ends all.
        """
        queue: asyncio.Queue[Fetch | Rebuild | None] = asyncio.Queue(maxsize=1)
        placed = _Placed()

        async def plan() -> None:
            while (planned := await in_thread(None, next, plans, None)) is not None:
                for job in planned.jobs:
                    await queue.put(job)
            for _ in range(self._tools.streams):
                await queue.put(None)

        async def work() -> None:
            while (job := await queue.get()) is not None:
                fetch = job.fetch if isinstance(job, Rebuild) else job
                # What it needs came before it, so others are at work on that or are done.
                await placed.wait_for(job.needs if isinstance(job, Rebuild) else frozenset())
                await self._make(job)
                finished(fetch)
                self._meter.done(fetch.blob.size)
                await placed.add(fetch.numbers)
                # Not in the pool: this waits for the disk when that is busy, and the others have work to do.
                await in_thread(None, self._start_writeback, fetch)

        await all_or_first_error([plan(), *(work() for _ in range(self._tools.streams))])

    async def _make(self, job: Fetch | Rebuild) -> None:
        fetch = job.fetch if isinstance(job, Rebuild) else job
        if not (isinstance(job, Rebuild) and await self._rebuild(job)):
            await self._fetch(fetch, dirty=self._dirty or isinstance(job, Rebuild))

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

    def _start_writeback(self, fetch: Fetch) -> None:
        for offset in fetch.offsets:
            start_writeback(self._descriptor, offset, fetch.chunk.raw_size)

    def _clear(self, fetch: Fetch) -> None:
        for offset in fetch.offsets:
            make_hole(self._descriptor, offset, fetch.chunk.raw_size)
