"""Disk space for pulls of Anka templates: free it by the agent's policy before `anka pull` frees it by its own."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog

from agent.images.errors import DiskTooSmallError
from agent.images.space_manager import format_bytes, select_sufficient_evictions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection
    from pathlib import Path

    from agent.anka.command import Anka
    from agent.domain.model import Image
    from agent.images.anka.version import DownloadSize, Version
    from agent.images.anka.version_records import VersionRecords

log = structlog.get_logger()

CACHE_TIMEOUT_S: Final = 120.0


@dataclass(slots=True)
class AnkaSpaceManager:
    """Keeps a reserve free on the volume, and all versions together within a budget. Both are in bytes.

    `in_use` returns the digests that must stay; if it is None, no version is evicted. `evict` removes a version from
    this host.
    """

    anka: Anka
    records: VersionRecords
    volume: Path
    reserve_bytes: int
    budget_bytes: int | None
    evict: Callable[[str], Awaitable[None]]
    in_use: Callable[[], Collection[str]] | None = field(default=None)

    async def ensure_space(
        self, version: Version, size: DownloadSize, measure: Callable[[Version], Awaitable[DownloadSize]]
    ) -> None:
        """Free space until the missing bytes of a version fit. `measure` queries `anka` for its current size.

        Anka's download cache is deleted first. Raises `DiskTooSmallError`, without evicting any version, if all idle
        versions together hold too little.
        """
        if not size.missing or not await self._shortfall(size):
            return
        await self.anka.query("delete", "--cache", timeout_s=CACHE_TIMEOUT_S)
        evicted: set[str] = set()
        while shortfall := await self._shortfall(await measure(version)):
            idle = await asyncio.to_thread(self._idle_images, {version.digest, *evicted})
            evictions = select_sufficient_evictions(idle, (), shortfall)
            if not evictions:
                freeable = sum(image.allocated_bytes for image in idle)
                raise DiskTooSmallError(
                    f"{version.template}:{version.tag} needs {format_bytes(shortfall)} more disk space, "
                    f"only {format_bytes(freeable)} can be freed",
                    remedy="free some disk space, or lower host.disk_reserve_mib",
                )
            log.info("image-evicted-for-pull", image=evictions[0].digest, needed_for=version.digest)
            await self.evict(evictions[0].digest)
            evicted.add(evictions[0].digest)

    async def _shortfall(self, size: DownloadSize) -> int:
        """Return how many bytes must be freed before the missing bytes fit; 0 if they fit now."""
        available = size.available if size.available is not None else await asyncio.to_thread(_free_bytes, self.volume)
        shortfall = size.missing + self.reserve_bytes - available
        if self.budget_bytes is not None:
            records = await asyncio.to_thread(self.records.all)
            held = sum(record.version.size_bytes for record in records.values())
            shortfall = max(shortfall, held + size.missing - self.budget_bytes)
        return max(0, shortfall)

    def _idle_images(self, kept: Collection[str]) -> tuple[Image, ...]:
        if self.in_use is None:
            return ()
        return self.records.images(self.records.all().keys() - {*kept, *self.in_use()})


def _free_bytes(volume: Path) -> int:
    status = os.statvfs(volume)
    return status.f_bavail * status.f_frsize
