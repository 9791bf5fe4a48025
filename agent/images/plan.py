"""What to do for each chunk of an image, decided from its manifest and what is here already. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from agent.images.manifest import Blob, Chunk, Manifest


@dataclass(frozen=True, slots=True)
class Fetch:
    """Fetch one blob and write what it decodes to wherever the disk holds it: equal chunks move once."""

    chunk: Chunk
    numbers: tuple[int, ...]
    offsets: tuple[int, ...]

    @property
    def blob(self) -> Blob:
        """The blob to fetch."""
        return self.chunk.blob


@dataclass(frozen=True, slots=True)
class Plan:
    """A pull, decided. Chunks that are neither in `done` nor in a fetch are holes."""

    fetches: tuple[Fetch, ...]
    done: frozenset[int]

    @property
    def fetch_bytes(self) -> int:
        """Compressed bytes to come over the wire."""
        return sum(fetch.blob.size for fetch in self.fetches)

    @property
    def write_bytes(self) -> int:
        """The most bytes that can land on the disk."""
        return sum(fetch.chunk.raw_size * len(fetch.offsets) for fetch in self.fetches)


def make_plan(manifest: Manifest, *, done: Collection[int], zero_digests: Mapping[int, str]) -> Plan:
    """Decide a pull. `done`: the chunks in place from an earlier try; `zero_digests`: what zeros hash to, by size."""
    wanted: dict[str, list[int]] = {}
    for number, chunk in enumerate(manifest.chunks):
        if number not in done and zero_digests.get(chunk.raw_size) != chunk.raw_digest:
            wanted.setdefault(chunk.raw_digest, []).append(number)
    fetches = tuple(
        Fetch(
            chunk=manifest.chunks[numbers[0]],
            numbers=tuple(numbers),
            offsets=tuple(manifest.chunks[number].offset for number in numbers),
        )
        for numbers in wanted.values()
    )
    return Plan(fetches, frozenset(done))
