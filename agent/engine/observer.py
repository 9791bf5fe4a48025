"""What the engine last saw context: the hypervisor's listing, local images, disk space. Refreshed at a slow tick."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from agent.domain.errors import HearthError
from agent.domain.model import Image, Listing
from agent.host.disk_space import DiskUsage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agent.hypervisors.contract import HealthFact, Hypervisor
    from agent.images.contract import Images

log = structlog.get_logger()

TIMEOUT_S: Final = 30.0
DISK_UNKNOWN: Final = DiskUsage(0, 0, 0)


class Observer:
    """The latest look context. What cannot be seen keeps its last value and has its reason in `problems`."""

    def __init__(self, hypervisor: Hypervisor, images: Images, measure: Callable[[], DiskUsage]) -> None:
        self._hypervisor = hypervisor
        self._images = images
        self._measure = measure
        self._listing: Listing | None = None
        self.images: tuple[Image, ...] = ()
        self.templates: frozenset[str] = frozenset()
        self.disk = DISK_UNKNOWN
        self.foreign_slots = 0
        self.health: tuple[HealthFact, ...] = ()
        self.problems: dict[str, str] = {}

    async def look(self, known: Callable[[], frozenset[str]], busy: Callable[[], frozenset[str]]) -> None:
        """Look at everything. `known` and `busy` tell which VMs the journal knows and which are being worked on."""
        await self._guard("HypervisorResponding", self._list(known(), busy()))
        await self._guard("HypervisorHealthKnown", self._ask_health())
        await self.look_at_stock()

    async def look_at_stock(self) -> None:
        """Look at what VMs are made from: the local images and the templates, and the space that is left for them.

        The space comes first: an image that is gone must not be missed where its space is not seen to be free yet.
        """
        await self._guard("DiskMeasured", self._measure_disk())
        await self._guard("ImageStoreReadable", self._list_images())
        if self._hypervisor.capabilities.templates:
            await self._guard("HypervisorResponding", self._list_templates())

    def take_listing(self) -> Listing | None:
        """Return the newest listing once: acting twice on one listing would act on what was already changed."""
        listing, self._listing = self._listing, None
        return listing

    def put_back(self, listing: Listing | None) -> None:
        """Return a listing that could not be acted on, unless there is a newer one."""
        self._listing = self._listing or listing

    async def _list(self, known: frozenset[str], busy: frozenset[str]) -> None:
        seen = await self._hypervisor.inventory()
        self._listing = Listing(seen, known, known - busy)
        if self._hypervisor.capabilities.counts_foreign_slots:
            self.foreign_slots = sum(one.running and not one.ours for one in seen)

    async def _ask_health(self) -> None:
        self.health = await self._hypervisor.health()

    async def _list_images(self) -> None:
        self.images = await self._images.list()

    async def _list_templates(self) -> None:
        self.templates = await self._hypervisor.templates()

    async def _measure_disk(self) -> None:
        self.disk = await asyncio.to_thread(self._measure)

    async def _guard(self, what: str, looking: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await looking
        except TimeoutError:
            self.problems[what] = f"no answer within {TIMEOUT_S:g} s"
        except (HearthError, OSError) as error:
            self.problems[what] = str(error)
        else:
            self.problems.pop(what, None)
            return
        log.warning("cannot-look", what=what, error=self.problems[what])
