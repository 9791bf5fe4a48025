"""The plan of a pull: for each chunk keep it, leave a hole, rebuild it from local data, or fetch it. Pure."""

from __future__ import annotations

from bisect import bisect
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
"""Local blocks are fetched too if that joins two ranges over a gap of at most this many blocks, because a request costs
more than a few blocks. (Measured on a Debian package added in place: half the requests for 0.5 % more bytes.)"""
MAX_RANGE_BYTES: Final = 4 << 20
"""Longest range of one request."""
MAX_FIRSTS: Final = 200_000
"""Largest number of new blocks to remember, so that the memory of a plan is bounded."""
MAX_FETCHED_SHARE: Final = 0.9
"""A chunk is fetched whole if its missing blocks are a larger share of it than this."""
FIRST_BLOCKS: Final = 2_000
"""The first portion is small, so that the download starts before the rest is planned."""
PORTION_BLOCKS: Final = 100_000
"""Block locations are kept in memory for one portion at a time: an 80 GB image has a million blocks."""


@dataclass(frozen=True, slots=True)
class ChunkOutline:
    """The chunk numbers of an image: finished, left as holes, and missing, where equal chunks are grouped."""

    done: frozenset[int]
    holes: tuple[int, ...]
    missing: tuple[tuple[int, ...], ...]

    def write_bytes(self, manifest: Manifest) -> int:
        """Return the largest number of bytes that the pull can write to the disk."""
        return sum(manifest.chunks[number].raw_size for numbers in self.missing for number in numbers)

    def done_bytes(self, manifest: Manifest) -> int:
        """Return the compressed size of the finished chunks and the holes."""
        return sum(manifest.chunks[number].blob.size for number in (*self.done, *self.holes))


@dataclass(frozen=True, slots=True)
class Spot:
    """The location of raw bytes on this host."""

    disk: Path
    offset: int


@dataclass(frozen=True, slots=True)
class Local:
    """Copy `size` raw bytes from a local disk."""

    spot: Spot
    size: int


@dataclass(frozen=True, slots=True)
class Zeros:
    """Leave a hole of `size` raw bytes."""

    size: int


@dataclass(frozen=True, slots=True)
class Remote:
    """Fetch framed blocks: `size` bytes at `start` of the chunk's blob, which decode to `raw_size` bytes."""

    start: int
    size: int
    raw_size: int


Step: TypeAlias = Local | Zeros | Remote


@dataclass(frozen=True, slots=True)
class Fetch:
    """Fetch one blob and write its content at all its offsets on the disk, so that equal chunks are fetched once."""

    chunk: Chunk
    numbers: tuple[int, ...]
    offsets: tuple[int, ...]

    @property
    def blob(self) -> Blob:
        """The blob to fetch."""
        return self.chunk.blob


@dataclass(frozen=True, slots=True)
class Rebuild:
    """Rebuild a chunk from local bytes and fetched blocks. If that fails, `fetch` replaces it.

    `needs` are the chunks of the same disk from which blocks are copied: they must be finished first.
    """

    fetch: Fetch
    steps: tuple[Step, ...]
    needs: frozenset[int] = frozenset()

    @property
    def remote(self) -> tuple[Remote, ...]:
        """The ranges to fetch."""
        return tuple(step for step in self.steps if isinstance(step, Remote))


@dataclass(frozen=True, slots=True)
class Plan:
    """The jobs for one portion of chunks."""

    fetches: tuple[Fetch, ...]
    rebuilds: tuple[Rebuild, ...]
    repeats: tuple[Rebuild, ...]
    """Rebuilds that copy blocks from other chunks of the same pull."""

    @property
    def jobs(self) -> tuple[Fetch | Rebuild, ...]:
        """All jobs; chunks that other jobs need come first."""
        return (*self.rebuilds, *self.fetches, *self.repeats)


@dataclass(frozen=True, slots=True)
class LocalContent:
    """Locations in local images: of whole chunks by raw digest, and of blocks by block digest."""

    chunks: Mapping[str, Spot] = field(default_factory=dict)
    blocks: MutableMapping[bytes, Spot] = field(default_factory=dict)


def outline_chunks(manifest: Manifest, *, done: Collection[int] = (), zero_digests: Mapping[int, str]) -> ChunkOutline:
    """Sort the chunks. `done` are the finished chunks; `zero_digests` are the digests of zeros by size."""
    missing: dict[str, list[int]] = {}
    holes: list[int] = []
    for number, chunk in enumerate(manifest.chunks):
        if number in done:
            continue
        if zero_digests.get(chunk.raw_size) == chunk.raw_digest:
            holes.append(number)
        else:
            missing.setdefault(chunk.raw_digest, []).append(number)
    return ChunkOutline(frozenset(done), tuple(holes), tuple(map(tuple, missing.values())))


def portions(
    missing: Sequence[tuple[int, ...]], index: Sequence[ChunkBlocks | None]
) -> Iterator[list[tuple[int, ...]]]:
    """Yield the missing chunks in portions. The size of a portion is the number of its indexed blocks."""
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


