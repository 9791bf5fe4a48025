"""Which chunks of an image need work at all, and in what portions that is planned. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from agent.images.blockindex import ChunkBlocks
    from agent.images.manifest import Manifest

FIRST_BLOCKS: Final = 2_000
"""The first portion is small, so that bytes move while the rest is planned."""
PORTION_BLOCKS: Final = 100_000
"""What is known of single blocks is held for one portion at a time: 80 GB have a million of them."""


@dataclass(frozen=True, slots=True)
class Outline:
    """The chunks of an image: in place already, left as holes, and missing, those with equal bytes together."""

    done: frozenset[int]
    holes: tuple[int, ...]
    missing: tuple[tuple[int, ...], ...]

    def write_bytes(self, manifest: Manifest) -> int:
        """Return the most bytes that can land on the disk."""
        return sum(manifest.chunks[number].raw_size for numbers in self.missing for number in numbers)

    def bytes_here(self, manifest: Manifest) -> int:
        """Return the compressed size of the chunks that need no work."""
        return sum(manifest.chunks[number].blob.size for number in (*self.done, *self.holes))


def make_outline(manifest: Manifest, *, done: Collection[int] = (), zero_digests: Mapping[int, str]) -> Outline:
    """Tell what is missing. `done` are the chunks in place, `zero_digests` what zeros hash to, by size."""
    missing: dict[str, list[int]] = {}
    holes: list[int] = []
    for number, chunk in enumerate(manifest.chunks):
        if number in done:
            continue
        if zero_digests.get(chunk.raw_size) == chunk.raw_digest:
            holes.append(number)
        else:
            missing.setdefault(chunk.raw_digest, []).append(number)
    return Outline(frozenset(done), tuple(holes), tuple(map(tuple, missing.values())))


def portions(
    missing: Sequence[tuple[int, ...]], index: Sequence[ChunkBlocks | None]
) -> Iterator[list[tuple[int, ...]]]:
    """Yield the missing chunks portion by portion, counted in blocks that the index knows of."""
    portion: list[tuple[int, ...]] = []
    blocks, most = 0, FIRST_BLOCKS
    for numbers in missing:
        known = index[numbers[0]] if index else None
        portion.append(numbers)
        blocks += len(known.lengths) if known else 0
        if blocks >= most:
            yield portion
            portion, blocks, most = [], 0, PORTION_BLOCKS
    if portion:
        yield portion
