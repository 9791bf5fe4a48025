"""Checks chunks of a disk on this host against their raw digests."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Final

from agent.images.files import pread_into

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from agent.images.manifest import Chunk, Manifest

_STEP_BYTES: Final = 1 << 20


def matching_chunks(disk: Path, manifest: Manifest, numbers: Iterable[int]) -> frozenset[int]:
    """Return those of the chunks whose bytes on `disk` have the digest that the manifest says."""
    descriptor = os.open(disk, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return frozenset(number for number in numbers if chunk_matches(descriptor, manifest.chunks[number]))
    finally:
        os.close(descriptor)


def chunk_matches(descriptor: int, chunk: Chunk) -> bool:
    """Whether a chunk's range of an open disk has the chunk's raw digest."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_STEP_BYTES))
    for at in range(0, chunk.raw_size, _STEP_BYTES):
        size = min(_STEP_BYTES, chunk.raw_size - at)
        if pread_into(descriptor, buffer[:size], chunk.offset + at) < size:
            return False
        digest.update(buffer[:size])
    return f"sha256:{digest.hexdigest()}" == chunk.raw_digest
