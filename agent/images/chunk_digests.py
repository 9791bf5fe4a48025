"""Raw digests of chunks: verify chunks of a disk on this host, and recognise chunks that are all zeros."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from agent.images.files import pread_into

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from agent.images.manifest import Chunk, Manifest

_STEP_BYTES: Final = 1 << 20
_ZEROS: Final = bytes(_STEP_BYTES)
_MAX_SIZES: Final = 4
"""An image has one chunk size and a shorter last chunk. This bounds the hashing for a manifest with many sizes."""


def matching_chunks(disk: Path, manifest: Manifest, numbers: Iterable[int]) -> frozenset[int]:
    """Return the numbers of those chunks whose bytes on `disk` match the manifest. Blocks."""
    descriptor = os.open(disk, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return frozenset(number for number in numbers if chunk_matches(descriptor, manifest.chunks[number]))
    finally:
        os.close(descriptor)


def chunk_matches(descriptor: int, chunk: Chunk) -> bool:
    """Return whether a chunk's range of an open disk has the chunk's raw digest. Blocks."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_STEP_BYTES))
    for at in range(0, chunk.raw_size, _STEP_BYTES):
        size = min(_STEP_BYTES, chunk.raw_size - at)
        if pread_into(descriptor, buffer[:size], chunk.offset + at) < size:
            return False
        digest.update(buffer[:size])
    return f"sha256:{digest.hexdigest()}" == chunk.raw_digest


def zero_digests(manifest: Manifest) -> dict[int, str]:
    """Return the digest of zeros for each chunk size of an image. A chunk with that digest is a hole.

    Blocks for 0.6 s per GiB the first time.
    """
    sizes: dict[int, None] = {}
    for chunk in manifest.chunks:
        sizes[chunk.raw_size] = None
        if len(sizes) == _MAX_SIZES:
            break
    return {size: zero_digest(size) for size in sizes}


@lru_cache(maxsize=64)
def zero_digest(size: int) -> str:
    """Return the digest of `size` zero bytes."""
    digest = hashlib.sha256()
    for _ in range(size // _STEP_BYTES):
        digest.update(_ZEROS)
    digest.update(_ZEROS[: size % _STEP_BYTES])
    return f"sha256:{digest.hexdigest()}"