def make_plan(
    manifest: Manifest,
    missing: Iterable[Sequence[int]],
    *,
    local: LocalContent | None = None,
    index: Sequence[ChunkBlocks | None] = (),
    own_disk: Path | None = None,
    firsts: dict[bytes, int] | None = None,
) -> Plan:
    """Plan the jobs for missing chunks, where equal chunks are grouped.

    `index` is the image's own block index, if it has one. With `own_disk`, the disk being written, a new block that the
    image holds several times is fetched once: `firsts` maps it to its first offset there. Pass the same `firsts` to all
    plans of one pull.
    """
    local = local or LocalContent()
    firsts = {} if firsts is None else firsts
    jobs: dict[str, list[Any]] = {"fetches": [], "rebuilds": [], "repeats": []}
    for numbers in missing:
        chunk = manifest.chunks[numbers[0]]
        blocks = index[numbers[0]] if index else None
        fetch = Fetch(chunk, tuple(numbers), tuple(manifest.chunks[number].offset for number in numbers))
        digests = blocks.all_digests() if blocks else []
        own = {digest: Spot(own_disk, firsts[digest]) for digest in firsts.keys() & digests} if own_disk else {}
        steps = _steps(chunk, blocks, LocalContent(local.chunks, ChainMap(local.blocks, own)) if own else local)
        kind = "fetches" if not steps else "repeats" if own else "rebuilds"
        jobs[kind].append(Rebuild(fetch, steps, _needs(manifest, steps, own_disk)) if steps else fetch)
        if own_disk is not None and digests and kind != "repeats" and len(firsts) < MAX_FIRSTS:
            firsts.update(_fetched_blocks(chunk, digests, local))
    return Plan(**{kind: tuple(found) for kind, found in jobs.items()})


def _fetched_blocks(chunk: Chunk, digests: Sequence[bytes], local: LocalContent) -> dict[bytes, int]:
    """Return the blocks that a chunk's fetch obtains, with their offsets on the disk."""
    found = dict(zip(digests, range(chunk.offset, chunk.offset + chunk.raw_size, BLOCK_BYTES), strict=True))
    for known in (*(found.keys() & local.blocks.keys()), ZERO_BLOCK):
        found.pop(known, None)
    return found


def _needs(manifest: Manifest, steps: Iterable[Step], own_disk: Path | None) -> frozenset[int]:
    """Return the chunks of the disk being written from which the steps read."""

    def chunk_at(offset: int) -> int:
        return bisect(manifest.chunks, offset, key=lambda chunk: chunk.offset) - 1

    found: set[int] = set()
    for step in steps:
        if isinstance(step, Local) and step.spot.disk == own_disk:
            found.update(range(chunk_at(step.spot.offset), chunk_at(step.spot.offset + step.size - 1) + 1))
    return frozenset(found)


def wanted_blocks(chunks: Iterable[int], index: Sequence[ChunkBlocks | None]) -> set[bytes]:
    """Return the digests of the blocks of these chunks, except zeros: the blocks to search for on this host."""
    found: set[bytes] = set()
    for number in chunks:
        blocks = index[number]
        found.update(blocks.all_digests() if blocks else ())
    found.discard(ZERO_BLOCK)
    return found


def _steps(chunk: Chunk, blocks: ChunkBlocks | None, local: LocalContent) -> tuple[Step, ...]:
    """Return the steps to rebuild a chunk; empty if the chunk should be fetched whole."""
    spot = local.chunks.get(chunk.raw_digest)
    if spot is not None:
        return (Local(spot, chunk.raw_size),)
    if blocks is None or not _is_rebuild_worthwhile(chunk, blocks, local):
        return ()
    steps = tuple(_joined(_bridged(list(_single_steps(chunk, blocks, local)))))
    fetched = sum(step.size for step in steps if isinstance(step, Remote))
    return steps if fetched <= MAX_FETCHED_SHARE * chunk.blob.size else ()


def _is_rebuild_worthwhile(chunk: Chunk, blocks: ChunkBlocks, local: LocalContent) -> bool:
    """Return whether local blocks save enough. This must be cheap: for most chunks of a new image it returns False."""
    digests = blocks.all_digests()
    known = {digest for digest in set(digests) if digest == ZERO_BLOCK or digest in local.blocks}
    if not known:
        return False
    missing = sum(length for digest, length in zip(digests, blocks.lengths, strict=True) if digest not in known)
    return missing <= MAX_FETCHED_SHARE * chunk.blob.size


@dataclass(frozen=True, slots=True)
class _Block:
    """One block: its step, and the step to fetch it instead."""

    step: Step
    remote: Remote


def _single_steps(chunk: Chunk, blocks: ChunkBlocks, local: LocalContent) -> Iterator[_Block]:
    start, left = 0, chunk.raw_size
    for digest, length in blocks:
        raw_size = min(BLOCK_BYTES, left)
        remote = Remote(start, length, raw_size)
        spot = local.blocks.get(digest)
        if digest == ZERO_BLOCK and raw_size == BLOCK_BYTES:
            yield _Block(Zeros(raw_size), remote)
        elif spot is not None:
            yield _Block(Local(spot, raw_size), remote)
        else:
            yield _Block(remote, remote)
        start += length
        left -= raw_size


def _bridged(blocks: list[_Block]) -> Iterator[Step]:
    """Replace short gaps between fetched blocks by fetches."""
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
    """Join adjacent steps that form one range, up to the longest range of one request."""
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
