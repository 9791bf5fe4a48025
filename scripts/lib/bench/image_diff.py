"""Difference of two image versions from their block indexes: changed compressed bytes by unit of change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.images.blockindex import ZERO_BLOCK, ChunkBlocks
from agent.images.lz4frame import BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agent.images.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Version:
    """One version of an image with its block index."""

    manifest: Manifest
    index: Sequence[ChunkBlocks | None]

    def blocks(self) -> Iterator[tuple[int, bytes, int]]:
        """Yield (offset on the disk, digest, compressed length) of every block of the image's indexed chunks."""
        for chunk, blocks in zip(self.manifest.chunks, self.index, strict=True):
            for number, (digest, length) in enumerate(blocks or ()):
                yield chunk.offset + number * BLOCK_BYTES, digest, length


def whole_bytes(new: Version, unit_bytes: int, old: Version) -> int:
    """Return the compressed bytes of the units of `unit_bytes` that differ from the old version at the same offset."""
    before = {offset: digest for offset, digest, _ in old.blocks()}
    units: dict[int, int] = {}
    changed: set[int] = set()
    for offset, digest, length in new.blocks():
        unit = offset // unit_bytes
        units[unit] = units.get(unit, 0) + length
        if before.get(offset, ZERO_BLOCK) != digest:
            changed.add(unit)
    after = {offset for offset, _, _ in new.blocks()}
    changed |= {offset // unit_bytes for offset in before.keys() - after}
    return sum(units.get(unit, 0) for unit in changed)


def changed_bytes(new: Version, old: Version) -> int:
    """Return the compressed bytes of the blocks that the old version does not contain at any offset."""
    known = {digest for _, digest, _ in old.blocks()} | {ZERO_BLOCK}
    missing = {digest: length for _, digest, length in new.blocks() if digest not in known}
    return sum(missing.values())
