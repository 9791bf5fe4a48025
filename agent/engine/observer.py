"""The observer: the last known list of VMs, local images, templates and disk space. Refreshed periodically."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from agent.domain.errors import HearthError
from agent.domain.text import clip
from agent.domain.world import Listing
from agent.host.disk_space import DiskUsage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agent.domain.model import Image
    from agent.hypervisors.contract import HealthFact, Hypervisor
    from agent.images.contract import Images

log = structlog.get_logger()

TIMEOUT_S: Final = 30.0
DISK_UNKNOWN: Final = DiskUsage(0, 0, 0)


class Observer:
    """The latest observations. One that fails keeps its last value and has its error in `problems`."""

    def __init__(self, hypervisor: Hypervisor, images: Images, measure: Callable[[], DiskUsage]) -> None:
        self._hypervisor = hypervisor
        self._images = images
        self._measure = measure
        self._listing: Listing | None = None
        self.images: tuple[Image, ...] = ()
        self.templates: frozenset[str] = frozenset()
        self.disk = DISK_UNKNOWN
        self.foreign_slots = 0
        self.unknown_vms: frozenset[str] = frozenset()
        self.health: tuple[HealthFact, ...] = ()
        self._problems: dict[tuple[str, str], str] = {}  # by condition type and what was observed

    @property
    def problems(self) -> dict[str, str]:
        """The errors of the observations that failed last time, by condition type."""
        return {condition: problem for (condition, _), problem in self._problems.items()}

    async def observe(self, known: Callable[[], frozenset[str]], busy: Callable[[], frozenset[str]]) -> None:
        """Refresh everything. `known` returns the VMs in the journal, `busy` the resources with an effect under way."""
        await self._guard("HypervisorResponding", "list", self._list(known(), busy()))
        await self._guard("HypervisorHealthKnown", "health", self._check_health())
        await self.observe_storage()

    async def observe_storage(self) -> None:
        """Refresh the free space, the local images and the templates.

        The space comes first: between the two, an evicted image must not be absent while its space still counts as
        used."""
        await self._guard("DiskMeasured", "disk", self._measure_disk())
        await self._guard("ImageStoreReadable", "images", self._list_images())
        if self._hypervisor.capabilities.templates:
            await self._guard("HypervisorResponding", "templates", self._list_templates())

    def take_listing(self) -> Listing | None:
        """Return the newest listing once: a second plan on it would act on VMs that changed since."""
        listing, self._listing = self._listing, None
        return listing

    def restore_listing(self, listing: Listing | None) -> None:
        """Restore a listing that no plan acted on, unless there is a newer one."""
        self._listing = self._listing or listing

    async def _list(self, known: frozenset[str], busy: frozenset[str]) -> None:
        seen = await self._hypervisor.inventory()
        self._listing = Listing(seen, known, known - busy)
        if self._hypervisor.capabilities.counts_foreign_slots:
            self.foreign_slots = sum(vm.running and not vm.ours and vm.name not in known for vm in seen)
        self.unknown_vms = frozenset(vm.name for vm in seen if vm.ours and vm.running and vm.name not in known)

    async def _check_health(self) -> None:
        self.health = await self._hypervisor.health()

    async def _list_images(self) -> None:
        self.images = await self._images.list()

    async def _list_templates(self) -> None:
        self.templates = await self._hypervisor.templates()

    async def _measure_disk(self) -> None:
        self.disk = await asyncio.to_thread(self._measure)

    async def _guard(self, condition: str, subject: str, observation: Awaitable[None]) -> None:
        key = condition, subject  # two observations share a condition: a success of one is not the other's
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await observation
        except TimeoutError:
            self._problems[key] = f"no answer within {TIMEOUT_S:g} s"
        except (HearthError, OSError) as error:
            self._problems[key] = clip(str(error))
        except Exception as error:  # an answer of a tool that its driver cannot read must not end the agent
            log.exception("observation-raised", condition=condition)
            self._problems[key] = clip(f"the answer could not be processed: {error!r}")
        else:
            self._problems.pop(key, None)
            return
        log.warning("observation-failed", condition=condition, error=self._problems[key])
