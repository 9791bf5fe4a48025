"""Disk space for pulls: free it by removing interrupted pulls and evicting idle images, or refuse the pull.

Space is counted in allocated bytes: a 100 GB disk with 20 GB of data takes 20 GB. Blocks that clones share count in
each clone, so an eviction frees at most its counted bytes. Therefore the volume is measured again after each eviction.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from agent.domain.eviction import select_evictions
from agent.images.errors import DiskTooSmallError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from agent.domain.model import Image
    from agent.images.reuse_index import ReuseIndex
    from agent.images.store import Store

log = structlog.get_logger()

_GIB = 1 << 30
_MIB = 1 << 20
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class StoreSpace:
    """The free bytes of the store's volume, the bytes to keep free, and the budget of all images, if one is set."""

    free: int
    reserve: int
    budget: int | None = None

    def shortfall(self, needed: int, images: Sequence[Image]) -> int:
        """Return how many bytes must be freed before `needed` more bytes fit; 0 if they fit now."""
        short_on_disk = needed - (self.free - self.reserve)
        held = sum(image.allocated_bytes for image in images)
        short_in_budget = 0 if self.budget is None else held + needed - self.budget
        return max(0, short_on_disk, short_in_budget)


@dataclass(slots=True)
class SpaceManager:
    """Keeps the store within its volume and its budget.

    `in_use` returns the digests that must stay: of assigned images, of VMs, and of serving images. If it is None, for
    example in a command while an agent may be running, no image is evicted.
    """

    store: Store
    reuse_index: ReuseIndex
    reserve_bytes: int
    budget_bytes: int | None = None
    in_use: Callable[[], Collection[str]] | None = None

    def ensure_space(self, digest: str, needed: int) -> None:
        """Free space until `needed` bytes of the image `digest` fit, also on an almost full disk. Blocks.

        Interrupted pulls are removed first. Raises `DiskTooSmallError`, without evicting any image, if all idle images
        together hold too little.
        """
        if not self._shortfall(needed):
            return
        self.store.staging.sweep(older_than_s=0)
        kept = {digest, *(self.in_use() if self.in_use is not None else self.store.digests())}
        while shortfall := self._shortfall(needed):
            evictions = select_sufficient_evictions(self.store.list(), kept, shortfall)
            if not evictions:
                raise self._refusal(digest, needed, kept if self.in_use is not None else ())
            self._evict(evictions[0], digest)
            kept.add(evictions[0].digest)

    def _evict(self, image: Image, needed_for: str) -> None:
        self.store.remove(image.digest)
        self.reuse_index.drop(image.digest)
        log.info(
            "image-evicted-for-pull", image=image.digest, allocated_bytes=image.allocated_bytes, needed_for=needed_for
        )

    def _space(self) -> StoreSpace:
        return StoreSpace(shutil.disk_usage(self.store.root).free, self.reserve_bytes, self.budget_bytes)

    def _shortfall(self, needed: int) -> int:
        return self._space().shortfall(needed, self.store.list())

    def _refusal(self, digest: str, needed: int, in_use: Collection[str]) -> DiskTooSmallError:
        space = self._space()
        budget = f", and the budget of all images is {format_bytes(space.budget)}" if space.budget is not None else ""
        return DiskTooSmallError(
            f"the image {digest} needs {format_bytes(needed)} below {self.store.root}, but "
            f"{format_bytes(space.free)} are free, of which {format_bytes(space.reserve)} are reserved{budget}; "
            f"the space is held by {describe_largest(self.store.list(), in_use)}",
            remedy="remove images with `hearth image rm`, or lower host.disk_reserve_mib",
        )


def select_sufficient_evictions(images: Sequence[Image], in_use: Collection[str], shortfall: int) -> tuple[Image, ...]:
    """Return the images to evict for a pull; none if all idle images together hold less than `shortfall` bytes.

    In that case the pull is refused anyway, and an eviction would only cost a later pull.
    """
    evictions = select_evictions(images, in_use, shortfall)
    return evictions if sum(image.allocated_bytes for image in evictions) >= shortfall else ()


def describe_largest(images: Sequence[Image], in_use: Collection[str]) -> str:
    """Return the largest images with their sizes in one line, the largest first."""
    largest = sorted(images, key=lambda image: -image.allocated_bytes)
    parts = [
        f"{image.references[0] if image.references else image.digest[:19]} {format_bytes(image.allocated_bytes)}"
        f"{' (in use)' if image.digest in in_use else ''}"
        for image in largest[:_SHOWN]
    ]
    more = f" and {len(largest) - _SHOWN} more" if len(largest) > _SHOWN else ""
    return ", ".join(parts) + more if parts else "no image"


def format_bytes(count: int) -> str:
    """Return a number of bytes in GiB or MiB, for messages."""
    return f"{count / _GIB:.1f} GiB" if count >= 10 * _GIB else f"{count // _MIB} MiB"
