"""Makes room for a pull before it starts, by our policy: Anka's own would remove what it likes."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog

from agent.images.errors import DiskTooSmallError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection
    from pathlib import Path

    from agent.anka.command import Anka
    from agent.images.anka.pull import Size
    from agent.images.anka.shelf import VersionShelf
    from agent.images.anka.version import Version

log = structlog.get_logger()

CACHE_S: Final = 120.0


def _none() -> Collection[str]:
    return ()


@dataclass(slots=True)
class Room:
    """Room for versions: a reserve kept free, and a budget for all of them together, in bytes.

    `in_use` names what may not go; `evict` removes a version from this host.
    """

    anka: Anka
    shelf: VersionShelf
    volume: Path
    reserve_bytes: int
    budget_bytes: int | None
    evict: Callable[[str], Awaitable[None]]
    in_use: Callable[[], Collection[str]] | None = field(default=None)

    async def make(self, version: Version, size: Size, measure: Callable[[Version], Awaitable[Size]]) -> None:
        """Make room for what is missing of a version, evicting the least recently used. Raises `DiskTooSmallError`.

        Nothing is evicted when all of it together would not do.
        """
        if not size.missing or not (short := await self._short(size)):
            return
        await self.anka.query("delete", "--cache", timeout_s=CACHE_S)
        idle = await self._idle(version)
        freeable = sum(idle.values())
        if short > freeable:
            message = (
                f"{version.template}:{version.tag} needs {short >> 20} MiB more, {freeable >> 20} MiB can be freed"
            )
            raise DiskTooSmallError(message, remedy="free some disk space, or lower host.disk_reserve_mib")
        for digest in idle:
            size = await measure(version)
            if not await self._short(size):
                return
            log.info("image-evicted-for-room", image=digest)
            await self.evict(digest)
        if short := await self._short(await measure(version)):
            message = f"{version.template}:{version.tag} needs {short >> 20} MiB more although all others are evicted"
            raise DiskTooSmallError(message, remedy="free some disk space")

    async def _short(self, size: Size) -> int:
        """Return how many bytes lack for what is missing."""
        available = size.available if size.available is not None else await asyncio.to_thread(_free, self.volume)
        lacking = size.missing + self.reserve_bytes - available
        if self.budget_bytes is not None:
            taken = sum(held.version.size_bytes for held in (await asyncio.to_thread(self.shelf.all)).values())
            lacking = max(lacking, taken + size.missing - self.budget_bytes)
        return max(0, lacking)

    async def _idle(self, version: Version) -> dict[str, int]:
        """Return what may go with its size, the least recently used first. Nothing until somebody says what is used."""
        if self.in_use is None:
            return {}
        used = set(await asyncio.to_thread(self.in_use))
        held = await asyncio.to_thread(self.shelf.all)
        return {
            digest: one.version.size_bytes
            for digest, one in held.items()
            if digest not in used and digest != version.digest
        }


def _free(volume: Path) -> int:
    told = os.statvfs(volume)
    return told.f_bavail * told.f_frsize
