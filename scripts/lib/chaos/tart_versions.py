"""Unlimited image versions for a simulated Mac with Tart: good, unhealthy or dying guests from its registry."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Final

from scripts.lib.chaos.versions import DIES_AFTER_S, Flavour, Version

if TYPE_CHECKING:
    from scripts.lib.tart_backend import TartBackend

GUESTS: Final[dict[Flavour, dict[str, object]]] = {
    Flavour.GOOD: {},
    Flavour.UNHEALTHY: {"unhealthy": True},
    Flavour.DYING: {"panic_s": DIES_AFTER_S},
}


class TartVersions:
    """See `VersionSource`. Pushes to the backend's registry."""

    def __init__(self, backend: TartBackend) -> None:
        self._backend = backend
        self._numbers = itertools.count(1)

    async def build(self) -> None:
        """Start the registry. Guests are made when they are pushed."""
        await self._backend.open()

    async def push(self, flavour: Flavour) -> Version:
        """Push a new version."""
        tag = f"{flavour}-{next(self._numbers)}"
        reference, digest = self._backend.add_image(tag, **GUESTS[flavour])
        return Version(reference, digest, flavour)

    async def outage(self, lasts_s: float) -> None:
        """Empty the registry for some seconds."""
        registry = self._backend.registry
        held, registry.manifests = registry.manifests, {}
        try:
            await asyncio.sleep(lasts_s)
        finally:
            registry.manifests |= held
