"""Makes one image version whole on this host: plan, check the space, fetch, verify, publish."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from agent.images.blockindex import INDEX_TYPE, MAX_INDEX_BYTES, BadIndexError, ChunkBlocks, decode_index
from agent.images.download import Downloader, Tools
from agent.images.errors import (
    BadImageError,
    CorruptImageError,
    DiskTooSmallError,
    ImageError,
    StoreError,
)
from agent.images.fetch import CORRUPT_ATTEMPTS, ChunkWorkers
from agent.images.files import write_durably
from agent.images.journal import FILE_NAME, Journal
from agent.images.manifest import Blob, Manifest, digest_of, parse_manifest, parse_vm_config
from agent.images.prepare import Prepared, plans, prepare
from agent.images.referrers import find_attached
from agent.images.sparse import make_hole
from agent.images.store import CONFIG, DISK, MANIFEST, NVRAM
from agent.images.threads import all_or_first_error, in_thread, when_free
from agent.processes.boot import boot_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from agent.images.manifest import Chunk
    from agent.images.meter import Meter
    from agent.images.plan import Plan
    from agent.images.reference import Reference
    from agent.images.room import RoomMaker
    from agent.images.shelf import Shelf
    from agent.images.sources.contract import Place
    from agent.images.staging import Stage
    from agent.images.store import Store

log = structlog.get_logger()

_OTHER_PROCESS_PERIOD_S: Final = 0.2
_INDEX_TIMEOUT_S: Final = 60.0
"""The block index saves far more than this, but an image pulls without it too."""


@dataclass(frozen=True, slots=True)
class Puller:
    """Pulls into one store."""

    store: Store
    shelf: Shelf
    tools: Tools
    room: RoomMaker

    async def pull(self, source: Place, reference: Reference, digest: str, meter: Meter) -> None:
        """Return when the version is whole and published. What an interrupted try left is taken up again."""
        started_s = time.monotonic()
        self.store.check(reference)
        manifest = await self._manifest(source, digest)
        meter.expect(manifest.total_bytes)
        stage: Stage | None = None
        try:
            stage = await self._stage(digest)
            if stage is None:
                return
            block_index = await self._fill(source, manifest, stage, meter)
            await when_free(self.store.publish, reference, digest, stage)
            await in_thread(None, self.shelf.add, manifest, block_index)
        except OSError as error:
            raise await self._disk_error(error, stage) from error
        finally:
            if stage is not None:
                stage.close()
        fetched = meter.snapshot().fetched_bytes
        duration_s = round(time.monotonic() - started_s, 3)
        log.info("pull-finished", image=digest, source=source.name, fetched_bytes=fetched, duration_s=duration_s)

    async def _manifest(self, source: Place, digest: str) -> Manifest:
        raw = await self.tools.retry.run(lambda: source.manifest(digest))
        if digest_of(raw) != digest:
            raise CorruptImageError(f"{source.name} answers with another manifest than {digest}")
        return parse_manifest(raw)

    async def _stage(self, digest: str) -> Stage | None:
        """Return the version's staging directory; None when another process has made the version whole meanwhile."""
        waited = False
        while not await in_thread(None, self.store.has, digest):
            stage = await in_thread(None, self.store.staging.try_open, digest)
            if stage is not None:
                return stage
            if not waited:
                log.info("pull-waits-for-another-process", image=digest)
            waited = True
            await asyncio.sleep(_OTHER_PROCESS_PERIOD_S)
        return None

    async def _fill(self, source: Place, manifest: Manifest, stage: Stage, meter: Meter) -> bytes | None:
        """Make every file of the image whole in its staging directory; return its block index, if it has one."""
        downloader = Downloader(source, self.tools, meter)
        raw_index, index = await self._block_index(downloader, source, manifest)
        prepared = await in_thread(self.tools.executor, prepare, manifest, stage.path, self.shelf)
        outline = prepared.outline
        needed = outline.write_bytes(manifest) + manifest.nvram.size
        await in_thread(None, self.room.make, manifest.digest, needed)
        meter.done(outline.bytes_here(manifest))
        planned = plans(manifest, outline, stage.path / DISK, self.shelf, index)
        await all_or_first_error(
            [
                self._small(downloader, manifest.vm_config, stage.path / CONFIG, meter),
                self._small(downloader, manifest.nvram, stage.path / NVRAM, meter),
                self._disk(downloader, manifest, stage, prepared, planned, meter),
            ]
        )
        await in_thread(None, _seal, manifest, stage.path)
        return raw_index

    async def _disk(
        self,
        downloader: Downloader,
        manifest: Manifest,
        stage: Stage,
        prepared: Prepared,
        planned: Iterator[Plan],
        meter: Meter,
    ) -> None:
        outline = prepared.outline
        with ExitStack() as opened:
            descriptor = os.open(stage.path / DISK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            opened.callback(os.close, descriptor)
            os.ftruncate(descriptor, manifest.disk_bytes)
            if prepared.dirty or prepared.base is not None:
                await in_thread(None, _punch, descriptor, [manifest.chunks[number] for number in outline.holes])
            journal = Journal.begin(stage.path, manifest.digest, boot=boot_id(), done=outline.done)
            opened.callback(journal.close)
            workers = ChunkWorkers(downloader, descriptor, self.tools, meter, base=prepared.base, dirty=prepared.dirty)
            await workers.run(planned, lambda fetch: journal.finished(fetch.numbers))
            await in_thread(None, os.fsync, descriptor)

    async def _block_index(
        self, downloader: Downloader, source: Place, manifest: Manifest
    ) -> tuple[bytes | None, Sequence[ChunkBlocks | None]]:
        """Return the image's block index, raw and read; nothing when it has none that can be used."""
        try:
            async with asyncio.timeout(_INDEX_TIMEOUT_S):
                blob = await find_attached(source, manifest.digest, INDEX_TYPE)
                if blob is None or blob.size > MAX_INDEX_BYTES:
                    return None, ()
                raw = bytes(await self._verified(downloader, blob))
            return raw, await in_thread(self.tools.executor, decode_index, raw, manifest)
        except (ImageError, BadIndexError, TimeoutError) as error:
            log.info("block-index-unusable", image=manifest.digest, error=str(error))
            return None, ()

    async def _small(self, downloader: Downloader, blob: Blob, path: Path, meter: Meter) -> None:
        content = await self._verified(downloader, blob)
        await in_thread(None, write_durably, path, content)
        meter.done(blob.size)

    async def _verified(self, downloader: Downloader, blob: Blob) -> bytearray:
        for _ in range(CORRUPT_ATTEMPTS):
            content = await downloader.into_memory(blob)
            if await in_thread(None, digest_of, content) == blob.digest:
                return content
            downloader.source.distrust(blob)
        raise CorruptImageError(f"{downloader.source.name} sends a corrupt blob {blob.digest}, again and again")

    async def _disk_error(self, error: OSError, stage: Stage | None) -> StoreError | DiskTooSmallError:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return StoreError(f"the image store {self.store.root} cannot be written: {error}")
        if stage is not None:  # kept for another try it would only keep the disk full
            await in_thread(None, stage.discard)
        return DiskTooSmallError(f"the disk of {self.store.root} filled up during a pull", remedy="free space on it")


def _seal(manifest: Manifest, directory: Path) -> None:
    """Check what only the whole can tell, and write the manifest, last."""
    try:
        parse_vm_config((directory / CONFIG).read_bytes())
    except BadImageError as error:
        raise BadImageError(f"the image {manifest.digest} cannot be used here: {error.message}") from None
    (directory / FILE_NAME).unlink()
    write_durably(directory / MANIFEST, manifest.raw)


def _punch(descriptor: int, chunks: Iterable[Chunk]) -> None:
    for chunk in chunks:
        make_hole(descriptor, chunk.offset, chunk.raw_size)
