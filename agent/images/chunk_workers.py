"""Workers that write the chunks of an image to the disk in parallel: fetched whole, or rebuilt from local data.

Each worker owns one chunk from its first byte to its line in the checkpoint, so an interruption costs at most one chunk
per worker.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from agent.images.chunk_writers import ChunkBuilder, ChunkWriter, CorruptChunkError, RawWriter
from agent.images.concurrency import run_all_or_raise_first
from agent.images.disk_files import make_hole, start_writeback
from agent.images.errors import CorruptImageError
from agent.images.plan import Rebuild
from agent.processes.threads import run_in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from agent.images.download import Downloader, TransferTools
    from agent.images.plan import Fetch, Plan
    from agent.images.pull_progress import PullProgressTracker

log = structlog.get_logger()

CORRUPT_ATTEMPTS: Final = 3


class _FinishedChunks:
    """The numbers of the finished chunks, for workers whose chunk copies blocks from them."""

    def __init__(self) -> None:
        self._numbers: set[int] = set()
        self._changed = asyncio.Condition()

    async def wait_for(self, numbers: frozenset[int]) -> None:
        """Wait until all these chunks are finished."""
        async with self._changed:
            await self._changed.wait_for(lambda: numbers <= self._numbers)

    async def add(self, numbers: tuple[int, ...]) -> None:
        """Add chunks and wake the workers that wait for them."""
        async with self._changed:
            self._numbers.update(numbers)
            self._changed.notify_all()


class ChunkWorkers:
    """Writes the chunks of one image to one open disk file.

    `base` is the disk from which the file was cloned, if any. If `dirty`, the file may hold data of an
    interrupted pull.
    """

    def __init__(
        self,
        downloader: Downloader,
        descriptor: int,
        tools: TransferTools,
        tracker: PullProgressTracker,
        *,
        base: Path | None = None,
        dirty: bool = False,
    ) -> None:
        self._downloader = downloader
        self._descriptor = descriptor
        self._tools = tools
        self._tracker = tracker
        self._base = base
        self._dirty = dirty

    async def run(self, plans: Iterator[Plan], record: Callable[[Fetch], None]) -> None:
        """Execute all plans, calling `record` for each chunk that is verified and on the disk.

        The next plan is computed in a thread when the current one is nearly done. The first error ends all workers.
        """
        queue: asyncio.Queue[Fetch | Rebuild | None] = asyncio.Queue(maxsize=1)
        finished = _FinishedChunks()

        async def plan() -> None:
            while (portion := await run_in_thread(lambda: next(plans, None))) is not None:
                for job in portion.jobs:
                    await queue.put(job)
            for _ in range(self._tools.streams):
                await queue.put(None)

        async def work() -> None:
            while (job := await queue.get()) is not None:
                fetch = job.fetch if isinstance(job, Rebuild) else job
                # The chunks it needs precede it in the queue, so other workers have started or finished them.
                await finished.wait_for(job.needs if isinstance(job, Rebuild) else frozenset())
                await self._write(job)
                record(fetch)
                self._tracker.add_done(fetch.blob.size)
                await finished.add(fetch.numbers)
                # Not in the executor: a busy disk blocks this call, and other workers need the executor's threads.
                await run_in_thread(self._start_writeback, fetch)

        await run_all_or_raise_first([plan(), *(work() for _ in range(self._tools.streams))])

    async def _write(self, job: Fetch | Rebuild) -> None:
        fetch = job.fetch if isinstance(job, Rebuild) else job
        if not (isinstance(job, Rebuild) and await self._rebuild(job)):
            await self._fetch(fetch, dirty=self._dirty or isinstance(job, Rebuild))

    async def _rebuild(self, rebuild: Rebuild) -> bool:
        """Rebuild a chunk from local data. Return False if it cannot be rebuilt correctly."""
        if rebuild.remote and not self._downloader.source.ranged:
            return False
        if self._dirty:
            await self._in_executor(self._clear, rebuild.fetch)
        writer = RawWriter(rebuild.fetch, self._descriptor, base=self._base)
        builder = ChunkBuilder(rebuild, writer, self._tools.codec)
        ranges = ((step.start, step.size) for step in rebuild.remote)
        try:
            await self._downloader.ranges(
                rebuild.fetch.blob, ranges, lambda piece: self._in_executor(builder.feed, piece)
            )
            await self._in_executor(builder.finish)
        except CorruptChunkError as error:
            log.info("chunk-rebuild-failed", blob=rebuild.fetch.blob.digest, error=str(error))
            return False
        finally:
            builder.close()
        return True

    async def _fetch(self, fetch: Fetch, *, dirty: bool) -> None:
        source = self._downloader.source.name
        for attempt in range(1, CORRUPT_ATTEMPTS + 1):
            if dirty or self._base is not None:
                await self._in_executor(self._clear, fetch)
            writer = ChunkWriter(fetch, RawWriter(fetch, self._descriptor), self._tools.codec)
            try:
                await self._downloader.whole(
                    fetch.blob,
                    lambda piece: self._in_executor(writer.feed, piece),  # noqa: B023
                )
                await self._in_executor(writer.finish)
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
            f"{source} sent a corrupt blob {fetch.blob.digest} {CORRUPT_ATTEMPTS} times: {reason}",
            remedy="push the image again, or check the registry's storage",
        )

    async def _in_executor(self, function: Callable[..., None], *arguments: object) -> None:
        await run_in_thread(function, *arguments, executor=self._tools.executor)

    def _start_writeback(self, fetch: Fetch) -> None:
        for offset in fetch.offsets:
            start_writeback(self._descriptor, offset, fetch.chunk.raw_size)

    def _clear(self, fetch: Fetch) -> None:
        for offset in fetch.offsets:
            make_hole(self._descriptor, offset, fetch.chunk.raw_size)
