"""What to do for each chunk of an image, decided from its manifest, its block index and what is here already. Pure."""

from __future__ import annotations

from collections import ChainMap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from agent.images.blockindex import ZERO_BLOCK, ChunkBlocks
from agent.images.lz4frame import BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
    from pathlib import Path

    from agent.images.manifest import Blob, Chunk, Manifest

BRIDGE_BLOCKS: Final = 4
"""Blocks that are here are fetched all the same where that joins two ranges over a gap this small: a request costs more
than a few blocks. (Measured on a Debian package added in place: half the requests for 0.5 % more bytes.)"""
MAX_RANGE_BYTES: Final = 4 << 20
"""Longest range asked for at once."""
MAX_FIRSTS: Final = 200_000
"""New blocks remembered, so that the memory of a plan stays bounded."""
WORTH_IT: Final = 0.9
"""A chunk whose missing blocks are more than this part of it is fetched whole."""


@dataclass(frozen=True, slots=True)
class Spot:
    """Where some raw bytes lie on this host."""

    disk: Path
    offset: int


@dataclass(frozen=True, slots=True)
class Local:
    """Take `size` raw bytes from here."""

    spot: Spot
    size: int


@dataclass(frozen=True, slots=True)
class Zeros:
    """`size` raw bytes are zero."""

    size: int


@dataclass(frozen=True, slots=True)
class Remote:
    """Fetch framed blocks: `size` bytes from `start` of the chunk's blob, which decode to `raw_size` bytes."""

    start: int
    size: int
    raw_size: int


Step: TypeAlias = Local | Zeros | Remote


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
class Rebuild:
    """Put a chunk together from what is here and the blocks that are not. If that fails, `fetch` is the way out."""

    fetch: Fetch
    steps: tuple[Step, ...]

    @property
    def remote(self) -> tuple[Remote, ...]:
        """The ranges to fetch."""
        return tuple(step for step in self.steps if isinstance(step, Remote))


@dataclass(frozen=True, slots=True)
class Plan:
    """A pull, decided. Chunks in none of its parts are holes."""

    fetches: tuple[Fetch, ...]
    rebuilds: tuple[Rebuild, ...]
    done: frozenset[int]
    holes: tuple[int, ...] = ()
    repeats: tuple[Rebuild, ...] = ()
    """What takes blocks from chunks that this pull itself fetches; to be done after all others."""

    @property
    def write_bytes(self) -> int:
        """The most bytes that can land on the disk."""
        fetches = (*self.fetches, *(rebuild.fetch for rebuild in (*self.rebuilds, *self.repeats)))
        return sum(fetch.chunk.raw_size * len(fetch.offsets) for fetch in fetches)


@dataclass(frozen=True, slots=True)
class Here:
    """What images on this host can give: whole chunks by raw digest, blocks by block digest."""

    chunks: Mapping[str, Spot] = field(default_factory=dict)
    blocks: MutableMapping[bytes, Spot] = field(default_factory=dict)


def make_plan(
    manifest: Manifest,
    *,
    done: Collection[int] = (),
    zero_digests: Mapping[int, str],
    here: Here | None = None,
    index: Sequence[ChunkBlocks | None] = (),
    own_disk: Path | None = None,
) -> Plan:
    """Decide a pull.

    `done` are the chunks in place already, `zero_digests` what zeros hash to, by size; `index` is the image's own block
    index if it has one. With `own_disk`, the disk being made, a new block that the image holds often moves once.
    """
    here = here or Here()
    firsts: dict[bytes, Spot] = {}
    here_or_first = Here(here.chunks, ChainMap(here.blocks, firsts))
    jobs: dict[str, list[Any]] = {"fetches": [], "rebuilds": [], "repeats": []}
    missing = missing_chunks(manifest, done=done, zero_digests=zero_digests)
    for numbers in missing.values():
        chunk = manifest.chunks[numbers[0]]
        blocks = index[numbers[0]] if index else None
        fetch = Fetch(chunk, tuple(numbers), tuple(manifest.chunks[number].offset for number in numbers))
        repeats = any(digest in firsts for digest, _ in blocks or ())
        steps = _steps(chunk, blocks, here_or_first if repeats else here)
        kind = "fetches" if not steps else "repeats" if repeats else "rebuilds"
        jobs[kind].append(Rebuild(fetch, steps) if steps else fetch)
        if own_disk is not None and blocks and kind != "repeats" and len(firsts) < MAX_FIRSTS:
            firsts.update(_fetched_blocks(chunk, blocks, here, own_disk))
    elsewhere = {number for numbers in missing.values() for number in numbers} | set(done)
    holes = tuple(number for number in range(len(manifest.chunks)) if number not in elsewhere)
    return Plan(done=frozenset(done), holes=holes, **{kind: tuple(found) for kind, found in jobs.items()})


