"""Plans: every byte of the disk has exactly one source, and executing a plan gives the right bytes."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.images.blockindex import BadIndexError, ChunkBlocks, block_digests, decode_index, encode_index
from agent.images.chunk_digests import zero_digest, zero_digests
from agent.images.chunk_writers import ChunkBuilder, ChunkWriter, RawWriter
from agent.images.liblz4 import best_codec
from agent.images.lz4frame import BLOCK_BYTES, END_BYTES, MAX_FRAMED_BYTES, encode_frame
from agent.images.manifest import Blob, Chunk, Manifest, digest_of
from agent.images.plan import (
    BRIDGE_BLOCKS,
    PORTION_BLOCKS,
    Fetch,
    Local,
    LocalContent,
    Rebuild,
    Remote,
    Spot,
    Zeros,
    make_plan,
    outline_chunks,
    portions,
)

CODEC = best_codec()
CHUNK = 8 * BLOCK_BYTES
OLD = Path("/old/disk.img")


def block(letter: str) -> bytes:
    """Return the bytes of a block: zeros for '0', for each other letter its own data that LZ4 cannot shrink much."""
    if letter == "0":
        return bytes(BLOCK_BYTES)
    return hashlib.shake_128(letter.encode()).digest(BLOCK_BYTES)


def disk(letters: str) -> bytes:
    return b"".join(block(letter) for letter in letters)


def image(letters: str) -> tuple[Manifest, list[ChunkBlocks | None], list[bytes]]:
    """Create a manifest, its block index and its blobs. Each letter is a block; a chunk has eight blocks."""
    raw = disk(letters)
    chunks, index, blobs = [], [], []
    for offset in range(0, len(raw), CHUNK):
        piece = bytearray(raw[offset : offset + CHUNK])
        stream, lengths = encode_frame(memoryview(piece), CODEC)
        chunks.append(Chunk(Blob(digest_of(stream), len(stream)), digest_of(piece), len(piece), offset))
        empty = digest_of(piece) == zero_digest(len(piece))
        index.append(None if empty else ChunkBlocks(lengths, block_digests(memoryview(piece))))
        blobs.append(bytes(stream))
    small = Blob(digest_of(b"{}"), 2)
    return Manifest(digest_of(raw), b"", small, small, tuple(chunks), small), index, blobs


def local_content(letters: str, manifest: Manifest) -> LocalContent:
    """Return the data of a disk of these letters that an image can reuse."""
    raw = disk(letters)
    whole = {digest_of(raw[at : at + CHUNK]): Spot(OLD, at) for at in range(0, len(raw), CHUNK)}
    blocks = {
        block_digests(memoryview(raw[at : at + BLOCK_BYTES])): Spot(OLD, at) for at in range(0, len(raw), BLOCK_BYTES)
    }
    wanted = {chunk.raw_digest for chunk in manifest.chunks}
    return LocalContent({digest: spot for digest, spot in whole.items() if digest in wanted}, blocks)


def missing(manifest: Manifest) -> tuple[tuple[int, ...], ...]:
    return outline_chunks(manifest, zero_digests=zero_digests(manifest)).missing


letters = st.text("00abcdefgh", min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(old=letters, new=letters, done=st.sets(st.integers(0, 4)))
def test_every_chunk_is_planned_exactly_once(old: str, new: str, done: set[int]) -> None:
    manifest, index, _ = image(new)
    done &= set(range(len(manifest.chunks)))
    known = local_content(old, manifest)
    zeros = zero_digests(manifest)
    outline = outline_chunks(manifest, done=done, zero_digests=zeros)
    plan = make_plan(manifest, outline.missing, local=known, index=index, own_disk=Path("/new"))
    jobs = [job.fetch if isinstance(job, Rebuild) else job for job in plan.jobs]
    numbers = [number for fetch in jobs for number in fetch.numbers] + [*outline.done, *outline.holes]
    assert sorted(numbers) == list(range(len(manifest.chunks)))
    for fetch in jobs:
        assert {manifest.chunks[number].raw_digest for number in fetch.numbers} == {fetch.chunk.raw_digest}
        assert fetch.offsets == tuple(manifest.chunks[number].offset for number in fetch.numbers)
    assert all(not disk(new)[n * CHUNK : (n + 1) * CHUNK].strip(b"\0") for n in outline.holes)
    for rebuild in (*plan.rebuilds, *plan.repeats):  # never more bytes than the whole chunk
        assert sum(step.size for step in rebuild.remote) <= rebuild.fetch.blob.size


@settings(max_examples=40, deadline=None)
@given(old=letters, new=letters, portion=st.integers(1, 5))
def test_plan_rebuilds_the_image(old: str, new: str, portion: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("plan")
    (folder / "old").write_bytes(disk(old))
    manifest, index, blobs = image(new)
    known = local_content(old, manifest)
    moved = LocalContent(
        {digest: Spot(folder / "old", spot.offset) for digest, spot in known.chunks.items()},
        {digest: Spot(folder / "old", spot.offset) for digest, spot in known.blocks.items()},
    )
    wanted, firsts, placed = missing(manifest), dict[bytes, int](), set[int]()
    with (folder / "new").open("w+b", buffering=0) as file:
        file.truncate(manifest.disk_bytes)
        for at in range(0, len(wanted), portion):
            some = wanted[at : at + portion]
            plan = make_plan(manifest, some, local=moved, index=index, own_disk=folder / "new", firsts=firsts)
            for job in plan.jobs:
                fetch = job.fetch if isinstance(job, Rebuild) else job
                assert not isinstance(job, Rebuild) or job.needs <= placed
                make_chunk(job, blobs[fetch.numbers[0]], file.fileno())
                placed.update(fetch.numbers)
    assert (folder / "new").read_bytes() == disk(new)


def make_chunk(job: Fetch | Rebuild, blob: bytes, descriptor: int) -> None:
    """Execute one job of a plan like a worker. Raises `CorruptChunkError` if the bytes do not match the manifest."""
    if isinstance(job, Fetch):
        whole = ChunkWriter(job, RawWriter(job, descriptor), CODEC)
        whole.feed(memoryview(bytearray(blob)))
        whole.finish()
        return
    builder = ChunkBuilder(job, RawWriter(job.fetch, descriptor), CODEC)
    for step in job.remote:
        builder.feed(memoryview(bytearray(blob[step.start : step.start + step.size])))
    builder.finish()
    builder.close()


@given(st.lists(st.integers(0, 300), max_size=60))
def test_portions_are_complete_and_bounded(blocks: list[int]) -> None:
    """The number of block locations in memory is bounded, whatever the size of the image."""
    index = [ChunkBlocks(range(count * 1000), b"") if count else None for count in blocks]
    wanted = [(number,) for number in range(len(blocks))]
    found = list(portions(wanted, index))
    assert [numbers for portion in found for numbers in portion] == wanted
    for portion in found:
        assert sum(blocks[number] * 1000 for (number,) in portion[:-1]) < PORTION_BLOCKS


def steps(old: str, new: str) -> tuple[Rebuild, ...] | tuple[Fetch, ...]:
    manifest, index, _ = image(new)
    plan = make_plan(manifest, missing(manifest), local=local_content(old, manifest), index=index)
    return plan.rebuilds or plan.fetches


def kinds(old: str, new: str) -> str:
    """Return the steps for one chunk, a letter per block: L local, space zeros, R remote; or F if fetched whole."""
    (job,) = steps(old, new)
    if isinstance(job, Fetch):
        return "F"
    names = {Local: "L", Zeros: "Z", Remote: "R"}
    sizes = [step.raw_size if isinstance(step, Remote) else step.size for step in job.steps]
    return " ".join(names[type(step)] * (size // BLOCK_BYTES) for step, size in zip(job.steps, sizes, strict=True))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("abcdefgh", "abcdefgh", "LLLLLLLL"),
        ("abcdefgh", "abcdefgX", "LLLLLLL R"),
        ("abcdefgh", "Xbcdefgh", "R LLLLLLL"),
        ("abcdefgh", "XbcdefgY", "R LLLLLL R"),
        ("abcdefgh", "XbcdeYgh", "RRRRRR LL"),  # a gap of BRIDGE_BLOCKS is fetched too
        ("abcdefgh", "XbcdefYh", "R LLLLL R L"),  # a longer gap is not
        ("abcdefgh", "hgfedcba", "L L L L L L L L"),
        ("abcdefgh", "a000000X", "L ZZZZZZ R"),
        ("abcdefgh", "0000000X", "F"),  # zeros compress to almost nothing, so the block is nearly the whole blob
        ("abcdefgh", "ijklmnop", "F"),
        ("abcdefgh", "ijklmnoa", "RRRRRRR L"),
        ("z", "abcdefgh", "F"),
    ],
)
def test_plan_chooses_the_cheapest_steps(old: str, new: str, expected: str) -> None:
    assert BRIDGE_BLOCKS == 4
    assert kinds(old, new) == expected


def test_new_block_is_fetched_once() -> None:
    manifest, index, _ = image("abcdefgX" + "XXXXefgh" + "abcXefgY")
    known = local_content("abcdefgh", manifest)
    plan = make_plan(manifest, missing(manifest), local=known, index=index, own_disk=Path("/new"))
    assert [len(rebuild.remote) for rebuild in plan.rebuilds] == [1]
    assert [[step.raw_size for step in rebuild.remote] for rebuild in plan.repeats] == [[], [BLOCK_BYTES]]


def test_equal_chunks_are_fetched_once() -> None:
    (job,) = steps("z", "abcdefghabcdefgh")
    assert isinstance(job, Fetch)
    assert job.offsets == (0, CHUNK)


@settings(max_examples=40, deadline=None)
@given(letters)
def test_block_index_round_trips(text: str) -> None:
    manifest, index, _ = image(text)
    raw = encode_index(index)
    found = decode_index(raw, manifest)
    assert [list(blocks) if blocks else None for blocks in found] == [list(b) if b else None for b in index]


@settings(max_examples=200, deadline=None)
@given(data=st.data(), text=letters)
def test_changed_index_is_rejected_or_keeps_its_shape(data: st.DataObject, text: str) -> None:
    manifest, index, _ = image(text)
    raw = bytearray(encode_index(index))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(raw)))
    for changed in (bytes(raw), bytes(raw[:cut])):
        try:
            found = decode_index(changed, manifest)
        except BadIndexError:
            continue
        for blocks, chunk in zip(found, manifest.chunks, strict=True):
            assert blocks is None or sum(blocks.lengths) + 4 == chunk.blob.size


@pytest.mark.parametrize("lengths", [[442 << 20] + [1] * 7, [0] * 7 + [BLOCK_BYTES]])
def test_index_with_an_impossible_block_is_rejected(lengths: list[int]) -> None:
    """Such a block would become one range request, and its bytes would be kept in memory."""
    manifest, _, _ = image("abcdefgh")
    chunk = manifest.chunks[0]
    claimed = replace(chunk, blob=Blob(chunk.blob.digest, sum(lengths) + END_BYTES))
    raw = encode_index([ChunkBlocks(lengths, bytes(8 * 16))])
    with pytest.raises(BadIndexError, match="no block of 64 KiB"):
        decode_index(raw, replace(manifest, chunks=(claimed,)))


def test_largest_frame_of_a_block_is_bounded() -> None:
    stream, lengths = encode_frame(memoryview(bytearray(block("a"))), CODEC)
    assert lengths == [len(stream) - END_BYTES]
    assert BLOCK_BYTES < lengths[0] <= MAX_FRAMED_BYTES
