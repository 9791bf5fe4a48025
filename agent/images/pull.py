"""Makes one image version whole on this host: plan, check the space, fetch, verify, publish."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from agent.images.errors import (
    BadImageError,
    CorruptImageError,
    DiskTooSmallError,
    StoreError,
    TransferError,
)
from agent.images.fetch import ChunkFetcher, Tools
from agent.images.files import write_durably
from agent.images.journal import Journal, boot_id, read_journal
from agent.images.manifest import Blob, Manifest, digest_of, parse_manifest, parse_vm_config
from agent.images.plan import Fetch, Plan, make_plan
from agent.images.rehash import matching_chunks
from agent.images.store import CONFIG, DISK, MANIFEST, NVRAM, ImageStore, Stage
from agent.images.threads import all_or_first_error, in_thread
from agent.images.zeros import zero_digests

if TYPE_CHECKING:
    from pathlib import Path

    from agent.images.meter import Meter
    from agent.images.sources.contract import Source

log = structlog.get_logger()

_OTHER_PROCESS_PERIOD_S: Final = 0.2
_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Puller:
    """Pulls into one store. `reserve_bytes` stay free on its volume."""

    store: ImageStore
    tools: Tools
    reserve_bytes: int

    async def pull(self, source: Source, digest: str, meter: Meter) -> None:
        """Return when the version is whole and published. What an interrupted try left is taken up again."""
        started_s = time.monotonic()
        manifest = await self._manifest(source, digest)
        meter.expect(manifest.total_bytes)
        stage = await self._stage(digest)
        if stage is None:
            return
        try:
            await self._fill(source, manifest, stage, meter)
            await in_thread(None, self.store.publish, digest, stage)
        except OSError as error:
            raise await self._disk_error(error, stage) from error
        finally:
            stage.close()
        fetched = meter.snapshot().fetched_bytes
        duration_s = round(time.monotonic() - started_s, 3)
        log.info("image-pulled", image=digest, source=source.name, fetched_bytes=fetched, duration_s=duration_s)

    async def _manifest(self, source: Source, digest: str) -> Manifest:
        raw = await self.tools.retry.run(lambda: source.manifest(digest))
        if digest_of(raw) != digest:
            raise CorruptImageError(f"{source.name} answers with another manifest than {digest}")
        return parse_manifest(raw)

    async def _stage(self, digest: str) -> Stage | None:
        """Return the version's staging directory; None when another process has made the version whole meanwhile."""
        waited = False
        while not await in_thread(None, self.store.has, digest):
            stage = await in_thread(None, self.store.try_stage, digest)
            if stage is not None:
                return stage
            if not waited:
                log.info("pull-waits-for-another-process", image=digest)
            waited = True
            await asyncio.sleep(_OTHER_PROCESS_PERIOD_S)
        return None

    async def _fill(self, source: Source, manifest: Manifest, stage: Stage, meter: Meter) -> None:
        plan = await in_thread(self.tools.executor, self._plan, manifest, stage.path)
        await in_thread(None, self._check_space, manifest, plan)
        remaining = {number for fetch in plan.fetches for number in fetch.numbers}
        here = (chunk.blob.size for number, chunk in enumerate(manifest.chunks) if number not in remaining)
        meter.done(sum(here))
        with ExitStack() as opened:
            descriptor = os.open(stage.path / DISK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            opened.callback(os.close, descriptor)
            os.ftruncate(descriptor, manifest.disk_bytes)
            journal = Journal.begin(stage.path, manifest.digest, boot=boot_id(), done=plan.done)
            opened.callback(journal.close)
            fetcher = ChunkFetcher(source, descriptor, self.tools, meter, dirty=bool(plan.done))

            def finished(fetch: Fetch) -> None:
                journal.finished(fetch.numbers)

            await all_or_first_error(
                [
                    self._small(source, manifest.vm_config, stage.path / CONFIG, meter),
                    self._small(source, manifest.nvram, stage.path / NVRAM, meter),
                    fetcher.run(plan.fetches, finished),
                ]
            )
            await in_thread(None, os.fsync, descriptor)
        await in_thread(None, _seal, manifest, stage.path)

    def _plan(self, manifest: Manifest, directory: Path) -> Plan:
        recovered = read_journal(directory, manifest.digest, boot=boot_id(), chunks=len(manifest.chunks))
        disk = directory / DISK
        numbers = recovered.numbers
        if not disk.exists() or disk.stat().st_size != manifest.disk_bytes:
            numbers = frozenset()
        elif not recovered.trusted:
            numbers = matching_chunks(disk, manifest, numbers)
        if not numbers:
            disk.unlink(missing_ok=True)  # it may hold bytes of unfinished chunks, where zeros must read as zeros
        return make_plan(manifest, done=numbers, zero_digests=zero_digests(manifest))

    def _check_space(self, manifest: Manifest, plan: Plan) -> None:
        needed = plan.write_bytes + manifest.nvram.size
        free = shutil.disk_usage(self.store.root).free
        if needed > free - self.reserve_bytes:
            raise DiskTooSmallError(
                f"the image {manifest.digest} needs {needed // _MIB} MiB below {self.store.root}, where "
                f"{free // _MIB} MiB are free and {self.reserve_bytes // _MIB} MiB of them are kept in reserve",
                remedy="remove images with `hearth image rm`, or lower host.disk_reserve_mib",
            )

    async def _small(self, source: Source, blob: Blob, path: Path, meter: Meter) -> None:
        content = await self._verified(source, blob, meter)
        await in_thread(None, write_durably, path, content)
        meter.done(blob.size)

    async def _verified(self, source: Source, blob: Blob, meter: Meter) -> bytearray:
        content = bytearray(blob.size)

        async def read() -> None:
            if blob.size:
                await source.read(blob, 0, memoryview(content), meter.received)
            if await in_thread(None, digest_of, content) != blob.digest:
                raise TransferError(f"{source.name} sends another blob than {blob.digest}")

        await self.tools.retry.run(read)
        return content

    async def _disk_error(self, error: OSError, stage: Stage) -> StoreError | DiskTooSmallError:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return StoreError(f"the image store {self.store.root} cannot be written: {error}")
        # Kept for another try it would only keep the disk full.
        await in_thread(None, stage.discard)
        return DiskTooSmallError(f"the disk of {self.store.root} filled up during a pull", remedy="free space on it")


def _seal(manifest: Manifest, directory: Path) -> None:
    """Check what only the whole can tell, and write the manifest, last."""
    try:
        parse_vm_config((directory / CONFIG).read_bytes())
    except BadImageError as error:
        raise BadImageError(f"the image {manifest.digest} cannot be used here: {error.message}") from None
    (directory / "journal").unlink()
    write_durably(directory / MANIFEST, manifest.raw)