def _fetched_blocks(chunk: Chunk, blocks: ChunkBlocks, here: Here, disk: Path) -> Iterator[tuple[bytes, Spot]]:
    """Yield the blocks that will have come over the wire with a chunk, and where they lie then."""
    for number, (digest, _) in enumerate(blocks):
        if digest != ZERO_BLOCK and digest not in here.blocks:
            yield digest, Spot(disk, chunk.offset + number * BLOCK_BYTES)


def missing_chunks(
    manifest: Manifest, *, done: Collection[int], zero_digests: Mapping[int, str]
) -> dict[str, list[int]]:
    """Return the numbers of the chunks that are neither in place nor zero, by raw digest."""
    wanted: dict[str, list[int]] = {}
    for number, chunk in enumerate(manifest.chunks):
        if number not in done and zero_digests.get(chunk.raw_size) != chunk.raw_digest:
            wanted.setdefault(chunk.raw_digest, []).append(number)
    return wanted


def wanted_blocks(chunks: Iterable[int], index: Sequence[ChunkBlocks | None]) -> set[bytes]:
    """Return the digests of the blocks of some chunks, zeros aside: what is worth looking for on this host."""
    found = {digest for number in chunks for digest, _ in (index[number] or ())}
    found.discard(ZERO_BLOCK)
    return found


def _steps(chunk: Chunk, blocks: ChunkBlocks | None, here: Here) -> tuple[Step, ...]:
    """Return how to put a chunk together; nothing when it is better fetched whole."""
    spot = here.chunks.get(chunk.raw_digest)
    if spot is not None:
        return (Local(spot, chunk.raw_size),)
    if blocks is None:
        return ()
    steps = tuple(_joined(_bridged(list(_single_steps(chunk, blocks, here)))))
    fetched = sum(step.size for step in steps if isinstance(step, Remote))
    return steps if fetched <= WORTH_IT * chunk.blob.size else ()


@dataclass(frozen=True, slots=True)
class _Block:
    """One block: what to do with it, and where it would be fetched from."""

    step: Step
    remote: Remote


def _single_steps(chunk: Chunk, blocks: ChunkBlocks, here: Here) -> Iterator[_Block]:
    start, left = 0, chunk.raw_size
    for digest, length in blocks:
        raw_size = min(BLOCK_BYTES, left)
        remote = Remote(start, length, raw_size)
        spot = here.blocks.get(digest)
        if digest == ZERO_BLOCK and raw_size == BLOCK_BYTES:
            yield _Block(Zeros(raw_size), remote)
        elif spot is not None:
            yield _Block(Local(spot, raw_size), remote)
        else:
            yield _Block(remote, remote)
        start += length
        left -= raw_size


def _bridged(blocks: list[_Block]) -> Iterator[Step]:
    """Turn short gaps between blocks to fetch into blocks to fetch."""
    last: int | None = None
    steps = [block.step for block in blocks]
    for number, step in enumerate(steps):
        if not isinstance(step, Remote):
            continue
        if last is not None and 0 < number - last - 1 <= BRIDGE_BLOCKS:
            steps[last + 1 : number] = [block.remote for block in blocks[last + 1 : number]]
        last = number
    return iter(steps)


def _joined(steps: Iterable[Step]) -> Iterator[Step]:
    """Join neighbours that are one range, up to the longest that is asked for at once."""
    current: Step | None = None
    for step in steps:
        joined = _join(current, step) if current is not None else None
        if joined is None and current is not None:
            yield current
        current = joined or step
    if current is not None:
        yield current


def _join(first: Step, second: Step) -> Step | None:
    match first, second:
        case Zeros(), Zeros():
            return Zeros(first.size + second.size)
        case Local(), Local() if (
            first.spot.disk == second.spot.disk and first.spot.offset + first.size == second.spot.offset
        ):
            return Local(first.spot, first.size + second.size)
        case Remote(), Remote() if first.size + second.size <= MAX_RANGE_BYTES:
            return Remote(first.start, first.size + second.size, first.raw_size + second.raw_size)
    return None
