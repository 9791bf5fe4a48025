"""Pull one image version: plan, ensure the disk space, fetch, verify, publish."""

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
from agent.images.chunk_workers import CORRUPT_ATTEMPTS, ChunkWorkers
from agent.images.concurrency import retry_while_busy, run_all_or_raise_first
from agent.images.disk_files import make_hole
from agent.images.download import Downloader, TransferTools
from agent.images.errors import (
    BadImageError,
    CorruptImageError,
    DiskTooSmallError,
    ImageError,
    StoreError,
)
from agent.images.files import write_durably
from agent.images.manifest import Blob, Manifest, digest_of, parse_manifest, parse_vm_config
from agent.images.pull_checkpoint import FILE_NAME, PullCheckpoint
from agent.images.pull_preparation import PullPreparation, plan_portions, prepare_pull
from agent.images.referrers import find_attached
from agent.images.store import CONFIG, DISK, MANIFEST, NVRAM
from agent.processes.boot import boot_id
from agent.processes.threads import run_in_thread

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from agent.images.manifest import Chunk
    from agent.images.plan import Plan
    from agent.images.pull_progress import PullProgressTracker
    from agent.images.reference import Reference
    from agent.images.reuse_index import ReuseIndex
    from agent.images.sources.contract import Repository
    from agent.images.space_manager import SpaceManager
    from agent.images.staging import Stage
    from agent.images.store import Store

log = structlog.get_logger()

_OTHER_PROCESS_PERIOD_S: Final = 0.2
_INDEX_TIMEOUT_S: Final = 60.0
"""A pull continues without the block index after this time."""


