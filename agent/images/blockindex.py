"""The block index: for every 64 KiB block of an image, the digest of its raw bytes and the length of its framed bytes.

With it, an update of an image fetches the changed blocks instead of the changed chunks. It is attached to the image as
an OCI referrer, which stock Tart never requests. It is only a hint: each rebuilt chunk is checked against the raw
digest in the manifest, so a wrong or hostile index costs time and nothing else.

    "HBI1", u32 number of chunks, then per chunk in the manifest's order:
    u32 number of blocks n (0: not indexed), n x u32 framed length, n x 16 bytes digest      (little-endian)

The digest of a block is the first 16 bytes of the sha256 of its raw bytes. Each block starts in the chunk's blob where
the previous block ends.
"""

from __future__ import annotations

import hashlib
import struct
import sys
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent.images.lz4frame import BLOCK_BYTES, END_BYTES, MAX_FRAMED_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from agent.images.manifest import Chunk, Manifest

INDEX_TYPE: Final = "application/vnd.hearth.block-index.v1"
MAX_INDEX_BYTES: Final = 128 << 20
"""Enough for 400 GB of blocks."""
DIGEST_BYTES: Final = 16

_MAGIC: Final = b"HBI1"
_COUNT: Final = struct.Struct("<I")


class BadIndexError(ValueError):
    """Bytes that are not a block index of this image. The image is pulled without an index."""


@dataclass(frozen=True, slots=True)
class ChunkBlocks:
    """The blocks of one chunk: their framed lengths, and their concatenated digests."""

    lengths: Sequence[int]
    digests: bytes | memoryview

    def all_digests(self) -> list[bytes]:
        """Return the digest of each block, in order."""
        digests = bytes(self.digests)
        return [digests[at : at + DIGEST_BYTES] for at in range(0, len(digests), DIGEST_BYTES)]

    def __iter__(self) -> Iterator[tuple[bytes, int]]:
        return zip(self.all_digests(), self.lengths, strict=True)


def block_digests(raw: memoryview) -> bytes:
    """Return the concatenated digests of a chunk's blocks."""
    return b"".join(
        hashlib.sha256(raw[at : at + BLOCK_BYTES]).digest()[:DIGEST_BYTES] for at in range(0, len(raw), BLOCK_BYTES)
    )


ZERO_BLOCK: Final = block_digests(memoryview(bytes(BLOCK_BYTES)))
"""Digest of a block of zeros. Such a block is never fetched."""


def encode_index(chunks: Iterable[ChunkBlocks | None]) -> bytes:
    """Return the bytes of an index; None marks a chunk that is not indexed."""
    parts = [_COUNT.pack(0) if blocks is None else _encode_chunk(blocks) for blocks in chunks]
    return b"".join([_MAGIC, _COUNT.pack(len(parts)), *parts])


def decode_index(raw: bytes, manifest: Manifest) -> tuple[ChunkBlocks | None, ...]:
    """Return the blocks of each chunk of an image; None for chunks that are not indexed. Raises `BadIndexError`."""
    if raw[:4] != _MAGIC or len(raw) < 8 or _COUNT.unpack_from(raw, 4)[0] != len(manifest.chunks):
        raise BadIndexError("it is not an index of this image")
    at = 8
    found = []
    view = memoryview(raw)
    for chunk in manifest.chunks:
        if len(raw) < at + _COUNT.size:
            raise BadIndexError("it is truncated")
        count = int(_COUNT.unpack_from(raw, at)[0])
        end = at + _COUNT.size + count * (_COUNT.size + DIGEST_BYTES)
        found.append(_decode_chunk(view[at + _COUNT.size : end], count, chunk))
        at = end
    if at != len(raw):
        raise BadIndexError("it has trailing bytes")
    return tuple(found)


def _encode_chunk(blocks: ChunkBlocks) -> bytes:
    lengths = array("I", blocks.lengths)
    if sys.byteorder == "big":
        lengths.byteswap()
    return _COUNT.pack(len(lengths)) + lengths.tobytes() + bytes(blocks.digests)


def _decode_chunk(raw: memoryview, count: int, chunk: Chunk) -> ChunkBlocks | None:
    if count == 0:
        return None
    if count != -(-chunk.raw_size // BLOCK_BYTES) or len(raw) != count * (_COUNT.size + DIGEST_BYTES):
        raise BadIndexError("its number of blocks differs from the image")
    # Views, not copies: an index of 80 GB is 26 MB.
    lengths = _little_endian(raw[: count * _COUNT.size])
    if not 0 < min(lengths) <= max(lengths) <= MAX_FRAMED_BYTES:
        raise BadIndexError(f"it has a block outside 1 to {MAX_FRAMED_BYTES} bytes, which no block of 64 KiB can be")
    if sum(lengths) + END_BYTES != chunk.blob.size:
        raise BadIndexError("the length of its blocks differs from the chunks of the image")
    return ChunkBlocks(lengths, raw[count * _COUNT.size :])


def _little_endian(raw: memoryview) -> Sequence[int]:
    if sys.byteorder == "little":
        return raw.cast("I")
    numbers = array("I", raw)
    numbers.byteswap()
    return numbers
