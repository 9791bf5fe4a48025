"""The images package as the engine sees it: one object over store, puller and pusher."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from os import cpu_count
from typing import TYPE_CHECKING, Self

import structlog

from agent.images.download import Tools
from agent.images.errors import BadReferenceError
from agent.images.fsck import Finding, check_store
from agent.images.liblz4 import best_codec
from agent.images.manifest import digest_of
from agent.images.meter import Meter
from agent.images.places import Places
from agent.images.pull import Puller
from agent.images.push import Pusher
from agent.images.reference import parse_reference
from agent.images.retry import Retry
from agent.images.room import RoomMaker
from agent.images.shelf import Shelf
from agent.images.store import ImageStore, Store, local_image
from agent.images.tarthome import TartHome
from agent.images.threads import in_thread, when_free

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection
    from pathlib import Path

    from agent.config import Config
    from agent.domain.model import Image, LocalImage
    from agent.images.contract import PullProgress
    from agent.images.push import PushProgress
    from agent.images.vmconfig import Hardware
    from agent.processes.command import CommandRunner

log = structlog.get_logger()


@dataclass(slots=True)
class _Flight:
    """One pull under way, with everyone who waits for it."""

    task: asyncio.Task[None]
    meter: Meter
    waiters: int = 0


@dataclass(slots=True)
class ImageService:
    """The image store with its puller (`agent.images.contract.Images`), and what the command line needs besides."""

    store: Store
    shelf: Shelf
    places: Places
    tools: Tools
    room: RoomMaker
    _flights: dict[str, _Flight] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        config: Config,
        *,
        store: Store | None = None,
        places: Places | None = None,
        retry: Retry | None = None,
        runner: CommandRunner | None = None,
    ) -> Self:
        """Return the service of a configuration, over the hypervisor's store or another. Touches nothing yet."""
        executor = ThreadPoolExecutor(max_workers=max(2, cpu_count() or 1), thread_name_prefix="images")
        store = store or _store_of(config)
        shelf = Shelf(store)
        return cls(
            store=store,
            shelf=shelf,
            places=places or Places(config.images.registries, bytes_per_s=_bytes_per_s(config), runner=runner),
            tools=Tools(executor, best_codec(), retry or Retry(), config.images.streams),
            room=RoomMaker(
                store,
                shelf,
                reserve_bytes=config.host.disk_reserve_mib << 20,
                budget_bytes=None if config.images.budget_mib is None else config.images.budget_mib << 20,
            ),
        )

    async def open(self) -> None:
        """Make the store ready and sweep what interrupted pulls left long ago."""
        await in_thread(None, self.store.prepare)
        await in_thread(None, self.store.staging.sweep)
        await in_thread(None, self.shelf.prepare)

    async def close(self) -> None:
        """End pulls under way, which go on where they are next time, and close all connections."""
        flights = [flight.task for flight in self._flights.values()]
        for task in flights:
            task.cancel()
        await asyncio.gather(*flights, return_exceptions=True)
        await self.places.close()
        self.tools.executor.shutdown(wait=False)

    async def resolve(self, reference: str) -> str:
        """See `Images.resolve`. A pinned digest asks nobody."""
        parsed = parse_reference(reference)
        if parsed.digest:
            return parsed.digest
        source = self.places.open(parsed)
        tag = parsed.target
        claimed = await self.tools.retry.run(lambda: source.digest(tag))
        if claimed is not None and await in_thread(None, self.store.has, claimed):
            return claimed
        return digest_of(await self.tools.retry.run(lambda: source.manifest(tag)))

    async def pull(self, reference: str, digest: str) -> None:
        """See `Images.pull`."""
        parsed = parse_reference(reference)
        if not await in_thread(None, self.store.has, digest):
            flight = self._flights.get(digest)
            if flight is None:
                flight = self._start(reference, digest)
            await self._wait(flight)
        await when_free(self.store.remember, parsed, digest)

    def progress(self) -> tuple[PullProgress, ...]:
        """See `Images.progress`."""
        return tuple(flight.meter.snapshot() for flight in self._flights.values())

    async def list(self) -> tuple[Image, ...]:
        """See `Images.list`."""
        return await in_thread(None, self.store.list)

    async def local(self, digest: str) -> LocalImage:
        """See `Images.local`."""
        return await in_thread(None, self._use, digest)

    async def remove(self, digest: str) -> None:
        """See `Images.remove`."""
        await in_thread(None, self.store.remove, digest)
        await in_thread(None, self.shelf.drop, digest)
        log.info("image-removed", image=digest)

    def protect(self, in_use: Callable[[], Collection[str]]) -> None:
        """Let pulls remove images for room, least recently used first, but never one that `in_use` names.

        Until this is called nothing is removed by itself. `in_use` is called in threads, at any time.
        """
        self.room.in_use = in_use

    def limit_bandwidth(self, bytes_per_s: float | None) -> None:
        """Cap what all pulls take of the network together, those under way included; None lifts the cap."""
        self.places.throttle.bytes_per_s = bytes_per_s

    async def check(self, *, repair: bool) -> tuple[Finding, ...]:
        """Check every image byte for byte; with `repair` remove damaged ones and make the indexes anew."""
        return await in_thread(None, check_store, self.store, self.shelf, self.tools.executor, repair=repair)

    async def find(self, text: str) -> str | None:
        """Return the digest of what is whole here under a reference or digest, without asking any registry."""
        return await in_thread(None, self.store.find, parse_reference(text))

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
        """Push a raw disk under a tag and return the image's digest."""
        parsed = parse_reference(reference)
        if parsed.tag is None:
            raise BadReferenceError(f"{reference!r} names a digest", remedy="push to a tag: the digest comes of it")
        sink = self.places.open(parsed)
        return await Pusher(self.tools).push(
            disk, sink, parsed.tag, hardware=hardware, nvram=nvram, mount_from=mount_from, progress=progress
        )

    def _start(self, reference: str, digest: str) -> _Flight:
        parsed = parse_reference(reference)
        source = self.places.open(parsed)
        meter = Meter(reference, digest, source=source.name)
        puller = Puller(self.store, self.shelf, self.tools, self.room)
        task = asyncio.create_task(puller.pull(source, parsed, digest, meter), name=f"pull {digest}")
        flight = _Flight(task, meter)
        self._flights[digest] = flight
        task.add_done_callback(lambda _: self._flights.pop(digest, None))
        return flight

    def _use(self, digest: str) -> LocalImage:
        self.store.touch(digest)
        return local_image(self.store, digest)

    async def _wait(self, flight: _Flight) -> None:
        """Wait with all others for one pull; when the last of them gives up, the pull ends too."""
        flight.waiters += 1
        try:
            await asyncio.shield(flight.task)
        finally:
            flight.waiters -= 1
            if not flight.waiters and not flight.task.done():
                flight.task.cancel()
                await asyncio.gather(flight.task, return_exceptions=True)


def _store_of(config: Config) -> Store:
    """Return where images must lie for the configured hypervisor: Tart only clones from its own cache."""
    if config.hypervisor.driver == "tart":
        return TartHome(config.hypervisor.tart.home_path)
    return ImageStore(config.data_dir / "images")


def _bytes_per_s(config: Config) -> float | None:
    cap = config.images.bandwidth_mib_per_s
    return None if cap is None else cap * (1 << 20)


@asynccontextmanager
async def open_images(config: Config, *, runner: CommandRunner | None = None) -> AsyncIterator[ImageService]:
    """Open the image service of a configuration for as long as it is needed; `runner` runs its external commands."""
    service = ImageService.build(config, runner=runner)
    try:
        await service.open()
        yield service
    finally:
        await service.close()