@dataclass(frozen=True, slots=True)
class Puller:
    """Pulls into one store."""

    store: Store
    reuse_index: ReuseIndex
    tools: TransferTools
    space: SpaceManager

    async def pull(self, source: Repository, reference: Reference, digest: str, tracker: PullProgressTracker) -> None:
        """Pull a version and publish it in the store. An interrupted pull of the version is resumed.

        Returns early if another process pulls the version. Raises `ImageError` subclasses.
        """
        started_s = time.monotonic()
        self.store.check(reference)
        manifest = await self._manifest(source, digest)
        tracker.set_total(manifest.total_bytes)
        stage: Stage | None = None
        try:
            stage = await self._open_stage(digest)
            if stage is None:
                return
            block_index = await self._pull_files(source, manifest, stage, tracker)
            await retry_while_busy(self.store.publish, reference, digest, stage)
            await run_in_thread(self.reuse_index.add, manifest, block_index)
        except OSError as error:
            raise await self._disk_error(error, stage) from error
        finally:
            if stage is not None:
                stage.close()
        fetched = tracker.snapshot().fetched_bytes
        duration_s = round(time.monotonic() - started_s, 3)
        log.info("pull-finished", image=digest, source=source.name, fetched_bytes=fetched, duration_s=duration_s)

    async def _manifest(self, source: Repository, digest: str) -> Manifest:
        raw = await self.tools.retry.run(lambda: source.manifest(digest))
        if digest_of(raw) != digest:
            raise CorruptImageError(f"{source.name} sent a manifest whose digest is not {digest}")
        return parse_manifest(raw)

    async def _open_stage(self, digest: str) -> Stage | None:
        """Return the version's staging directory; None if another process pulled the version in the mean time."""
        waited = False
        while not await run_in_thread(self.store.has, digest):
            stage = await run_in_thread(self.store.staging.try_open, digest)
            if stage is not None:
                return stage
            if not waited:
                log.info("pull-waiting-for-other-process", image=digest)
            waited = True
            await asyncio.sleep(_OTHER_PROCESS_PERIOD_S)
        return None

    async def _pull_files(
        self, source: Repository, manifest: Manifest, stage: Stage, tracker: PullProgressTracker
    ) -> bytes | None:
        """Write all files of the image to its staging directory. Return its block index, if it has one."""
        downloader = Downloader(source, self.tools, tracker)
        raw_index, index = await self._block_index(downloader, source, manifest)
        preparation = await run_in_thread(
            prepare_pull, manifest, stage.path, self.reuse_index, executor=self.tools.executor
        )
        outline = preparation.outline
        needed = outline.write_bytes(manifest) + manifest.nvram.size
        await run_in_thread(self.space.ensure_space, manifest.digest, needed)
        tracker.add_done(outline.done_bytes(manifest))
        plans = plan_portions(manifest, outline, stage.path / DISK, self.reuse_index, index)
        await run_all_or_raise_first(
            [
                self._pull_small(downloader, manifest.vm_config, stage.path / CONFIG, tracker),
                self._pull_small(downloader, manifest.nvram, stage.path / NVRAM, tracker),
                self._pull_disk(downloader, manifest, stage, preparation, plans, tracker),
            ]
        )
        await run_in_thread(_seal, manifest, stage.path)
        return raw_index

    async def _pull_disk(
        self,
        downloader: Downloader,
        manifest: Manifest,
        stage: Stage,
        preparation: PullPreparation,
        plans: Iterator[Plan],
        tracker: PullProgressTracker,
    ) -> None:
        outline = preparation.outline
        with ExitStack() as opened:
            descriptor = os.open(stage.path / DISK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            opened.callback(os.close, descriptor)
            os.ftruncate(descriptor, manifest.disk_bytes)
            if preparation.dirty or preparation.base is not None:
                await run_in_thread(_punch_holes, descriptor, [manifest.chunks[number] for number in outline.holes])
            checkpoint = PullCheckpoint.create(stage.path, manifest.digest, boot=boot_id(), done=outline.done)
            opened.callback(checkpoint.close)
            workers = ChunkWorkers(
                downloader, descriptor, self.tools, tracker, base=preparation.base, dirty=preparation.dirty
            )
            await workers.run(plans, lambda fetch: checkpoint.record(fetch.numbers))
            await run_in_thread(os.fsync, descriptor)

    async def _block_index(
        self, downloader: Downloader, source: Repository, manifest: Manifest
    ) -> tuple[bytes | None, Sequence[ChunkBlocks | None]]:
        """Return the image's block index, raw and decoded; empty if it has no valid one."""
        try:
            async with asyncio.timeout(_INDEX_TIMEOUT_S):
                blob = await self.tools.retry.run(lambda: find_attached(source, manifest.digest, INDEX_TYPE))
                if blob is None or blob.size > MAX_INDEX_BYTES:
                    return None, ()
                raw = bytes(await self._verified(downloader, blob))
            return raw, await run_in_thread(decode_index, raw, manifest, executor=self.tools.executor)
        except (ImageError, BadIndexError, TimeoutError) as error:
            log.info("block-index-unusable", image=manifest.digest, error=str(error))
            return None, ()

    async def _pull_small(self, downloader: Downloader, blob: Blob, path: Path, tracker: PullProgressTracker) -> None:
        content = await self._verified(downloader, blob)
        await run_in_thread(write_durably, path, content)
        tracker.add_done(blob.size)

    async def _verified(self, downloader: Downloader, blob: Blob) -> bytearray:
        for _ in range(CORRUPT_ATTEMPTS):
            content = await downloader.into_memory(blob)
            if await run_in_thread(digest_of, content) == blob.digest:
                return content
            downloader.source.distrust(blob)
        raise CorruptImageError(f"{downloader.source.name} sent a corrupt blob {blob.digest} {CORRUPT_ATTEMPTS} times")

    async def _disk_error(self, error: OSError, stage: Stage | None) -> StoreError | DiskTooSmallError:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return StoreError(f"writing to the image store {self.store.root} failed: {error}")
        # The partial image would keep the disk full.
        if stage is not None:
            await run_in_thread(stage.discard)
        return DiskTooSmallError(
            f"the disk of {self.store.root} became full during a pull", remedy="free space on that disk"
        )


def _seal(manifest: Manifest, directory: Path) -> None:
    """Check the VM configuration, and write the manifest as the last file."""
    try:
        parse_vm_config((directory / CONFIG).read_bytes())
    except BadImageError as error:
        raise BadImageError(f"the image {manifest.digest} cannot be used on this host: {error.message}") from None
    (directory / FILE_NAME).unlink()
    write_durably(directory / MANIFEST, manifest.raw)


def _punch_holes(descriptor: int, chunks: Iterable[Chunk]) -> None:
    for chunk in chunks:
        make_hole(descriptor, chunk.offset, chunk.raw_size)
