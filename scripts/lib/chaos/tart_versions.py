"""Image versions without end for a simulated Mac with Tart: guests that are good, sick or dying, from its registry."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Final

from scripts.lib.chaos.versions import DIES_AFTER_S, Flavour, Version

if TYPE_CHECKING:
    from scripts.lib.tart_ground import TartGround

GUESTS: Final[dict[Flavour, dict[str, object]]] = {
    Flavour.GOOD: {},
    Flavour.SICK: {"sick": True},
    Flavour.DYING: {"panic_s": DIES_AFTER_S},
}
TOOL_S: Final = 5.0
"""What one command of Tart's may take on a host of chaos."""
TOOL_FAULTS: Final[tuple[tuple[str, dict[str, object], int], ...]] = (
    ("clone", {"hang": True}, 1),
    ("clone", {"hang_on_term": True}, 1),
    ("clone", {"slow_s": 1}, 2),
    ("clone", {"half_done": True}, 2),
    ("clone", {"die_at": "copied nvram.bin"}, 2),
    ("clone", {"die_at": "moved"}, 2),
    ("set", {"garbage": True}, 2),
    ("run", {"hang": True}, 1),
    ("run", {"garbage": True}, 2),
    ("run", {"die_at": "slot taken"}, 2),
    ("run", {"die_at": "listening"}, 2),
    ("delete", {"hang_on_term": True}, 1),
    ("delete", {"die_at": "found"}, 2),
)
"""A command of Tart's, a fault of it (`tests.simulators.tartsim.faults`), and how often it happens in a round."""


class TartVersions:
    """Like `Versions`, in the registry of the ground."""

    def __init__(self, ground: TartGround) -> None:
        self._ground = ground
        self._numbers = itertools.count(1)

    async def build(self) -> None:
        """Start the registry; guests are made when they are pushed."""
        await self._ground.open()

    async def push(self, flavour: Flavour) -> Version:
        """Push a version that nobody has seen."""
        tag = f"{flavour}-{next(self._numbers)}"
        reference, digest = self._ground.add_image(tag, **GUESTS[flavour])
        return Version(reference, digest, flavour)

    async def outage(self, lasts_s: float) -> None:
        """Let the registry hold nothing for some seconds."""
        registry = self._ground.registry
        held, registry.manifests = registry.manifests, {}
        try:
            await asyncio.sleep(lasts_s)
        finally:
            registry.manifests |= held
