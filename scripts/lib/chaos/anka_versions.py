"""Unlimited image versions for a simulated Mac with Anka: good, unhealthy or dying tags from its Registry."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Final

from scripts.lib.chaos.versions import DIES_AFTER_S, Flavour, Version

if TYPE_CHECKING:
    from scripts.lib.anka_backend import AnkaBackend

GUESTS: Final[dict[Flavour, dict[str, object]]] = {
    Flavour.GOOD: {},
    Flavour.UNHEALTHY: {"unhealthy": True},
    Flavour.DYING: {"dies_after_s": DIES_AFTER_S},
}


class AnkaVersions:
    """See `VersionSource`. Pushes to the backend's Registry."""

    def __init__(self, backend: AnkaBackend) -> None:
        self._backend = backend
        self._numbers = itertools.count(1)

    async def build(self) -> None:
        """Start the Registry. Guests are made when they are pushed."""
        await self._backend.open()

    async def push(self, flavour: Flavour) -> Version:
        """Push a new tag."""
        tag = f"{flavour}-{next(self._numbers)}"
        reference = self._backend.add_image(tag, **GUESTS[flavour])
        return Version(reference, self._backend.digest(tag), flavour)

    async def outage(self, lasts_s: float) -> None:
        """Empty the Registry for some seconds."""
        registry = self._backend.registry
        held, registry.templates = registry.templates, {}
        try:
            await asyncio.sleep(lasts_s)
        finally:
            registry.templates = held | registry.templates
