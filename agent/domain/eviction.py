"""Selection of the image versions to evict when disk space is needed: the one rule for planner and pulls.

Space is counted in allocated bytes. Clones share blocks, so an eviction can free fewer bytes than counted here: callers
measure the volume again after each eviction and stop early or select again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from agent.domain.model import Image


def select_evictions(images: Iterable[Image], in_use: Collection[str], bytes_needed: int) -> tuple[Image, ...]:
    """Return as few images as free `bytes_needed`, least recently used first, except those with a digest in `in_use`.

    Returns every idle image when all of them together free less than that, and none when nothing is needed.
    """
    selected: list[Image] = []
    idle = (image for image in images if image.digest not in in_use)
    for image in sorted(idle, key=lambda image: (image.last_used_at_s, image.digest)):
        if bytes_needed <= 0:
            break
        selected.append(image)
        bytes_needed -= image.allocated_bytes
    return tuple(selected)
