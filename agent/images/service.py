"""The image service: one object over store, puller and pusher."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from os import cpu_count
from typing import TYPE_CHECKING, Self

import structlog

from agent.images.concurrency import retry_while_busy
from agent.images.download import TransferTools
from agent.images.errors import BadReferenceError, CorruptImageError
from agent.images.fsck import Finding, check_store
from agent.images.image_index import select_entry
from agent.images.liblz4 import best_codec
from agent.images.manifest import digest_of
from agent.images.pull import Puller
from agent.images.pull_progress import PullProgressTracker
from agent.images.push import Pusher
from agent.images.reference import parse_reference
from agent.images.repositories import Repositories
from agent.images.reuse_index import ReuseIndex
from agent.images.shared_pulls import SharedPulls
from agent.images.space_manager import SpaceManager
from agent.images.store import ImageStore, Store, local_image
from agent.images.tarthome import TartHome
from agent.images.transfer_limits import RetryPolicy
from agent.processes.threads import run_in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection
    from pathlib import Path

    from agent.config import Config
    from agent.domain.model import Image, LocalImage
    from agent.images.contract import PullProgress
    from agent.images.push import PushProgress
    from agent.images.reference import Reference
    from agent.images.shared_pulls import PullStart
    from agent.images.vmconfig import Hardware
    from agent.processes.command import CommandRunner

log = structlog.get_logger()


@dataclass(slots=True)
class ImageService:
    """Implements `agent.images.contract.Images`, and pushes, checks and searches for the command line."""

    store: Store
    reuse_index: ReuseIndex
    repositories: Repositories
    tools: TransferTools
    space: SpaceManager
    _pulls: SharedPulls = field(default_factory=SharedPulls)

    @classmethod
    def build(
        cls,
        config: Config,
        *,
        store: Store | None = None,
        repositories: Repositories | None = None,
        retry: RetryPolicy | None = None,
        runner: CommandRunner | None = None,
    ) -> Self:
        """Return the service for a configuration, over the hypervisor's store or `store`. Does no I/O yet."""
        executor = ThreadPoolExecutor(max_workers=max(2, cpu_count() or 1), thread_name_prefix="images")
        store = store or _store_for(config)
        reuse_index = ReuseIndex(store)
        return cls(
            store=store,
            reuse_index=reuse_index,
            repositories=repositories
            or Repositories(config.images.registries, bytes_per_s=_bytes_per_s(config), runner=runner),
            tools=TransferTools(executor, best_codec(), retry or RetryPolicy(), config.images.streams),
            space=SpaceManager(
                store,
                reuse_index,
                reserve_bytes=config.host.disk_reserve_mib << 20,
                budget_bytes=None if config.images.budget_mib is None else config.images.budget_mib << 20,
            ),
        )

    async def open(self) -> None:
        """Prepare the store and remove old interrupted pulls."""
        await run_in_thread(self.store.prepare)
        await run_in_thread(self.store.staging.sweep)
        await run_in_thread(self.reuse_index.prepare)

    async def close(self) -> None:
        """Cancel running pulls, which can resume later, and close all connections."""
        await self._pulls.cancel_all()
        await self.repositories.close()
        self.tools.executor.shutdown(wait=False)

    async def resolve(self, reference: str) -> str:
        """See `Images.resolve`. A reference with a digest needs no request if the image is on this host."""
        parsed = parse_reference(reference)
        target = parsed.target
        if parsed.digest and (local := await run_in_thread(self.store.find, parsed)) is not None:
            return local
        source = self.repositories.open(parsed)
        claimed = parsed.digest or await self.tools.retry.run(lambda: source.digest(target))
        if claimed is not None and await run_in_thread(self.store.has, claimed):
            return claimed
        raw = await self.tools.retry.run(lambda: source.manifest(target))
        if parsed.digest and digest_of(raw) != parsed.digest:
            raise CorruptImageError(f"{source.name} sent a manifest whose digest is not {parsed.digest}")
        return select_entry(raw, str(parsed)) or digest_of(raw)

    async def pull(self, reference: str, digest: str) -> None:
        """See `Images.pull`."""
        parsed = parse_reference(reference)
        if not await run_in_thread(self.store.has, digest):
            await self._pulls.join(digest, lambda: self._start_pull(reference, parsed, digest))
        await retry_while_busy(self.store.remember, parsed, digest)

    def progress(self) -> tuple[PullProgress, ...]:
        """See `Images.progress`."""
        return self._pulls.progress()

    async def list(self) -> tuple[Image, ...]:
        """See `Images.list`."""
        return await run_in_thread(self.store.list)

    async def local(self, digest: str) -> LocalImage:
        """See `Images.local`."""
        return await run_in_thread(self._mark_used, digest)

    async def remove(self, digest: str) -> None:
        """See `Images.remove`."""
        await run_in_thread(self.store.remove, digest)
        await run_in_thread(self.reuse_index.drop, digest)
        log.info("image-removed", image=digest)

    def protect(self, in_use: Callable[[], Collection[str]]) -> None:
        """See `Images.protect`."""
        self.space.in_use = in_use

    def limit_bandwidth(self, bytes_per_s: float | None) -> None:
        """See `Images.limit_bandwidth`. Applies to running pulls too."""
        self.repositories.bandwidth.bytes_per_s = bytes_per_s

    async def check(self, *, repair: bool) -> tuple[Finding, ...]:
        """Check every image byte for byte. With `repair`, remove damaged images and rebuild the indexes."""
        check = partial(check_store, self.store, self.reuse_index, self.tools.executor, repair=repair)
        return await run_in_thread(check)

    async def find(self, text: str) -> str | None:
        """Return the digest of the local image that a reference names, without a request to a registry."""
        return await run_in_thread(self.store.find, parse_reference(text))

    async def push(
        self,
        disk: Path,
        reference: str,
        *,
        hardware: Hardware,
        nvram: bytes = b"",
        mount_from: str | None = None,
        progress: Callable[[PushProgress], None] = lambda _: None,
    ) -> str:
        """Push a raw disk under a tag and return the image's digest. See `Pusher.push`."""
        parsed = parse_reference(reference)
        if parsed.tag is None or parsed.digest is not None:
            raise BadReferenceError(
                f"{reference!r} names a digest", remedy="push to a tag; the digest results from the content"
            )
        sink = self.repositories.open(parsed)
        return await Pusher(self.tools).push(
            disk, sink, parsed.tag, hardware=hardware, nvram=nvram, mount_from=mount_from, progress=progress
        )

    def _start_pull(self, text: str, reference: Reference, digest: str) -> PullStart:
        source = self.repositories.open(reference)
        tracker = PullProgressTracker(text, digest, source=source.name)
        puller = Puller(self.store, self.reuse_index, self.tools, self.space)
        return puller.pull(source, reference, digest, tracker), tracker

    def _mark_used(self, digest: str) -> LocalImage:
        self.store.touch(digest)
        return local_image(self.store, digest)


def _store_for(config: Config) -> Store:
    """Return the store for the configured hypervisor. Tart only clones from its own cache."""
    if config.hypervisor.driver == "tart":
        return TartHome(config.hypervisor.tart.home_path)
    return ImageStore(config.data_dir / "images")


def _bytes_per_s(config: Config) -> float | None:
    cap = config.images.bandwidth_mib_per_s
    return None if cap is None else cap * (1 << 20)


@asynccontextmanager
async def open_images(config: Config, *, runner: CommandRunner | None = None) -> AsyncIterator[ImageService]:
    """Open the image service of a configuration, and close it at exit; `runner` runs its external commands."""
    service = ImageService.build(config, runner=runner)
    try:
        await service.open()
        yield service
    finally:
        await service.close()
