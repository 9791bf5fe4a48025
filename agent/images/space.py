"""Which images to give up for room. Pure.

Space is counted in allocated bytes: a 100 GB disk with 20 GB of data takes 20 GB. What clones share counts in each of
them, so a removal frees at most what is counted here; whoever removes measures again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from agent.domain.model import Image

_GIB = 1 << 30
_MIB = 1 << 20
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Room:
    """The space of the store's volume, in bytes. `budget` is the most that images may take together, if set."""

    free: int
    reserve: int
    budget: int | None = None

    def missing(self, needed: int, images: Sequence[Image]) -> int:
        """Return how many bytes must go before `needed` more fit; 0 when they do."""
        short_on_disk = needed - (self.free - self.reserve)
        held = sum(image.allocated_bytes for image in images)
        short_in_budget = 0 if self.budget is None else held + needed - self.budget
        return max(0, short_on_disk, short_in_budget)


def victims(images: Sequence[Image], *, in_use: Collection[str], missing: int) -> Iterator[Image]:
    """Yield the images to remove one by one, least recently used first; none when all of them would not do.

    What was served last before the current version is the latest used of all that nobody uses, and so goes last.
    """
    idle = sorted((image for image in images if image.digest not in in_use), key=lambda image: image.last_used_at_s)
    if sum(image.allocated_bytes for image in idle) < missing:
        return
    for image in idle:
        if missing <= 0:
            return
        yield image
        missing -= image.allocated_bytes


def holders(images: Sequence[Image], in_use: Collection[str]) -> str:
    """Say in one line what holds the space, the largest first."""
    largest = sorted(images, key=lambda image: -image.allocated_bytes)
    parts = [
        f"{image.references[0] if image.references else image.digest[:19]} {size_text(image.allocated_bytes)}"
        f"{' (in use)' if image.digest in in_use else ''}"
        for image in largest[:_SHOWN]
    ]
    more = f" and {len(largest) - _SHOWN} more" if len(largest) > _SHOWN else ""
    return ", ".join(parts) + more if parts else "no image"


def size_text(count: int) -> str:
    """Return a number of bytes for people."""
    return f"{count / _GIB:.1f} GiB" if count >= 10 * _GIB else f"{count // _MIB} MiB"
